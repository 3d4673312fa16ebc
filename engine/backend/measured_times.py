"""How long a backend takes, as real work shows it: what a model's jobs cost. Kept in a file of the data folder."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import msgspec
from msgspec.structs import replace

from engine.backend.drawing import BackendModel
from engine.contract import ModelProfile, Recipe, count_row_steps
from engine.process.atomic_file import write_atomically

log = logging.getLogger(__name__)

SMOOTHING = 0.3  # weight of the newest picture
# until the first picture is measured
GUESSED_ROW_MS = 100.0
GUESSED_PICTURE_MS = 15_000.0
MAX_STORED = 1024  # models in the file
MAX_FILE_BYTES = 1024 * 1024
FILE_NAME = "backend-times.json"


class MeasuredTimes:
    """By model version, milliseconds: of a row-step at the native size, or of a whole picture where no steps count."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE_NAME
        self._times: dict[str, float] = self._load_times()
        self._lock = threading.Lock()  # pictures end at once: each is recorded in a thread of its own

    def apply(self, model: BackendModel, profile: ModelProfile) -> ModelProfile:
        """Return the profile with what is known of the model's times."""
        if model.is_priced_by_steps:
            return replace(profile, row_ms=self._times.get(profile.revision, GUESSED_ROW_MS))
        return replace(profile, decode_ms=self._times.get(profile.revision, GUESSED_PICTURE_MS))

    def record(self, model: BackendModel, profile: ModelProfile, recipe: Recipe, seconds: float) -> None:
        """Record the seconds of one picture. Writes a file: call it in a thread."""
        area = recipe.width * recipe.height / profile.size**2
        row_steps = count_row_steps(replace(recipe, count=1, bucket=None, candidate_count=0, chosen_candidates=()))
        units = area * (row_steps if model.is_priced_by_steps else 1)
        if units <= 0:
            return
        with self._lock:
            self._store(profile.revision, min(1e9, 1000 * seconds / units))

    def _store(self, revision: str, newest: float) -> None:
        known = self._times.get(revision, newest)
        # A new mapping: the event loop reads the old one meanwhile.
        others = {each: ms for each, ms in self._times.items() if each != revision}
        times = others | {revision: known + SMOOTHING * (newest - known)}
        self._times = dict(list(times.items())[-MAX_STORED:])
        try:
            write_atomically(self._path, msgspec.json.encode(self._times))
        except OSError as error:
            log.warning("the measured times cannot be stored: %s", error)

    def _load_times(self) -> dict[str, float]:
        """Return the stored times; none from a file that is missing or damaged."""
        try:
            if self._path.stat().st_size <= MAX_FILE_BYTES:
                times = msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
                return {revision: ms for revision, ms in times.items() if 0 <= ms <= 1e9}
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the measured times cannot be read: %s", error)
        return {}
