"""Control networks in a folder: `NAME/` as diffusers saves it, or `NAME.safetensors` with a ControlNet.

Only safetensors are accepted: a pickle can run code when it is opened. No name and no link leads out of the folder.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

from engine.contract import Preprocessor
from engine.contract.rejection import JobRejected
from engine.models.files.fingerprint import combine_fingerprints, fingerprint_file
from engine.models.files.pipeline_parts import PICKLE_PATTERNS, find_weight_files

log = logging.getLogger(__name__)

SAFETENSORS_SUFFIX = ".safetensors"
MAX_CONFIG_BYTES = 64 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")  # as `engine.contract.Name`
# What names of published control networks say about the control image that they were trained with.
_PREPROCESSORS_BY_WORD: tuple[tuple[str, Preprocessor], ...] = (
    ("canny", "canny"), ("depth", "depth"), ("midas", "depth"), ("pose", "pose"), ("lineart", "lineart"),
)  # fmt: skip


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


def find_controls(folder: Path | None) -> list[ControlFile]:
    """Return every usable control network by name; log the others."""
    controls: list[ControlFile] = []
    for name in [] if folder is None else sorted(_list_names(folder)):
        try:
            controls.append(find_control(folder, name))
        except JobRejected as rejection:
            log.warning("left out: %s", rejection.sentence)
    return controls


def find_control(folder: Path | None, name: str) -> ControlFile:
    """Return the control network of this name. Raises `JobRejected`."""
    not_found = JobRejected(f"This worker has no control network called {name[:64]}.", "worker")
    if folder is None or not _NAME.fullmatch(name):
        raise not_found
    single, own_folder = folder / f"{name}{SAFETENSORS_SUFFIX}", folder / name
    try:
        if single.is_file():
            return _open_files(folder, name, [single], "")
        if own_folder.is_dir():
            return _open_files(folder, name, *_inspect_folder(own_folder, name))
    except OSError as error:
        log.warning("the control network %s: %s", name, error)
        raise JobRejected(f"The control network {name} cannot be read.", "worker") from error
    raise not_found


def _list_names(folder: Path) -> set[str]:
    try:
        paths = [path for path in folder.iterdir() if path.is_dir() or path.suffix == SAFETENSORS_SUFFIX]
    except FileNotFoundError:
        return set()
    except OSError as error:
        log.warning("the folder of control networks cannot be read: %s", error)
        return set()
    return {name for path in paths if _NAME.fullmatch(name := path.name if path.is_dir() else path.stem)}


def _inspect_folder(folder: Path, name: str) -> tuple[list[Path], str]:
    """Return the weights and the configuration as text."""
    path = folder / "config.json"
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ValueError("it is too large")
        text = path.read_text(encoding="utf-8")
        config: object = json.loads(text)
        is_usable = isinstance(config, dict) and isinstance(cast(dict[str, object], config).get("_class_name"), str)
    except (OSError, ValueError, RecursionError):
        is_usable, text = False, ""
    if not is_usable:
        raise JobRejected(f"The control network {name} has no config.json that can be read.", "worker")
    if not any(folder.glob(f"*{SAFETENSORS_SUFFIX}")) and any(
        each for pattern in PICKLE_PATTERNS for each in folder.glob(pattern)
    ):
        reason = "only as a pickle, which can run code when it is opened: convert it to safetensors"
        raise JobRejected(f"The control network {name} exists {reason}.", "worker")
    return find_weight_files(folder)[0], text


def _open_files(folder: Path, name: str, weights: list[Path], config_json: str) -> ControlFile:
    if not all(path.resolve().is_relative_to(folder.resolve()) for path in weights):
        raise JobRejected(f"The control network {name} is a link that leads out of the folder that it is in.", "worker")
    stats = [path.stat() for path in weights]
    fingerprints = [
        _fingerprint_weights(path, stat.st_size, stat.st_mtime_ns) for path, stat in zip(weights, stats, strict=True)
    ]
    return ControlFile(name, tuple(weights), config_json, combine_fingerprints(config_json, *fingerprints))


@functools.lru_cache(maxsize=1024)
def _fingerprint_weights(path: Path, size: int, mtime_ns: int) -> str:
    """Return a file's fingerprint, which holds for this `size` and modification time."""
    return fingerprint_file(path)
