"""`darkroom models` as the operator types it, with the real client and a hub on this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bot.__main__ import app
from bot.domain.errors import UserError
from engine.hub.catalogue import find_entry
from engine.process.model_settings import read_model_settings
from shared.hub_models import FILES, WEIGHTS, make_model
from tools.model_hub.repositories import make_repository
from tools.model_hub.server import ModelHub

Run = Callable[..., str]
ROOT = Path(__file__).parents[4]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelHub]:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with ModelHub({"small": make_model()}).open() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on the test's data folder; return what it printed."""

    def run_command(*args: str) -> str:
        app(["models", *args, *([] if args[0] == "search" else ["--data", str(tmp_path)])], standalone_mode=False)
        return capsys.readouterr().out

    return run_command


def test_a_model_is_added_listed_verified_and_removed(hub: ModelHub, run: Run, tmp_path: Path) -> None:
    added = json.loads(run("add", "small", "--quantize", "fp8", "--json"))
    assert (added["name"], added["hub_id"], added["quantize"]) == ("small", "small", "float8")
    assert added["bytes"] == sum(map(len, FILES.values()))
    assert json.loads((tmp_path / "hub-revisions.json").read_text()) == {"small": hub.repositories["small"].main}
    embedded, small = json.loads(run("list", "--json"))
    assert (embedded["name"], embedded["is_default"]) == ("embedded", True)
    assert (small["name"], small["licence"], small["size"]) == ("small", "apache-2.0", added["bytes"])
    assert "small" in run("list")
    assert json.loads(run("verify", "--json")) == {"small": []}
    assert "small is deleted" in run("remove", "small", "--yes")
    assert [row["name"] for row in json.loads(run("list", "--json"))] == ["embedded"]
    assert read_model_settings(tmp_path).models == {}


def test_damaged_files_are_named_and_fetched_again(hub: ModelHub, run: Run, tmp_path: Path) -> None:
    run("add", "small", "--json")
    path = tmp_path / "models" / "small" / "unet" / "config.json"
    path.write_bytes(b"[]")
    assert json.loads(run("verify", "small", "--json")) == {"small": ["unet/config.json"]}
    hub.requests.clear()
    assert json.loads(run("verify", "small", "--repair", "--json")) == {"small": []}
    assert path.read_bytes() == b"{}"
    assert len([request for request in hub.requests if "/resolve/" in request]) == 1
    assert json.loads(run("verify", "--json")) == {"small": []}


def test_the_remembered_revision_is_taken_again(hub: ModelHub, run: Run) -> None:
    first = json.loads(run("add", "small", "--json"))["revision"]
    hub.repositories["small"].add_revision(FILES | {"unet/config.json": b'{"new": 1}'})
    run("remove", "small", "--yes")
    assert json.loads(run("add", "small", "--json"))["revision"] == first
    assert json.loads(run("add", "small", "--revision", "main", "--json"))["revision"] != first


def test_a_model_of_the_catalogue_gets_its_recommended_defaults(hub: ModelHub, run: Run, tmp_path: Path) -> None:
    entry = find_entry("sdxl")
    assert entry is not None
    hub.repositories[entry.hub_id] = repository = make_model(card={"license": "openrail++"})
    repository.revisions = {entry.revision: repository.revisions[repository.main]}
    with pytest.raises(UserError, match=r"Read its licence \(CreativeML Open RAIL\+\+-M, .*--accept-licence"):
        run("add", "sdxl")
    assert not (tmp_path / "models" / "sdxl").exists()
    added = json.loads(run("add", "sdxl", "--accept-licence", "--json"))
    assert added["revision"] == entry.revision
    assert (added["steps"], added["sampler"], added["guidance"]) == (entry.steps, entry.sampler, entry.guidance)


def test_defaults_are_chosen_shown_and_forgotten(hub: ModelHub, run: Run, tmp_path: Path) -> None:
    run("add", "small", "--json")
    assert "is the default model" in run("default", "small")
    assert run("default") == "The default model is small.\n"
    assert "12 steps of dpmpp_2m_karras, guidance 5.5" in run(
        "default", "small", "--steps", "12", "--sampler", "DPM++ 2M Karras", "--guidance", "5.5"
    )
    settings = read_model_settings(tmp_path).get("small")
    assert (settings.steps, settings.sampler, settings.guidance) == (12, "dpmpp_2m_karras", 5.5)
    rows = {row["name"]: row for row in json.loads(run("list", "--json"))}
    assert rows["small"]["is_default"]
    assert "its own defaults" in run("default", "small", "--reset")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (("add", "flux-schnel"), r"The hub has no model flux-schnel.* Did you mean flux-schnell"),
        (("add", "small", "--quantize", "int3"), "auto, none, int8, int4, fp8 or nf4 is needed"),
        (("add", "small", "--name", "../up"), "is no name for a model"),
        (("add", "small", "--name", "embedded"), "--model embedded has a meaning of its own"),
        (("add", "small", "--name", "added"), "--model added has a meaning of its own"),
        (("add", "small", "--revision", "gone"), "no revision gone of small"),
        (("add", "big/other"), "The hub has no model big/other"),
        (("verify", "smal"), "No model called smal was added here"),
        (("remove", "small"), "No model called small was added here"),
        (("default", "small", "--steps", "3"), "No model called small was added here"),
        (("default", "embedded", "--sampler", "best"), "There is no sampler 'best'"),
    ],
)
@pytest.mark.usefixtures("hub")
def test_mistakes_are_refused_in_one_sentence(run: Run, args: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        run(*args)


def test_a_model_of_another_origin_keeps_its_name(hub: ModelHub, run: Run, tmp_path: Path) -> None:
    (tmp_path / "models" / "small").mkdir(parents=True)
    with pytest.raises(UserError, match="has another model called small: choose a name with --name"):
        run("add", "small")
    assert json.loads(run("add", "small", "--name", "tiny", "--json"))["name"] == "tiny"
    hub.repositories["owner/tiny"] = make_model()
    with pytest.raises(UserError, match="tiny is small here"):
        run("add", "owner/tiny")


def test_a_licence_that_the_hub_does_not_name_asks(hub: ModelHub, run: Run) -> None:
    hub.repositories["small"].card = {}
    with pytest.raises(UserError, match="none is named"):
        run("add", "small")
    assert "small is here" not in run("add", "small", "--accept-licence", "--json")


def test_the_catalogue_is_found_and_the_hub_asked(hub: ModelHub, run: Run) -> None:
    found = json.loads(run("search", "SMA", "--json"))
    assert found == {"catalogue": [], "parts": [], "hub": ["small"], "note": ""}
    assert "flux-schnell" in run("search", "flux")
    hub.faults.status = 503
    assert "The hub answers 503" in run("search", "flux")
    assert run("search").count("\n") > 18


def test_a_killed_download_goes_on(hub: ModelHub, run: Run, tmp_path: Path) -> None:
    files = FILES | {"unet/diffusion_pytorch_model.fp16.safetensors": WEIGHTS * 100}
    hub.repositories["small"] = make_repository(files)
    hub.faults.bytes_a_second = 20_000_000
    command = [sys.executable, "-m", "bot", "models", "add", "small", "--data", str(tmp_path)]
    part = tmp_path / "models" / ".partial" / "small" / "unet" / "diffusion_pytorch_model.fp16.safetensors.part"
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 30
    while (not part.exists() or part.stat().st_size < 5_000_000) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = part.stat().st_size
    assert 5_000_000 <= kept < 20_000_000
    assert "download interrupted" in run("list")
    hub.faults.bytes_a_second = 0.0
    hub.requests.clear()
    added = json.loads(run("add", "small", "--json"))
    assert added["bytes"] == sum(map(len, files.values()))
    assert any(request.endswith(f"bytes={kept}-") for request in hub.requests)
    assert json.loads(run("verify", "--json")) == {"small": []}
