"""What of a repository is downloaded for a model or a part, and under which paths it is kept here."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, NamedTuple, cast

from engine.hub.catalogue import GGUF_SUFFIX, PICKLE_SUFFIXES, SAFETENSORS_SUFFIX, TITLES, WEIGHT_SUFFIXES, PartKind
from engine.hub.download import fetch_small_file
from engine.hub.repository import HubError, Repository, RepositoryFile

CONFIG_FILE = "config.json"
ENCODER_FOLDER = "image_encoder"
NETWORK_FOLDERS = ("transformer", "unet")  # of pipelines
# of the weights of diffusers and transformers
NETWORK_STEM = "diffusion_pytorch_model"
ENCODER_STEM = "model"
MAX_LISTED = 3  # files that a refusal names


class WantedPart(NamedTuple):
    """What is wanted of a repository. `path`: a file or folder in it; empty: the whole.

    `kind` is None where the repository decides; `encoder`: the folder of an IP-Adapter's image encoder.
    """

    kind: PartKind | None = None
    path: str = ""
    encoder: str = ""


class Selection(NamedTuple):
    """The files, and the suffix of a single one; empty: they make a folder."""

    kind: PartKind
    files: tuple[RepositoryFile, ...]
    suffix: str = ""


def select_part(repository: Repository, wanted: WantedPart, name: str) -> Selection:
    """Choose the files for what will be called `name` here. May ask the hub for a configuration. Raises `HubError`."""
    kind = wanted.kind or _find_kind(repository, wanted.path)
    if _is_file_path(wanted.path):
        file = _find_file(repository, wanted.path, kind)
        return _select_file(repository, file, kind, wanted, name)
    if kind == "model":
        return Selection(kind, tuple(_select_pipeline(repository, wanted.path)))
    if kind in ("controlnet", "vae"):
        return Selection(kind, tuple(_select_folder(repository, wanted.path, NETWORK_STEM)))
    return _select_file(repository, _find_only_file(repository, wanted.path, kind), kind, wanted, name)


def select_rest(repository: Repository) -> Selection:
    """Choose a pipeline's files without the weights of its network. Raises `HubError`."""
    files = _select_pipeline(repository, "")
    rest = [
        file
        for file in files
        if PurePosixPath(file.path).parent.name not in NETWORK_FOLDERS or file.path.endswith(f"/{CONFIG_FILE}")
    ]
    return Selection("model", tuple(rest))


def _find_kind(repository: Repository, path: str) -> PartKind:
    """Return what a repository or a folder of it is, by its configuration."""
    if _is_file_path(path) or (not path and _get_file(repository, INDEX_FILE)):
        return "model"
    file = _get_file(repository, _join(path, CONFIG_FILE))
    config = _read_config(repository, file) if file else {}
    class_name = str(config.get("_class_name", ""))[:80]
    if "ControlNet" in class_name or class_name == "T2IAdapter":
        return "controlnet"
    if class_name.startswith("Autoencoder"):
        return "vae"
    where = f"{path} of {repository.hub_id}" if path else repository.hub_id
    raise HubError(
        f"{where} is no pipeline, ControlNet or autoencoder in the folders of diffusers: name one of its files as "
        f"{repository.hub_id}:FILE, and say what it is with --as."
    )


def _read_config(repository: Repository, file: RepositoryFile) -> dict[str, Any]:
    try:
        config: object = json.loads(fetch_small_file(repository, file, MAX_INDEX_BYTES))
    except (ValueError, RecursionError) as error:
        raise HubError(f"{file.path} of {repository.hub_id} cannot be read.") from error
    return cast(dict[str, Any], config) if isinstance(config, dict) else {}


def _select_pipeline(repository: Repository, path: str) -> Sequence[RepositoryFile]:
    index = None if path else _get_file(repository, INDEX_FILE)
    if index is None:
        raise HubError(f"{repository.hub_id} has no {INDEX_FILE}: it is no model in the folders of diffusers.")
    parts = read_parts(fetch_small_file(repository, index, MAX_INDEX_BYTES), repository.hub_id)
    return select_files(repository.files, parts, repository.hub_id)


def _select_folder(repository: Repository, path: str, stem: str, target: str = "") -> list[RepositoryFile]:
    files = _list_folder(repository, path)
    weights = choose_weights([name for name in files if name.startswith(stem) and name.endswith(SAFETENSORS_SUFFIX)])
    where = f"The folder {path} of {repository.hub_id}" if path else repository.hub_id
    if not weights and any(
        name.startswith((stem, "pytorch_model")) and name.endswith(PICKLE_SUFFIXES) for name in files
    ):
        raise HubError(f"{where} has its weights only as a pickle, which can run code: choose another.")
    if not weights or CONFIG_FILE not in files:
        raise HubError(f"{where} lacks {CONFIG_FILE}, or weights called {stem}{SAFETENSORS_SUFFIX}.")
    index = f"{stem}{SAFETENSORS_SUFFIX}.index.json"
    names = [CONFIG_FILE, *([index] if len(weights) > 1 and index in files else []), *weights]
    return [_rename(files[name], _join(target, name)) for name in names]


def _select_file(
    repository: Repository, file: RepositoryFile, kind: PartKind, wanted: WantedPart, name: str
) -> Selection:
    """Return a single file under its name here; an IP-Adapter is a folder with its image encoder."""
    path = PurePosixPath(file.path)
    if kind != "ip-adapter":
        return Selection(kind, (_rename(file, f"{name}{path.suffix}"),), path.suffix)
    encoder = wanted.encoder or _join(str(path.parent) if path.parent.name else "", ENCODER_FOLDER)
    if not any(each.path.startswith(f"{encoder}/") for each in repository.files):
        raise HubError(
            f"{repository.hub_id} has no folder {encoder[:100]}, and an IP-Adapter needs its image encoder: name the "
            "folder of it with --image-encoder."
        )
    encoder_files = _select_folder(repository, encoder, ENCODER_STEM, ENCODER_FOLDER)
    return Selection(kind, (_rename(file, path.name), *encoder_files))


def _find_file(repository: Repository, path: str, kind: PartKind) -> RepositoryFile:
    if path.endswith(PICKLE_SUFFIXES):
        raise HubError(f"{path[:100]} is a pickle, which can run code when it is opened: choose a file in safetensors.")
    file = _get_file(repository, path)
    if file is None:
        raise HubError(f"{repository.hub_id} has no file {path[:100]}.{_list_files(repository)}")
    if path.endswith(GGUF_SUFFIX) and kind != "model":
        raise HubError(f"A GGUF file is a model's network, no {TITLES[kind]}.")
    return file


def _find_only_file(repository: Repository, path: str, kind: PartKind) -> RepositoryFile:
    """Return the one file in safetensors of a folder: which one it would be is not guessed."""
    files = [file for name, file in _list_folder(repository, path).items() if name.endswith(SAFETENSORS_SUFFIX)]
    if len(files) != 1:
        raise HubError(f"Name the file of the {TITLES[kind]} as {repository.hub_id}:FILE.{_list_files(repository)}")
    return files[0]


def _list_folder(repository: Repository, path: str) -> dict[str, RepositoryFile]:
    prefix = _join(path, "")
    files = {file.path.removeprefix(prefix): file for file in repository.files if file.path.startswith(prefix)}
    return {name: file for name, file in files.items() if "/" not in name}


def _list_files(repository: Repository) -> str:
    names = [file.path for file in repository.files if file.path.endswith(WEIGHT_SUFFIXES)]
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return f" It has {', '.join(names[:MAX_LISTED])}{more}." if names else ""


def _is_file_path(path: str) -> bool:
    return path.endswith((*WEIGHT_SUFFIXES, *PICKLE_SUFFIXES))


def _get_file(repository: Repository, path: str) -> RepositoryFile | None:
    return next((file for file in repository.files if file.path == path), None)


def _rename(file: RepositoryFile, target: str) -> RepositoryFile:
    return replace(file, target="" if target == file.path else target)


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


INDEX_FILE = "model_index.json"
MAX_INDEX_BYTES = 2**20
VARIANTS = ("fp16", "bf16", "")  # of weights, the best first
CONFIG_NAME = re.compile(r"[\w.-]+\.(json|txt|model|jinja)")
WEIGHT_NAME = re.compile(
    r"(?P<stem>[A-Za-z0-9_]+)(?:\.(?P<variant>[A-Za-z0-9_]+?))?(?P<shard>-\d{5}-of-\d{5})?\.safetensors"
)
WEIGHT_INDEX_NAME = re.compile(r"[\w-]+\.safetensors\.index(?:\.(?P<variant>\w+))?\.json")
OTHER_INDEX_NAME = re.compile(r"[\w-]+\.(bin|msgpack|h5|onnx)\.index(\.\w+)?\.json")  # of weights that are not taken
LIBRARIES = ("diffusers", "transformers")
UNUSED_PARTS = ("feature_extractor", "image_encoder", "safety_checker")
_PART_NAME = re.compile(r"[A-Za-z0-9_]+")


def read_parts(index_json: bytes, hub_id: str) -> list[str]:
    """Return the folders of a model's parts, from its `model_index.json`. Raises `HubError` where it cannot be used."""
    try:
        index: Any = json.loads(index_json)
    except (ValueError, RecursionError) as error:
        raise HubError(f"The index of {hub_id} cannot be read: it is no model of diffusers.") from error
    entries = cast(dict[str, Any], index) if isinstance(index, dict) else {}
    if not isinstance(entries.get("_class_name"), str):
        raise HubError(f"{hub_id} brings its own code or names no pipeline, so it is not taken.")
    parts: list[str] = []
    for part, value in entries.items():
        entry = cast(list[object], value) if isinstance(value, list) else []
        if part in UNUSED_PARTS or len(entry) != 2 or entry == [None, None]:
            continue
        if entry[0] not in LIBRARIES or not _PART_NAME.fullmatch(part):
            raise HubError(f"The {part[:40]} of {hub_id} is no part of diffusers or transformers, so it is not taken.")
        parts.append(part)
    return parts


def select_files(files: Iterable[RepositoryFile], parts: Iterable[str], hub_id: str) -> list[RepositoryFile]:
    """Return the files to download. Raises `HubError` where the weights of a part are no safetensors."""
    by_folder: dict[str, dict[str, RepositoryFile]] = {}
    for file in files:
        folder, _, name = file.path.rpartition("/")
        by_folder.setdefault(folder, {})[name] = file
    selected = [by_folder[""][INDEX_FILE]]
    for part in parts:
        if part not in by_folder:
            raise HubError(f"{hub_id} lacks the folder {part} that its index names.")
        selected += _select_part(by_folder[part], part, hub_id)
    return selected


def _select_part(files: Mapping[str, RepositoryFile], part: str, hub_id: str) -> list[RepositoryFile]:
    weights = choose_weights([name for name in files if name.endswith(".safetensors")])
    if not weights and any(name.endswith(PICKLE_SUFFIXES) for name in files):
        raise HubError(
            f"The weights of the {part} of {hub_id} are only there as a pickle, which can run code: choose another."
        )
    variant = _find_variant(weights[0]) if weights else ""
    has_shards = any("-of-" in name for name in weights)
    configs = [name for name in files if _is_wanted_config(name, variant, has_shards)]
    return [files[name] for name in sorted([*configs, *weights])]


def _is_wanted_config(name: str, variant: str, has_shards: bool) -> bool:
    """Whether it is a configuration or tokenizer; of lists of shards only the one of these weights."""
    if index := WEIGHT_INDEX_NAME.fullmatch(name):
        return has_shards and (index["variant"] or "") == variant
    return bool(CONFIG_NAME.fullmatch(name)) and not OTHER_INDEX_NAME.fullmatch(name)


def choose_weights(names: Iterable[str]) -> list[str]:
    """Return one set of weights: the best variant; whole rather than split into shards."""
    groups: dict[tuple[str, bool, str], list[str]] = {}
    for name in names:
        if match := WEIGHT_NAME.fullmatch(name):
            groups.setdefault((match["variant"] or "", bool(match["shard"]), match["stem"]), []).append(name)
    usable = [key for key in groups if key[0] in VARIANTS]
    return groups[min(usable, key=lambda key: (VARIANTS.index(key[0]), *key[1:]))] if usable else []


def _find_variant(name: str) -> str:
    match = WEIGHT_NAME.fullmatch(name)
    return (match["variant"] or "") if match else ""
