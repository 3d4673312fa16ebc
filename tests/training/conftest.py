"""Fixtures of the engine that the trainers' tests use."""

from shared.engine_fixtures import affine, embedded, finish, job, recipe, small_folder

__all__ = ["affine", "embedded", "finish", "job", "recipe", "small_folder"]
