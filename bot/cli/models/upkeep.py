"""Models on this machine, for `darkroom models verify`, `remove` and `default`: their files and their defaults.

Shows a download: bytes, speed and time left on one line; where there is no terminal, a line every few seconds.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from bot.domain.errors import UserError
from bot.prompt.sampler_names import SAMPLER_LIST, find_sampler
from engine.contract import Sampler
from engine.hub.added_models import (
    AddedPlace,
    ModelManifest,
    find_damaged,
    find_partial,
    find_place,
    is_name,
    list_added,
    list_partial,
    list_places,
    remove_place,
)
from engine.hub.catalogue import WEIGHT_SUFFIXES, suggest_names
from engine.hub.download import plan_repair, run_download
from engine.hub.repository import RepositoryFile
from engine.process.load_progress import format_loaded_part, format_size
from engine.process.memory_requests import QuantizationRequest
from engine.process.memory_requests import parse_quantization as parse_request
from engine.process.model_settings import EMBEDDED_MODEL, ModelSettings, read_model_settings, write_model_settings


def verify_models(data: Path, names: list[str], *, repair: bool = False, quiet: bool = False) -> dict[str, list[str]]:
    """Return the damaged files of each model that were not repaired, and print a line on each.

    Raise `UserError` for an unknown name, `HubError` where a repair fails.
    """
    added = list_places(data)
    console = Console(file=sys.stderr)
    keys = [_find_key(name, list(added)) for name in names] or list(added)
    if not keys and not quiet:
        console.print("No model was added yet: darkroom models search.")
    return {key: _verify(*added[key], console, repair, quiet) for key in keys}


def _find_key(name: str, keys: list[str]) -> str:
    """Return the key that is meant: the name itself, or the only one that ends in it. Raise `UserError` for another."""
    matches = [name] if name in keys else [key for key in keys if name in _list_short_names(key)]
    if len(matches) > 1:
        raise UserError(f"Which one: {' or '.join(matches[:4])}?")
    if not matches:
        raise _make_unknown_error(name, keys)
    return matches[0]


def _list_short_names(key: str) -> list[str]:
    """Return what `controlnets/canny.safetensors` may be called where that is clear, too."""
    name = key.rpartition("/")[2]
    suffix = next((each for each in WEIGHT_SUFFIXES if name.endswith(each)), "")
    return [name, name.removesuffix(suffix), key.removesuffix(suffix)]


def _make_unknown_error(name: str, known_names: list[str]) -> UserError:
    """Return the error for a model that was not added, with likely names."""
    likely = suggest_names(name, known_names)
    question = f" Did you mean {' or '.join(likely)}?" if likely else " `darkroom models list` shows all."
    return UserError(f"No model called {name[:80]} was added here.{question}")


def _verify(place: AddedPlace, manifest: ModelManifest, console: Console, repair: bool, quiet: bool) -> list[str]:
    with TransferDisplay(console, place.key, manifest.size, quiet=quiet) as display:
        damaged = find_damaged(place.base, manifest, display.advance)
    if not quiet:
        console.print(_describe(place.key, manifest, damaged, repair), markup=False, highlight=False, soft_wrap=True)
    if damaged and repair:
        download = plan_repair(manifest, damaged, place)
        with TransferDisplay(console, place.key, download.size, download.present_bytes, quiet=quiet) as display:
            run_download(download, display, manifest.licence)
        return []
    return [file.local_path for file in damaged]


def _describe(name: str, manifest: ModelManifest, damaged: list[RepositoryFile], repair: bool) -> str:
    if not damaged:
        pronoun = "them" if manifest.files[1:] else "it"
        unchecked = sum(not file.has_checksum for file in manifest.files)
        note = f" Of {format_file_count(unchecked)} the hub gave only the size." if unchecked else ""
        return f"{name}: {format_file_count(len(manifest.files))} as the hub has {pronoun}.{note}"
    mend = "they are fetched again" if repair else f"`darkroom models verify {name} --repair` fetches them again"
    paths = ", ".join(file.local_path for file in damaged[:3])
    return f"{name}: {len(damaged)} of {len(manifest.files)} files are damaged ({paths}): {mend}."


LINE_SECONDS = 10.0  # between two lines where there is no terminal
SPEED_SECONDS = 30.0  # over which the terminal's speed is the mean


class TransferDisplay:
    """A context manager around one download or check. `size`, `present`: bytes, and those that are there already.

    Silent with `quiet`, lines on `console` without a terminal.
    """

    def __init__(
        self,
        console: Console,
        title: str,
        size: int,
        present: int = 0,
        *,
        quiet: bool = False,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._title = title
        self._size = size
        self._quiet = quiet
        self._now = now
        self._present = self._done = present
        self._started = self._last_line = now()
        self._stage = ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            DownloadColumn(),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            speed_estimate_period=SPEED_SECONDS,
            disable=quiet or not console.is_terminal,
        )
        self._task = self._progress.add_task(title, total=size, completed=present)

    def __enter__(self) -> TransferDisplay:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, stage: Literal["download", "check"], byte_count: int) -> None:
        """Take bytes that arrived; a check moves nothing, as it follows each file."""
        if stage != self._stage:
            self._stage = stage
            suffix = ", checking" if stage == "check" else ""
            self._progress.update(self._task, description=f"{self._title}{suffix}")
        if stage == "download":
            self.advance(byte_count)

    def advance(self, byte_count: int) -> None:
        """Count bytes; negative where a file starts anew."""
        self._done += byte_count
        self._progress.advance(self._task, byte_count)
        if not self._quiet and not self._console.is_terminal and self._now() - self._last_line >= LINE_SECONDS:
            self._last_line = self._now()
            self._console.print(self.format_line(), markup=False, highlight=False, soft_wrap=True)

    def format_line(self) -> str:
        """Return "flux-schnell: 1.2 of 33.7 GB, 84 MB a second, 6 min left"."""
        seconds = max(1e-3, self._now() - self._started)
        speed = (self._done - self._present) / seconds
        line = f"{self._title}: {format_loaded_part(self._done / max(1, self._size), self._size)}"
        if speed <= 0:
            return line
        return f"{line}, {format_size(int(speed))} a second, {_format_left((self._size - self._done) / speed)} left"


def _format_left(seconds: float) -> str:
    if seconds >= 5400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(0, round(seconds))} s"


def format_file_count(count: int) -> str:
    """Return "1 file" or "13 files"."""
    return f"{count} file{'' if count == 1 else 's'}"


def remove_added(data: Path, name: str, *, confirmed: bool) -> str:
    """Delete a model or part; return the sentence about it. Raise `UserError` or `HubError`."""
    found = _find(data, name)
    key = " and ".join(place.key for place, _ in found)
    if not confirmed:
        _ask(name, key, sum(size for _, size in found))
    settings_file = read_model_settings(data)
    freed = sum(remove_place(place) for place, _ in found)
    for gone in {place.name for place, _ in found if place.kind == "model"} - list_added(data).keys():
        if gone in settings_file.models or settings_file.default == gone:
            write_model_settings(data, settings_file.without_model(gone))
    are = "are" if len(found) > 1 else "is"
    return f"{key} {are} deleted, which frees {format_size(freed)}. A running Darkroom needs a restart to forget it."


def _find(data: Path, name: str) -> list[tuple[AddedPlace, int]]:
    """Return what is meant, added or half downloaded, and its bytes, 0 where they are unknown.

    A model of that name is a network and the rest of its pipeline, where these are apart.
    """
    added = list_places(data)
    partial = list_partial(data)
    models = [(place, manifest.size) for place, manifest in added.values() if place.kind == "model"]
    if both := [each for each in models if each[0].name == name]:
        return both
    if name not in added and name not in partial and is_name(name) and find_place(data, name).path.exists():
        return [(find_place(data, name), 0)]  # the operator's own, which is refused
    key = _find_key(name, list(dict.fromkeys([*added, *partial])))
    if key in added:
        return [(added[key][0], added[key][1].size)]
    place = find_partial(data, key)
    assert place is not None, "its key was listed"
    return [(place, 0)]


def _ask(name: str, key: str, size: int) -> None:
    if not sys.stdin.isatty():
        raise UserError(f"`darkroom models remove {name} --yes` deletes it.")
    size_text = f", {format_size(size)}" if size else ""
    if not typer.confirm(f"Delete {key}{size_text}?", default=False, err=True):
        raise UserError("Nothing was deleted.")


@dataclass(frozen=True)
class DefaultsRequest:
    """What was typed; empty or None: not given."""

    name: str
    steps: int | None = None
    sampler: str = ""
    guidance: float | None = None
    quantize: str = ""
    reset: bool = False


def choose_defaults(request: DefaultsRequest, data: Path) -> str:
    """Write the choice down; return the sentence about it. Raise `UserError` for an unknown model or sampler."""
    settings_file = read_model_settings(data)
    if not request.name:
        return f"The default model is {settings_file.default or EMBEDDED_MODEL}."
    _refuse_unknown_model(request.name, data)
    known = ModelSettings() if request.reset else settings_file.get(request.name)
    settings = ModelSettings(
        steps=request.steps or known.steps,
        sampler=_parse_sampler(request.sampler) or known.sampler,
        guidance=request.guidance or known.guidance,
        quantize=parse_quantization(request.quantize) or known.quantize,
    )
    if request == DefaultsRequest(request.name):
        default = "" if request.name == EMBEDDED_MODEL else request.name
        write_model_settings(data, type(settings_file)(default, settings_file.models))
        return f"{request.name} is the default model from the next start on."
    if request.name == EMBEDDED_MODEL and settings.quantize:
        raise UserError("The embedded model is small: it is not quantised.")
    write_model_settings(data, settings_file.with_model(request.name, settings))
    return f"{request.name}: {describe_settings(settings)}, from the next start on."


def describe_settings(settings: ModelSettings) -> str:
    """Return "30 steps of dpmpp_2m, guidance 6, int8", or that the model's own defaults hold."""
    parts = [f"{settings.steps} steps"] if settings.steps else []
    if settings.sampler:
        parts = [f"{parts[0]} of {settings.sampler}"] if parts else [settings.sampler]
    parts += [f"guidance {settings.guidance:g}"] if settings.guidance else []
    parts += [settings.quantize] if settings.quantize else []
    return ", ".join(parts) or "its own defaults"


def _parse_sampler(text: str) -> Sampler | None:
    if not text:
        return None
    sampler = find_sampler(text)
    if sampler is None:
        raise UserError(f"There is no sampler {text[:40]!r}: {SAMPLER_LIST}.")
    return sampler


def _refuse_unknown_model(name: str, data: Path) -> None:
    if name == EMBEDDED_MODEL or name in list_added(data):
        return
    folder = find_place(data, name).path
    if not folder.is_dir() and not any(folder.with_name(f"{name}{suffix}").is_file() for suffix in WEIGHT_SUFFIXES):
        raise _make_unknown_error(name, [*list_added(data), EMBEDDED_MODEL])


def parse_quantization(text: str) -> QuantizationRequest | None:
    """Return the choice; None for no text. Raise `UserError` for any other word."""
    if not text:
        return None
    try:
        return parse_request(text)
    except ValueError as error:
        raise UserError(f"--quantize: {error}, not {text[:40]!r}.") from error
