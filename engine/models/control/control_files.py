"""Control networks in a folder: `NAME/` as diffusers saves it, or `NAME.safetensors` with a ControlNet."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from engine.contract import Preprocessor
from engine.models.files.added_kind import AddedEntry, AddedKind, cache_while_unchanged
from engine.models.files.fingerprint import combine_fingerprints, fingerprint_file
from engine.models.files.pipeline_parts import find_weight_files

MAX_CONFIG_BYTES = 64 * 1024
# What names of published control networks say about the control image that they were trained with.
_PREPROCESSORS_BY_WORD: tuple[tuple[str, Preprocessor], ...] = (
    ("canny", "canny"),
    ("depth", "depth"),
    ("midas", "depth"),
    ("pose", "pose"),
    ("lineart", "lineart"),
)


class ControlFile(NamedTuple):
    """A control network's files. `revision` changes with them; `config_json` is empty for a single file."""

    name: str
    weights: tuple[Path, ...]
    config_json: str
    revision: str

    @property
    def config(self) -> Mapping[str, Any]:
        return json.loads(self.config_json) if self.config_json else {}

    @property
    def class_name(self) -> str:
        """The network's class in diffusers; a single file is a ControlNet."""
        return str(self.config.get("_class_name", "ControlNetModel"))

    @property
    def row_share(self) -> float | None:
        """Which share of a row's time it adds: none for an adapter, which runs once for a picture; None: unknown."""
        return 0.0 if self.class_name == "T2IAdapter" else None

    @property
    def usual_preprocessor(self) -> Preprocessor:
        """What makes its control images, as far as its name says so."""
        name = self.name.lower()
        usual: list[Preprocessor] = [preprocessor for word, preprocessor in _PREPROCESSORS_BY_WORD if word in name]
        return usual[0] if usual else "none"


def _read_control(entry: AddedEntry) -> ControlFile:
    config_json = _read_config(entry) if entry.is_folder else ""
    entry.list_weights()  # refuses a folder of pickles
    weights = find_weight_files(entry.path)[0] if entry.is_folder else [entry.path]
    entry.check_links(weights)
    revision = combine_fingerprints(config_json, *(_fingerprint_weights(path) for path in weights))
    return ControlFile(entry.name, tuple(weights), config_json, revision)


def _read_config(entry: AddedEntry) -> str:
    """Return the configuration as text."""
    try:
        text = entry.read_config(MAX_CONFIG_BYTES).decode()
        config: object = json.loads(text)
        is_usable = isinstance(config, dict) and isinstance(cast(dict[str, object], config).get("_class_name"), str)
    except (ValueError, RecursionError):
        is_usable = False
        text = ""
    if not is_usable:
        raise entry.reject_config()
    return text


_fingerprint_weights = cache_while_unchanged(fingerprint_file)
CONTROL_KIND = AddedKind("control network", _read_control)
