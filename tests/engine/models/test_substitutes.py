"""Substitutes of the embedded model: what it reads in place of a noun that it never learned."""

from __future__ import annotations

import pytest
import torch

from engine.models.families.stable_diffusion import StableDiffusion


@pytest.mark.parametrize(
    ("text", "read_as"),
    [
        ("a terrier, cute", "a dog face, cute"),
        ("(Terrier:1.2)", "(dog face:1.2)"),
        ("terriers", "dog face"),
        ("a capybara", "a mouse face"),
    ],
)
def test_a_noun_that_it_never_learned_is_read_as_its_substitute(
    embedded: StableDiffusion, text: str, read_as: str
) -> None:
    assert torch.equal(embedded.encode_text(text), embedded.encode_text(read_as))


def test_what_it_learned_is_read_as_it_is_typed(embedded: StableDiffusion) -> None:
    texts = ["a fox", "a wolf", "green frog", "frog", "soft shading, white background"]
    states = [embedded.encode_text(text) for text in texts]
    assert len({state.numpy().tobytes() for state in states}) == len(texts)
