"""Terminal output of a job: one progress line, and its pictures above it. Silent where there is no terminal."""

from __future__ import annotations

import io
import logging
from types import TracebackType

from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger(__name__)

COLUMNS = 48  # wide enough to recognise something, small enough for a split window
FRAMES_A_SECOND = 4
CELL = 256


class Screen:
    """A context manager around one job. `frames` counts the live frames received."""

    def __init__(self, console: Console, count: int) -> None:
        self.console = console
        self.frames = 0
        self._cells: list[Image.Image | None] = [None] * count
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rest]}"))
        self._task = self._progress.add_task("waiting", total=None, rest="")
        self._columns = min(COLUMNS, console.width)
        self._pictures = console.is_terminal and _shows_pictures(console)
        self._live = Live(
            console=console, refresh_per_second=FRAMES_A_SECOND, transient=True, get_renderable=self._draw
        )

    def __enter__(self) -> Screen:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def say(self, sentence: str) -> None:
        """Print one line that stays."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def wait(self, ahead: int, eta: float | None) -> None:
        """Show that the job waits: `ahead` jobs come first, `eta` seconds until it is done."""
        place = "next in the queue" if ahead == 0 else f"{ahead} ahead in the queue"
        self._progress.update(self._task, description=place, rest="" if eta is None else f"about {eta:.0f} s")

    def load(self, sentence: str, percent: int | None) -> None:
        """Show that its model is loaded into memory; `percent` is None where nothing measures it."""
        self._progress.update(self._task, description=sentence, completed=percent or 0, total=percent and 100, rest="")

    def step(self, step: int, of: int, seconds_left: float) -> None:
        rest = f"step {step} of {of}, {seconds_left:.0f} s left"
        self._progress.update(self._task, description="developing", completed=step, total=of, rest=rest)

    def frame(self, image: int, jpeg: bytes) -> None:
        """Show the newest preview of one image. Skip one that cannot be decoded: it is only a preview."""
        self.frames += 1
        if not self._pictures or not 0 <= image < len(self._cells):
            return
        try:
            with Image.open(io.BytesIO(jpeg)) as opened:
                self._cells[image] = opened.convert("RGB").resize((CELL, CELL), Image.Resampling.BILINEAR)
        except (OSError, ValueError, Image.DecompressionBombError):
            return

    def _draw(self) -> RenderableType:
        if all(cell is None for cell in self._cells):
            return self._progress
        return Group(_as_renderable(_sheet(self._cells), self._columns), self._progress)

    def show(self, pictures: list[bytes]) -> None:
        """Print the finished pictures, which stay."""
        for index, png in enumerate(pictures):
            self.frame(index, png)
            self.frames -= 1  # a finished picture is no live frame
        if self._pictures:
            self.console.print(_as_renderable(_sheet(self._cells), self._columns))


def _shows_pictures(console: Console) -> bool:
    """Return whether the terminal shows pictures, after one discarded drawing.

    At the first drawing the package asks the terminal for its abilities and the size of its cells. That must happen
    before a live display starts. The display would take the package's warning about a silent terminal for output, draw
    again, and so ask again without end.
    """
    logging.getLogger("textual_image").setLevel(logging.ERROR)
    try:
        console.render_lines(_as_renderable(_sheet([None]), 2))
    except Exception:  # an unusual terminal must not end the job: it goes on without pictures
        log.debug("no pictures in this terminal", exc_info=True)
        return False
    return True


def _sheet(cells: list[Image.Image | None]) -> Image.Image:
    """Return the images of a job side by side, two in a row."""
    across = min(2, len(cells))
    sheet = Image.new("RGB", (across * CELL, -(-len(cells) // across) * CELL), (32, 32, 32))
    for index, cell in enumerate(cells):
        if cell is not None:
            sheet.paste(cell, ((index % across) * CELL, index // across * CELL))
    return sheet


def _as_renderable(sheet: Image.Image, columns: int) -> RenderableType:
    # imported here: the package asks the terminal for its abilities at import
    from textual_image.renderable import Image as TerminalImage

    return TerminalImage(sheet, width=columns, height="auto")
