"""A model of the hub stays at the revision that was fetched first."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from engine.contract import JobRejected
from engine.hub.added_models import REVISIONS_FILE, ModelManifest, write_manifest
from engine.models.files import model_source
from engine.models.files.model_source import find_model

FIRST = "a" * 40
SECOND = "b" * 40


@pytest.fixture
def downloads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str | None]]:
    """What was asked of the hub, whose newest revision is the second."""
    asked: list[tuple[str, str | None]] = []

    def download(hub_name: str, revision: str | None = None) -> Path:
        asked.append((hub_name, revision))
        commit = {None: FIRST if len(asked) == 1 else SECOND, "main": SECOND}.get(revision, revision)
        return tmp_path / "cache" / "snapshots" / str(commit)

    monkeypatch.setattr(model_source, "_download", download)
    return asked


def test_the_first_revision_is_remembered(tmp_path: Path, downloads: list[tuple[str, str | None]]) -> None:
    first, again, other = (find_model(name, tmp_path) for name in ("owner/name", "owner/name", "owner/other"))
    assert downloads == [("owner/name", None), ("owner/name", FIRST), ("owner/other", None)]
    assert (first.name, first.path.name) == ("name", FIRST)
    assert again == first
    assert other.path.name == SECOND
    remembered = json.loads((tmp_path / REVISIONS_FILE).read_text())
    assert remembered == {"owner/name": FIRST, "owner/other": SECOND}


def test_a_chosen_revision_is_remembered_too(tmp_path: Path, downloads: list[tuple[str, str | None]]) -> None:
    find_model("owner/name", tmp_path)
    chosen = find_model("owner/name@main", tmp_path)
    later = find_model("owner/name", tmp_path)
    assert (chosen.name, chosen.path.name) == ("name", SECOND)
    assert later == chosen
    assert downloads[-1] == ("owner/name", SECOND)


def test_an_unreadable_file_is_refused(tmp_path: Path, downloads: list[tuple[str, str | None]]) -> None:
    (tmp_path / REVISIONS_FILE).write_text("{")
    with pytest.raises(JobRejected, match="cannot be read"):
        find_model("owner/name", tmp_path)
    assert downloads == []


@pytest.mark.usefixtures("downloads")
def test_without_a_data_folder_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    find_model("owner/name", Path())
    assert not (tmp_path / REVISIONS_FILE).exists()


def test_an_added_model_is_found_by_its_name_on_the_hub(
    tmp_path: Path, downloads: list[tuple[str, str | None]]
) -> None:
    folder = tmp_path / "models" / "short"
    folder.mkdir(parents=True)
    write_manifest(folder, ModelManifest("owner/name", FIRST, ()))
    found = find_model("owner/name", tmp_path)
    assert (found.name, found.path) == ("name", folder), "recipes from before it was added have this name"
    assert find_model(f"owner/name@{FIRST}", tmp_path) == found
    assert find_model("short", tmp_path).name == "short"
    assert downloads == []
    find_model(f"owner/name@{SECOND}", tmp_path)
    assert downloads == [("owner/name", SECOND)]


def test_a_name_of_the_catalogue_says_how_to_add_it(tmp_path: Path) -> None:
    with pytest.raises(JobRejected, match="flux-schnell is not here yet: `darkroom models add flux-schnell`"):
        find_model("flux-schnell", tmp_path)
