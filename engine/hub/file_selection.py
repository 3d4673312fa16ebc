"""Which files of a model are downloaded: weights in safetensors, configurations, tokenizers; no pickle, no code. Pure.

Of a part with variants, the one in half precision is taken: half the download, and in memory the numbers have half
precision anyway. Nothing at the top of the repository is taken but its index: authors keep single-file copies there.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, cast

from engine.hub.errors import HubError
from engine.hub.part_kinds import PICKLE_SUFFIXES
from engine.hub.repository import RepositoryFile

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
