"""The word lists of the embedded model: what is shipped fits the model, and a damaged list is one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.contract import JobRejected
from engine.models.judge import read_labels
from engine.process.model_settings import STYLES_FILE, WEIGHTS_FOLDER, read_style_guide
from training.pictures.captions import STYLE_MENTION_SHARE


def test_the_shipped_styles_are_those_of_the_captions_for_labels_that_there_are() -> None:
    guide = read_style_guide()
    assert guide is not None
    assert {guide.main_style, *guide.labels_by_style} == {"3d render", "soft shading"} < set(STYLE_MENTION_SHARE)
    labels = set(read_labels(WEIGHTS_FOLDER / "judge"))
    assert all(len(listed) > 1000 and listed < labels for listed in guide.labels_by_style.values())
    assert len(guide.choose_styles("a terrier, looking up, cute, white background")) >= 2, "the page's first prompt"
    assert all(guide.choose_styles(label) for listed in guide.labels_by_style.values() for label in listed)


def test_a_model_without_a_list_has_no_guide(tmp_path: Path) -> None:
    assert read_style_guide(tmp_path) is None


TOO_MANY_STYLES = b'{"main_style": "a", "labels_by_style": {"b": [], "c": [], "d": [], "e": [], "f": []}}'


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b'{"main_style": "a", "labels_by_style": {"b": 1}}',
        b"\xff",
        TOO_MANY_STYLES,
        b'{"main_style": "", "labels_by_style": {}}',
    ],
)
def test_a_damaged_list_is_refused_in_one_sentence(tmp_path: Path, content: bytes) -> None:
    (tmp_path / STYLES_FILE).parent.mkdir()
    (tmp_path / STYLES_FILE).write_bytes(content)
    with pytest.raises(JobRejected, match=r"styles/labels\.json cannot be read: "):
        read_style_guide(tmp_path)
