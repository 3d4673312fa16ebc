"""What is known of a backend: whether it answers, its models, and how long its pictures take.

It is looked for with growing waits, which the log says once. Times are kept in a file of the data folder.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
from msgspec.structs import replace

from engine.contract import JobRejected, ModelProfile, Recipe, count_row_steps
from engine.process.system import write_atomically
from engine.remote.drawing import Backend, BackendModel, BackendUnreachable, KeyRefused, make_profile

log = logging.getLogger(__name__)

FIRST_WAIT_SECONDS = 1.0
MAX_LOOK_WAIT_SECONDS = 60.0
MAX_KEY_WAIT_SECONDS = 900.0  # before a job again tries a key that may not draw; each try costs a job an attempt
REFRESH_SECONDS = 60.0  # between two looks at the models of a backend that answers


class ConnectionState:
    """The backend's models while it answers; none while it does not. `wanted`: names of models to offer; (): all."""

    def __init__(
        self,
        backend: Backend,
        kind: str,
        times: MeasuredTimes,
        wanted: Sequence[str] = (),
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._backend = backend
        self._kind = kind
        self.times = times
        self._wanted = wanted
        self._sleep = sleep
        self.models: dict[str, BackendModel] = {}
        self.on_change: Callable[[], None] = lambda: None
        # While it draws it may answer late; the drawing itself then tells of an outage.
        self.is_busy: Callable[[], bool] = lambda: False
        self._lost = asyncio.Event()
        self._sentence = ""
        self._key_wait_seconds = 0.0  # a list tells nothing of whether the key may draw

    @property
    def is_reachable(self) -> bool:
        return bool(self.models)

    def list_profiles(self) -> tuple[ModelProfile, ...]:
        """Return what to announce now."""
        return tuple(self._make_profile(model) for model in self.models.values())

    def find_profile(self, name: str) -> ModelProfile | None:
        model = self.models.get(name)
        return None if model is None else self._make_profile(model)

    def _make_profile(self, model: BackendModel) -> ModelProfile:
        return self.times.apply(model, make_profile(model, self._kind))

    def note_loss(self, error: BackendUnreachable) -> None:
        """Note that a call found no backend: no model is offered until it answers again."""
        if isinstance(error, KeyRefused):
            self._key_wait_seconds = min(MAX_KEY_WAIT_SECONDS, max(FIRST_WAIT_SECONDS, 2 * self._key_wait_seconds))
        self._show(str(error))
        self._lost.set()

    def note_picture(self) -> None:
        """Note that the backend drew a picture for this worker."""
        self._key_wait_seconds = 0.0

    async def watch(self) -> None:
        """Look for the backend and its models, for ever."""
        wait_seconds = FIRST_WAIT_SECONDS
        while True:
            self._lost.clear()
            sentence = await self._look()
            if not sentence or (self.is_reachable and self.is_busy()):
                wait_seconds = FIRST_WAIT_SECONDS
                await self._wait_for_loss(REFRESH_SECONDS)
                continue
            self._show(sentence)
            await self._sleep(max(wait_seconds, self._key_wait_seconds))
            wait_seconds = min(MAX_LOOK_WAIT_SECONDS, 2 * wait_seconds)

    async def _look(self) -> str:
        """Offer the models that the backend has now. Return a sentence where it has none or does not answer."""
        try:
            models = await self._backend.list_models()
            if self._lost.is_set():  # meanwhile
                return self._sentence
            self._offer(models)
        except (BackendUnreachable, JobRejected) as error:
            return str(error)
        except Exception:  # an answer of a kind that nobody has met; the next may be a usual one
            log.exception("the backend's list of models cannot be read")
            return "The backend's list of models cannot be read."
        return ""

    async def _wait_for_loss(self, seconds: float) -> None:
        """Wait until the next look is due; a lost backend is looked for after a moment."""
        try:
            async with asyncio.timeout(seconds):
                await self._lost.wait()
        except TimeoutError:
            return
        await self._sleep(max(FIRST_WAIT_SECONDS, self._key_wait_seconds))

    def _offer(self, models: Sequence[BackendModel]) -> None:
        offered = {model.name: model for model in models if not self._wanted or model.name in self._wanted}
        if not offered:
            lacking = f"has none of the models {', '.join(self._wanted)}" if self._wanted else "has no model"
            raise JobRejected(f"The backend {lacking}.", "worker")
        if offered != self.models:
            log.info("the backend answers and offers: %s", ", ".join(offered))
        self.models = offered
        self._sentence = ""
        self.on_change()

    def _show(self, sentence: str) -> None:
        """Log an outage once, not at each try."""
        if sentence != self._sentence:
            log.warning("%s Jobs wait until it does; trying again with growing pauses.", sentence)
        self.models = {}
        self._sentence = sentence
        self.on_change()


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
        try:
            if self._path.stat().st_size <= MAX_FILE_BYTES:
                times = msgspec.json.decode(self._path.read_bytes(), type=dict[str, float])
                return {revision: ms for revision, ms in times.items() if 0 <= ms <= 1e9}
        except FileNotFoundError:
            pass
        except (OSError, msgspec.DecodeError) as error:
            log.warning("the measured times cannot be read: %s", error)
        return {}
