"""Memory of what recipes add to a model: its own networks for a recipe, and those that others left loaded."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from engine.contract import Recipe
from engine.models.family import Family, TakesAutoencoders, TakesPictures


class AddedBytes(NamedTuple):
    """Bytes of added autoencoders and picture networks: a recipe's own, and all with those that others left loaded.

    `shared`: the part of all whose networks other models share, by a key for each network.
    """

    own: int
    total: int
    shared: Mapping[str, int] = MappingProxyType({})


def count_added_bytes(family: Family, recipe: Recipe) -> AddedBytes:
    """Return the bytes beside the model once a recipe's networks are loaded; 0: it has none. Raises `JobRejected`."""
    pictures = family if isinstance(family, TakesPictures) else None
    autoencoders = family if isinstance(family, TakesAutoencoders) else None
    if recipe.autoencoder is None and not (pictures and pictures.needs_pictures(recipe)):
        return AddedBytes(0, 0)

    def count(with_kept: bool) -> int:
        picture_bytes = pictures.count_picture_bytes(recipe, with_kept=with_kept) if pictures else 0
        part = recipe.autoencoder
        return picture_bytes + (autoencoders.count_autoencoder_bytes(part, with_kept=with_kept) if autoencoders else 0)

    shared = pictures.list_shared_bytes(recipe) if pictures else dict[str, int]()  # first, so the whole is not less
    return AddedBytes(count(with_kept=False), count(with_kept=True), shared)


def release_other_additions(family: Family, recipe: Recipe) -> None:
    """Drop the added autoencoders and picture networks in memory that a recipe does not use. Raises `JobRejected`."""
    if isinstance(family, TakesPictures):
        family.release_other_networks(recipe)
    if isinstance(family, TakesAutoencoders):
        family.release_other_autoencoders(recipe.autoencoder)
