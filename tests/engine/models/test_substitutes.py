"""Substitutes of the embedded model: what it reads in place of a noun that it never learned."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from engine.contract import JobRejected
from engine.models.families.embedded import load_embedded
from engine.models.families.stable_diffusion import StableDiffusion
from engine.process.model_settings import SUBSTITUTES_FILE, WEIGHTS_FOLDER


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


@pytest.mark.parametrize("content", [b"{", b"[]", b'{"source": "", "nouns": {"a": 1}}', b"\xff"])
def test_a_damaged_list_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / SUBSTITUTES_FILE).parent.mkdir()
    (tmp_path / SUBSTITUTES_FILE).write_bytes(content)
    for part in ("vae", "unet", "scheduler"):
        (tmp_path / part).symlink_to(WEIGHTS_FOLDER / part)
    with pytest.raises(JobRejected, match=r"substitutes/nouns\.json cannot be read: "):
        load_embedded(weights=tmp_path)
