"""The checks that all kinds of added files share: names, links, pickles, and one line of the log for each refusal."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.contract import JobRejected
from engine.models.files.added_kind import AddedEntry, AddedKind, Form


class Thing(NamedTuple):
    """What an entry holds: the names of its tensors."""

    name: str
    tensors: list[str]
    revision: str = "one"


def _read(entry: AddedEntry) -> Thing | None:
    files = entry.list_weights()
    entry.check_links(files)
    if entry.is_folder and files:
        entry.read_config(10)
    names = sorted(name for file in files for name in load_file(file))
    return Thing(entry.name, names) if names else None


def make_kind(*forms: Form) -> AddedKind[Thing]:
    return AddedKind("thing", _read, forms or ("file", "folder"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "things"
    for name in ("own", "pickled", "empty", "large"):
        (folder / name).mkdir(parents=True)
    for path in (folder / "one.safetensors", folder / "own" / "a.safetensors", folder / "large" / "a.safetensors"):
        save_file({path.parent.name: torch.zeros(1)}, path)
    (folder / "own" / "config.json").write_text("{}")
    (folder / "large" / "config.json").write_text("{}" + " " * 10)
    (folder / "pickled" / "model.bin").write_bytes(b"pickle")
    (folder / "old.ckpt").write_bytes(b"pickle")
    (folder / "spoilt.safetensors").write_bytes(b"rubbish")
    (folder / ".hidden.safetensors").write_bytes(b"")
    (folder / "notes.txt").write_text("")
    save_file({"far": torch.zeros(1)}, tmp_path / "far.safetensors")
    (folder / "out.safetensors").symlink_to(tmp_path / "far.safetensors")
    (folder / "near.safetensors").symlink_to(folder / "one.safetensors")
    return folder


def test_usable_entries_are_found_and_each_refusal_is_logged_once(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = make_kind()
    assert [(each.name, each.tensors) for each in kind.find_all(folder)] == [
        ("near", ["things"]),
        ("one", ["things"]),
        ("own", ["own"]),
    ]
    assert len(kind.find_all(folder)) == 3
    pickle = "exists only as a pickle, which can run code when it is opened: convert it to safetensors."
    assert caplog.messages == [
        "left out: This worker has no thing called empty.",
        "left out: The thing large has no config.json that can be read.",
        f"left out: The thing old {pickle}",
        "left out: The thing out is a link that leads out of the folder that it is in.",
        f"left out: The thing pickled {pickle}",
        "left out: The thing spoilt cannot be read as safetensors.",
    ]


def test_a_kind_of_one_form_looks_at_no_other(folder: Path) -> None:
    assert make_kind("folder").list_names(folder) == ["empty", "large", "own", "pickled"]
    assert make_kind("file").list_names(folder) == ["near", "old", "one", "out", "spoilt"]
    with pytest.raises(JobRejected, match="no thing called old"):
        make_kind("folder").find(folder, "old")
    with pytest.raises(JobRejected, match="no thing called own"):
        make_kind("file").find(folder, "own")


def test_another_revision_is_refused(folder: Path) -> None:
    assert make_kind().find(folder, "one", "one") == make_kind().find(folder, "one")
    with pytest.raises(JobRejected, match=r"^This worker has another version of the thing one\.$"):
        make_kind().find(folder, "one", "two")


@pytest.mark.parametrize("name", ["../one", "own/../one", ".hidden", "", "o" * 65, "one\n"])
def test_a_name_leads_nowhere_else(folder: Path, name: str) -> None:
    with pytest.raises(JobRejected, match="This worker has no thing called"):
        make_kind().find(folder, name)


def test_no_folder_holds_nothing(tmp_path: Path) -> None:
    for folder in (None, tmp_path / "none"):
        assert make_kind().find_all(folder) == []
        with pytest.raises(JobRejected, match="no thing called one"):
            make_kind().find(folder, "one")
