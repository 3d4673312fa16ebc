"""`darkroom models` with parts and single files: added under the right paths, listed, verified, removed, refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from bot.__main__ import app
from bot.domain.errors import UserError
from engine.hub.catalogue import PartEntry, read_part_catalogue
from shared.hub_models import FILES, WEIGHTS
from tools.model_hub.repositories import make_repository, read_folder
from tools.model_hub.server import ModelHub

Run = Callable[..., str]
WEIGHTS_NAME = "diffusion_pytorch_model"
CONTROLNET = {
    "config.json": b'{"_class_name": "ControlNetModel"}',
    f"{WEIGHTS_NAME}.safetensors": WEIGHTS,
    f"{WEIGHTS_NAME}.fp16.safetensors": WEIGHTS[:9000],
    f"{WEIGHTS_NAME}.bin": b"pickle",
    "README.md": b"# card",
    "images/out.png": b"png",
}
AUTOENCODER = {
    "config.json": b'{"_class_name": "AutoencoderKL"}',
    f"{WEIGHTS_NAME}.safetensors": WEIGHTS[:8000],
    "another.safetensors": WEIGHTS[:70],
}
ENCODER = {"config.json": b"{}", "model.safetensors": WEIGHTS[:3000], "pytorch_model.bin": b"pickle"}
ADAPTERS = {
    **{f"models/image_encoder/{path}": content for path, content in ENCODER.items()},
    "models/plain.safetensors": WEIGHTS[:400],
    "models/plain.bin": b"pickle",
    "xl/plus.safetensors": WEIGHTS[:500],
}
SINGLE = {"flux-Q4.gguf": b"GGUF" + WEIGHTS[:99], "files/old.safetensors": WEIGHTS[:600], "old.ckpt": b"pickle"}


@pytest.fixture(scope="module")
def shared_hub() -> Iterator[ModelHub]:
    contents = {"o/canny": CONTROLNET, "o/vae": AUTOENCODER, "o/adapters": ADAPTERS, "o/single": SINGLE}
    with ModelHub({name: make_repository(files) for name, files in contents.items()}).open() as hub:
        hub.repositories["o/pipeline"] = make_repository(
            FILES | {f"vae/{path}": AUTOENCODER[path] for path in AUTOENCODER}
        )
        yield hub


@pytest.fixture
def hub(shared_hub: ModelHub, monkeypatch: pytest.MonkeyPatch) -> ModelHub:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", shared_hub.url)
    return shared_hub


@pytest.fixture
def run(hub: ModelHub, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on the test's data folder; return what it printed."""

    def run_command(*args: str) -> str:
        app(["models", *args, *([] if args[0] == "search" else ["--data", str(tmp_path)])], standalone_mode=False)
        captured = capsys.readouterr()
        return captured.out or captured.err

    return run_command


@pytest.mark.sampled
@pytest.mark.parametrize(
    ("arguments", "kind", "key", "files"),
    [
        (
            ("o/canny",),
            "controlnet",
            "controlnets/canny",
            {"config.json": CONTROLNET["config.json"], f"{WEIGHTS_NAME}.fp16.safetensors": WEIGHTS[:9000]},
        ),
        (
            ("o/vae", "--name", "soft"),
            "vae",
            "vaes/soft",
            {path: AUTOENCODER[path] for path in ("config.json", f"{WEIGHTS_NAME}.safetensors")},
        ),
        (
            ("o/pipeline:vae", "--name", "own"),
            "vae",
            "vaes/own",
            {path: AUTOENCODER[path] for path in ("config.json", f"{WEIGHTS_NAME}.safetensors")},
        ),
        (
            ("o/adapters:models/plain.safetensors", "--as", "ip-adapter"),
            "ip-adapter",
            "ip-adapters/plain",
            {
                "plain.safetensors": WEIGHTS[:400],
                "image_encoder/config.json": b"{}",
                "image_encoder/model.safetensors": WEIGHTS[:3000],
            },
        ),
        (
            ("o/adapters:xl/plus.safetensors", "--as", "ip-adapter", "--image-encoder", "models/image_encoder"),
            "ip-adapter",
            "ip-adapters/plus",
            {
                "plus.safetensors": WEIGHTS[:500],
                "image_encoder/config.json": b"{}",
                "image_encoder/model.safetensors": WEIGHTS[:3000],
            },
        ),
        (("o/single:flux-Q4.gguf", "--name", "flux"), "model", "flux.gguf", {"": SINGLE["flux-Q4.gguf"]}),
        (("o/single:files/old.safetensors",), "model", "old.safetensors", {"": WEIGHTS[:600]}),
        (
            ("o/single:files/old.safetensors", "--as", "controlnet", "--name", "edges"),
            "controlnet",
            "controlnets/edges.safetensors",
            {"": WEIGHTS[:600]},
        ),
        (("o/single:files/old.safetensors", "--as", "lora"), "lora", "loras/old.safetensors", {"": WEIGHTS[:600]}),
    ],
)
def test_a_part_is_added_listed_verified_repaired_and_removed(
    hub: ModelHub, run: Run, tmp_path: Path, arguments: tuple[str, ...], kind: str, key: str, files: dict[str, bytes]
) -> None:
    added = json.loads(run("add", *arguments, "--json"))
    path = Path(added["folder"])
    assert (added["kind"], path) == (kind, tmp_path / (f"models/{key}" if kind == "model" else key))
    assert (added["revision"], added["licence"]) == (hub.repositories[added["hub_id"]].main, "apache-2.0")
    found = {"": path.read_bytes()} if path.is_file() else read_folder(path)
    found.pop("manifest.json", None)
    assert found == files
    name = added["name"]
    row = next(row for row in json.loads(run("list", "--json")) if row["name"] in (key, name))
    assert (row["kind"], row["size"], row["licence"]) == (kind, sum(map(len, files.values())), "apache-2.0")
    assert json.loads(run("verify", name, "--json")) == {key: []}
    damaged = path / max(files)
    damaged.write_bytes(b"x" * len(files[max(files)]))
    assert list(json.loads(run("verify", "--json"))) == [key]
    assert json.loads(run("verify", key, "--repair", "--json")) == {key: []}
    assert damaged.read_bytes() == files[max(files)]
    assert f"{key} is deleted" in run("remove", name, "--yes")
    assert not path.exists()
    assert list(path.parent.glob("*")) == [path.parent / ".partial"]
    assert len(json.loads(run("list", "--json"))) == 1


def test_a_single_model_is_offered_with_its_settings_and_beside_its_rest(run: Run, tmp_path: Path) -> None:
    from engine.hub.added_models import list_offered

    (tmp_path / "models" / "flux").mkdir(parents=True)  # the rest of its pipeline, which the operator put there
    run("add", "o/single:flux-Q4.gguf", "--name", "flux", "--quantize", "none", "--json")
    run("default", "flux")
    assert list_offered(tmp_path) == ["flux", "embedded"]
    flux = next(row for row in json.loads(run("list", "--json")) if row["name"] == "flux")
    assert (flux["is_default"], flux["quantize"]) == (True, "none")
    run("remove", "flux.gguf", "--yes")
    assert list_offered(tmp_path) == ["embedded"]
    assert (tmp_path / "models" / "flux").is_dir()


def test_the_rest_of_a_networks_pipeline_is_fetched_without_its_weights(run: Run, tmp_path: Path) -> None:
    file = ("o/single:flux-Q4.gguf", "--name", "flux", "--pipeline", "o/pipeline")
    added = json.loads(run("add", *file, "--json"))
    folder = tmp_path / "models" / "flux"
    rest = read_folder(folder)
    assert added["folder"] == str(folder.with_suffix(".gguf"))
    assert rest.pop("manifest.json")
    assert rest == {path: content for path, content in FILES.items() if content != WEIGHTS}
    assert json.loads(run("verify", "--json")) == {"flux": [], "flux.gguf": []}
    assert "flux.gguf is here already" in run("add", *file)
    _, flux = json.loads(run("list", "--json"))
    assert (flux["name"], flux["size"]) == ("flux", len(SINGLE["flux-Q4.gguf"]) + sum(map(len, rest.values())))
    assert "flux.gguf: 1 file as the hub has it." in run("verify", "flux.gguf", "--repair")
    assert "flux and flux.gguf are deleted" in run("remove", "flux", "--yes")
    assert not folder.exists()
    with pytest.raises(UserError, match="--pipeline is for a file that is only a network"):
        run("add", "o/vae", "--pipeline", "o/pipeline")
    with pytest.raises(UserError, match="--pipeline is owner/name of a whole pipeline, not 'o/pipeline:vae'"):
        run("add", "o/single:flux-Q4.gguf", "--pipeline", "o/pipeline:vae")


def test_all_is_asked_before_the_rest_of_a_pipeline_is_fetched(hub: ModelHub, run: Run, tmp_path: Path) -> None:
    hub.repositories["o/strict"] = make_repository(SINGLE, card={"license": "openrail"})
    file = ("o/strict:flux-Q4.gguf", "--name", "flux", "--pipeline", "o/pipeline")
    with pytest.raises(UserError, match=r"Read its licence \(openrail, .*--accept-licence"):
        run("add", *file)
    assert not list(tmp_path.rglob("*.json")), "gigabytes of the rest came before"

    def measure_disk(path: Path) -> SimpleNamespace:
        return SimpleNamespace(free=512 * 2**20)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("engine.hub.download.shutil.disk_usage", measure_disk)
        with pytest.raises(UserError, match=r"are needed and 0\.5 GB are free"):
            run("add", *file, "--accept-licence")
    assert not list(tmp_path.rglob("*.json"))
    assert json.loads(run("add", *file, "--accept-licence", "--json"))["licence"] == "openrail"
    assert (tmp_path / "models" / "flux" / "model_index.json").is_file()


def test_another_file_of_the_same_repository_takes_the_place_of_the_first(run: Run, tmp_path: Path) -> None:
    run("add", "o/adapters:models/plain.safetensors", "--as", "lora", "--name", "one", "--json")
    run("add", "o/adapters:xl/plus.safetensors", "--as", "lora", "--name", "one", "--json")
    assert (tmp_path / "loras" / "one.safetensors").read_bytes() == WEIGHTS[:500]
    assert json.loads(run("verify", "--json")) == {"loras/one.safetensors": []}


def test_an_interrupted_single_file_goes_on(hub: ModelHub, run: Run, tmp_path: Path) -> None:
    partial = tmp_path / "vaes" / ".partial" / "old.safetensors"
    partial.mkdir(parents=True)
    (partial / "old.safetensors.part").write_bytes(WEIGHTS[:200])
    assert "vaes/old.safetensors" in run("list")
    hub.requests.clear()
    run("add", "o/single:files/old.safetensors", "--as", "vae", "--json")
    assert any(request.endswith("bytes=200-") for request in hub.requests)
    assert (tmp_path / "vaes" / "old.safetensors").read_bytes() == WEIGHTS[:600]


def test_parts_of_one_name_are_told_apart(run: Run) -> None:
    for kind in ("lora", "embedding"):
        run("add", "o/single:files/old.safetensors", "--as", kind, "--json")
    with pytest.raises(UserError, match=r"Which one: loras/old\.safetensors or embeddings/old\.safetensors\?"):
        run("verify", "old")
    assert json.loads(run("verify", "loras/old", "--json")) == {"loras/old.safetensors": []}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("o/single:old.ckpt",), "is a pickle, which can run code when it is opened"),
        (("o/single:new.gguf",), r"o/single has no file new\.gguf\. It has .*flux-Q4\.gguf"),
        (("o/single:flux-Q4.gguf", "--as", "vae"), "A GGUF file is a model's network, no autoencoder"),
        (("o/single",), r"is no pipeline, ControlNet or autoencoder .*o/single:FILE.*--as"),
        (("o/single:files",), r"files of o/single is no pipeline"),
        (("o/single", "--as", "vae"), "lacks config.json, or weights called"),
        (("o/adapters", "--as", "ip-adapter"), "Name the file of the reference adapter as o/adapters:FILE"),
        (("o/adapters:xl/plus.safetensors", "--as", "ip-adapter"), "has no folder xl/image_encoder.*--image-encoder"),
        (("o/vae", "--as", "picture"), "--as: model, controlnet, ip-adapter, vae, lora or embedding is needed"),
        (("o/vae", "--quantize", "int8"), "--quantize is for models: vaes/vae is an autoencoder"),
        (("sdxl", "--as", "vae"), "sdxl of the catalogue is no autoencoder"),
    ],
)
def test_mistakes_are_refused_in_one_sentence(
    run: Run, tmp_path: Path, arguments: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(UserError, match=sentence):
        run("add", *arguments)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_operators_own_files_are_not_replaced_or_deleted(run: Run, tmp_path: Path) -> None:
    (tmp_path / "vaes").mkdir()
    (tmp_path / "vaes" / "vae.safetensors").write_bytes(b"own")
    with pytest.raises(UserError, match="has another autoencoder called vae: choose a name with --name"):
        run("add", "o/vae")
    with pytest.raises(UserError, match="No model called vae was added here"):
        run("remove", "vae", "--yes")
    assert (tmp_path / "vaes" / "vae.safetensors").read_bytes() == b"own"
    run("add", "o/single:files/old.safetensors", "--as", "vae", "--json")
    with pytest.raises(UserError, match="has another autoencoder called old"):  # a worker would only see the file
        run("add", "o/vae", "--name", "old")


@pytest.mark.sampled
@pytest.mark.parametrize("entry", read_part_catalogue(), ids=[entry.name for entry in read_part_catalogue()])
def test_a_well_known_part_is_added_by_its_name(hub: ModelHub, run: Run, entry: PartEntry) -> None:
    files = {"controlnet": CONTROLNET, "vae": AUTOENCODER}.get(entry.kind) or {
        entry.path: WEIGHTS[:50],
        **{f"{entry.encoder or 'models/image_encoder'}/{path}": content for path, content in ENCODER.items()},
    }
    repository = make_repository(files)
    repository.revisions = {entry.revision: repository.revisions[repository.main]}
    hub.repositories[entry.hub_id] = repository
    if entry.asks:
        with pytest.raises(UserError, match=r"Read its licence .*--accept-licence"):
            run("add", entry.name)
    added = json.loads(run("add", entry.name, "--accept-licence", "--json"))
    assert (added["kind"], added["revision"], added["licence"]) == (entry.kind, entry.revision, entry.licence)
    assert entry.asks == bool(entry.restrictions) == (entry.licence not in ("Apache 2.0", "MIT"))
    assert entry.name in run("search", entry.name)
