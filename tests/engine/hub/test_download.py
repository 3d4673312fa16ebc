"""Downloads with the real client, against a hub on this machine: resumed, checked, and each refusal one sentence."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine.hub import download as downloads
from engine.hub.added_models import (
    MANIFEST_FILE,
    ModelManifest,
    find_damaged,
    find_place,
    list_added,
    list_partial,
    read_manifest,
    remove_place,
    write_manifest,
)
from engine.hub.download import Download, check_disk_space, plan_download, run_download
from engine.hub.part_selection import WantedPart, select_part
from engine.hub.repository import HubError, Repository, RepositoryFile, explain_error, fetch_repository, search_hub
from shared.hub_models import FILES, WEIGHTS, make_model
from tools.model_hub.repositories import make_repository, read_folder
from tools.model_hub.server import TOKEN, ModelHub

WEIGHTS_PATH = "unet/diffusion_pytorch_model.fp16.safetensors"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    with ModelHub({"owner/small": make_model()}).open() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


def add(data: Path, hub_id: str = "owner/small", revision: str | None = None) -> list[tuple[str, int]]:
    """Download a model; return its progress."""
    progress: list[tuple[str, int]] = []
    plan = make_plan(data, hub_id, revision)
    check_disk_space(plan)
    run_download(plan, lambda stage, byte_count: progress.append((stage, byte_count)))
    return progress


def make_plan(data: Path, hub_id: str = "owner/small", revision: str | None = None) -> Download:
    repository = fetch_repository(hub_id, revision)
    selection = select_part(repository, WantedPart(), "small")
    return plan_download(repository, find_place(data, "small"), selection.files)


def remove_model(data: Path, name: str) -> int:
    return remove_place(find_place(data, name))


def _measure_full_disk(_: Path) -> SimpleNamespace:
    return SimpleNamespace(free=10**6)


def downloaded_bytes(progress: list[tuple[str, int]]) -> int:
    return sum(count for stage, count in progress if stage == "download")


def test_a_model_is_downloaded_checked_and_listed(hub: ModelHub, tmp_path: Path) -> None:
    progress = add(tmp_path)
    folder = tmp_path / "models" / "small"
    files = read_folder(folder)
    manifest = json.loads(files.pop("manifest.json"))
    assert files == FILES
    assert downloaded_bytes(progress) == sum(map(len, FILES.values()))
    assert (manifest["hub_id"], manifest["revision"]) == ("owner/small", hub.repositories["owner/small"].main)
    assert list(list_added(tmp_path)) == ["small"]
    assert list_partial(tmp_path) == []
    assert not any("safety_checker" in request or ".bin" in request for request in hub.requests)
    assert all("HEAD" not in request for request in hub.requests)


def test_a_download_goes_on_where_it_was_cut(hub: ModelHub, tmp_path: Path) -> None:
    files = FILES | {WEIGHTS_PATH: WEIGHTS * 60}  # more than a piece of the client, which has 10 MiB
    hub.repositories["owner/small"] = make_repository(files)
    hub.faults.cut_after = [11_500_000]
    assert downloaded_bytes(add(tmp_path)) == sum(map(len, files.values()))
    assert any(request.endswith(f"bytes={10 * 2**20}-") for request in hub.requests)
    assert (tmp_path / "models" / "small" / WEIGHTS_PATH).read_bytes() == files[WEIGHTS_PATH]


def test_a_part_file_of_an_earlier_process_is_completed(hub: ModelHub, tmp_path: Path) -> None:
    part = tmp_path / "models" / ".partial" / "small" / f"{WEIGHTS_PATH}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(WEIGHTS[:150_000])
    assert downloaded_bytes(add(tmp_path)) == sum(map(len, FILES.values())) - 150_000
    assert any(request.endswith("bytes=150000-") for request in hub.requests)
    assert hub.sent_bytes < 60_000


@pytest.mark.parametrize("content", [b"x" * 150_000, b"x" * 900_000])
def test_a_part_file_of_other_bytes_is_fetched_anew(hub: ModelHub, tmp_path: Path, content: bytes) -> None:
    part = tmp_path / "models" / ".partial" / "small" / f"{WEIGHTS_PATH}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)
    add(tmp_path)
    assert (tmp_path / "models" / "small" / WEIGHTS_PATH).read_bytes() == WEIGHTS


def test_a_wrong_checksum_is_tried_once_more_and_then_refused(hub: ModelHub, tmp_path: Path) -> None:
    hub.faults.corrupt = {WEIGHTS_PATH: 1}
    add(tmp_path)
    remove_model(tmp_path, "small")
    hub.faults.corrupt = {"tokenizer/vocab.json": 9}
    with pytest.raises(HubError, match=r"tokenizer/vocab\.json of owner/small does not have the hub's checksum"):
        add(tmp_path)
    assert list_added(tmp_path) == {}
    assert list_partial(tmp_path) == ["small"]


def test_a_file_larger_than_the_hub_says_is_refused_at_once(hub: ModelHub, tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    hub.faults.padding = b"x" * 30 * 2**20
    with pytest.raises(HubError, match="is larger than the hub says"):
        run_download(plan, lambda stage, byte_count: None)


def test_another_revision_takes_the_place_of_the_first(hub: ModelHub, tmp_path: Path) -> None:
    repository = hub.repositories["owner/small"]
    first = repository.main
    add(tmp_path)
    second = repository.add_revision(FILES | {"unet/config.json": b'{"new": 1}'})
    add(tmp_path)
    manifest = read_manifest(tmp_path / "models" / "small" / MANIFEST_FILE)
    assert manifest is not None
    assert manifest.revision == second
    add(tmp_path, revision=first)
    assert (tmp_path / "models" / "small" / "unet" / "config.json").read_bytes() == b"{}"


def test_damaged_and_missing_files_are_found(hub: ModelHub, tmp_path: Path) -> None:
    add(tmp_path)
    folder = tmp_path / "models" / "small"
    manifest = read_manifest(folder / MANIFEST_FILE)
    assert manifest is not None
    assert find_damaged(folder, manifest) == []
    (folder / WEIGHTS_PATH).write_bytes(WEIGHTS[:-1] + b"?")
    (folder / "unet" / "config.json").write_bytes(b"[]")
    (folder / "tokenizer" / "vocab.json").unlink()
    damaged = {file.path for file in find_damaged(folder, manifest)}
    assert damaged == {WEIGHTS_PATH, "unet/config.json", "tokenizer/vocab.json"}


@pytest.mark.parametrize(
    ("hub_id", "path"),
    [
        ("owner/small", "../../keep.txt"),
        ("owner/small", "/keep.txt"),
        ("owner/small", "unet/../../../keep.txt"),
        ("owner/small", "keep\0.txt"),
        ("owner/small", "."),
        ("../small", "unet/config.json"),
        ("owner/small/..", "unet/config.json"),
        ("http://owner", "unet/config.json"),
    ],
)
def test_a_manifest_of_files_elsewhere_counts_as_none(tmp_path: Path, hub_id: str, path: str) -> None:
    folder = tmp_path / "models" / "small"
    folder.mkdir(parents=True)
    good, crafted = (
        ModelManifest(each_id, "a" * 40, (RepositoryFile(each_path, 1),))
        for each_id, each_path in (("owner/small", "unet/config.json"), (hub_id, path))
    )
    write_manifest(folder / MANIFEST_FILE, good)
    assert read_manifest(folder / MANIFEST_FILE) == good
    write_manifest(folder / MANIFEST_FILE, crafted)
    assert read_manifest(folder / MANIFEST_FILE) is None
    assert list_added(tmp_path) == {}


@pytest.mark.parametrize("status", [401, 403])
def test_a_gated_model_needs_a_token(
    hub: ModelHub, tmp_path: Path, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["owner/small"] = make_model(gate=status)
    with pytest.raises(HubError, match=r"accept them at http://127.*/owner/small, then set HF_TOKEN"):
        add(tmp_path)
    monkeypatch.setenv("HF_TOKEN", TOKEN.removeprefix("Bearer "))
    add(tmp_path)
    assert list(list_added(tmp_path)) == ["small"]


def test_what_the_hub_does_not_have_is_one_sentence(hub: ModelHub, tmp_path: Path) -> None:
    for hub_id, revision, sentence in (
        ("owner/nothing", None, "The hub has no model owner/nothing, or it is private"),
        ("owner/small", "b" * 40, r"no revision b+ of owner/small any more: `--revision main`"),
        ("owner/too/many", None, "is no name on the hub"),
    ):
        with pytest.raises(HubError, match=sentence):
            add(tmp_path, hub_id, revision)
    hub.faults.status = 503
    with pytest.raises(HubError, match="The hub answers 503"):
        fetch_repository("owner/small")


def test_a_hub_that_is_away_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    for ask in (lambda: fetch_repository("owner/small"), lambda: search_hub("small")):
        with pytest.raises(HubError, match=r"The hub at http://127\.0\.0\.1:9 cannot be reached"):
            ask()


def test_an_offline_client_says_which_variable_to_unset() -> None:
    from huggingface_hub.errors import OfflineModeIsEnabled

    assert "HF_HUB_OFFLINE" in explain_error(OfflineModeIsEnabled(), "o/n", None).sentence


def test_the_disk_is_asked_first_and_may_fill_up_later(
    hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = make_plan(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(downloads.shutil, "disk_usage", _measure_full_disk)
        with pytest.raises(HubError, match=r"0\.0 GB are needed and 0\.0 GB are free in"):
            check_disk_space(plan)

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(downloads, "_fill_part", fail)
    with pytest.raises(HubError, match="is full: free some space and run the same command again"):
        run_download(plan, lambda stage, byte_count: None)


def test_two_processes_do_not_add_one_model_at_once(hub: ModelHub, tmp_path: Path) -> None:
    plan = make_plan(tmp_path)
    with downloads.lock_folder(plan.folder, "small"), pytest.raises(HubError, match="Another process adds small"):
        run_download(plan, lambda stage, byte_count: None)


def test_paths_that_lead_out_of_the_folder_are_left_out(hub: ModelHub) -> None:
    for path in ("../evil.json", "/etc/evil.json", "unet/../../evil.json", ".git/config", "a\\b.json"):
        hub.repositories["owner/small"].revisions[hub.repositories["owner/small"].main][path] = b"x"
    paths = {file.path for file in fetch_repository("owner/small").files}
    assert not any("evil" in path or ".git" in path or "\\" in path for path in paths)
    assert "model_index.json" in paths


def test_the_hub_is_searched_by_name(hub: ModelHub) -> None:
    assert search_hub("SMALL") == ["owner/small"]
    assert search_hub("large") == []


def test_a_model_of_the_operator_is_not_deleted(tmp_path: Path) -> None:
    (tmp_path / "models" / "mine").mkdir(parents=True)
    with pytest.raises(HubError, match="was not added"):
        remove_model(tmp_path, "mine")
    with pytest.raises(HubError, match="is no name of a model"):
        remove_model(tmp_path, "../..")


def test_weights_without_a_checksum_are_not_fetched(tmp_path: Path) -> None:
    files = (RepositoryFile("config.json", 3), RepositoryFile("unet/model.safetensors", 3))
    repository = Repository("owner/small", "a" * 40, files)
    place = find_place(tmp_path, "small")
    with pytest.raises(HubError, match=r"The hub has no checksum of unet/model\.safetensors of owner/small"):
        plan_download(repository, place, files)
    assert plan_download(repository, place, files[:1]).size == 3


def test_a_file_without_a_checksum_is_checked_by_its_size(tmp_path: Path) -> None:
    from engine.hub.repository import is_intact

    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert is_intact(path, RepositoryFile("a", 3))
    assert not is_intact(path, RepositoryFile("a", 4))
