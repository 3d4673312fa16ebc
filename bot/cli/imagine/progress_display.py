"""Terminal output of a job: one progress line, and its pictures above it. Silent where there is no terminal."""

from __future__ import annotations

import io
import logging

from PIL import Image
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn

log = logging.getLogger(__name__)

MAX_COLUMNS = 48  # wide enough to recognise something, small enough for a split window
FRAMES_PER_SECOND = 4
CELL_SIZE = 256
MAX_CELLS = 16  # pictures of one job, or of a walk


class ProgressDisplay:
    """A context manager around one job. `frame_count` counts the live frames received."""

    def __init__(self, console: Console, picture_count: int) -> None:
        self.console = console
        self.frame_count = 0
        self._cells: list[Image.Image | None] = [None] * picture_count
        self._progress = Progress(TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rest]}"))
        self._task = self._progress.add_task("waiting", total=None, rest="")
        self._columns = min(MAX_COLUMNS, console.width)
        self._shows_images = console.is_terminal and _can_show_images(console)
        self._live = Live(
            console=console, refresh_per_second=FRAMES_PER_SECOND, transient=True, get_renderable=self._render
        )

    def __enter__(self) -> ProgressDisplay:
        if self.console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.console.is_terminal:
            self._live.stop()

    def print_note(self, sentence: str) -> None:
        """Print one line that stays."""
        self.console.print(sentence, markup=False, highlight=False, soft_wrap=True)

    def show_queue(self, jobs_ahead: int, eta: float | None) -> None:
        """Show that the job waits: `jobs_ahead` jobs come first, `eta` seconds until it is done."""
        position = "next in the queue" if jobs_ahead == 0 else f"{jobs_ahead} ahead in the queue"
        self._progress.update(self._task, description=position, rest="" if eta is None else f"about {eta:.0f} s")

    def show_loading(self, sentence: str, percent: int | None) -> None:
        """Show that its model is loaded into memory; `percent` is None where nothing measures it."""
        self._progress.update(self._task, description=sentence, completed=percent or 0, total=percent and 100, rest="")

    def show_step(self, step: int, total_steps: int, seconds_left: float) -> None:
        rest = f"step {step} of {total_steps}, {seconds_left:.0f} s left"
        self._progress.update(self._task, description="developing", completed=step, total=total_steps, rest=rest)

    def show_frame(self, image: int, jpeg: bytes) -> None:
        """Show the newest preview of one image. Skip one that cannot be decoded: it is only a preview."""
        self.frame_count += 1
        if not self._shows_images or not 0 <= image < MAX_CELLS:
            return
        self._cells += [None] * (image + 1 - len(self._cells))  # somebody split an image
        try:
            with Image.open(io.BytesIO(jpeg)) as preview:
                self._cells[image] = preview.convert("RGB").resize((CELL_SIZE, CELL_SIZE), Image.Resampling.BILINEAR)
        except (OSError, ValueError, Image.DecompressionBombError):
            return

    def _render(self) -> RenderableType:
        if all(cell is None for cell in self._cells):
            return self._progress
        return Group(_to_renderable(_compose_cells(self._cells), self._columns), self._progress)

    def print_pictures(self, pictures: list[bytes]) -> None:
        """Print the finished pictures, which stay."""
        self._cells = [None] * max(1, len(pictures))  # of a steered job some are left out
        for index, png in enumerate(pictures):
            self.show_frame(index, png)
            self.frame_count -= 1  # a finished picture is no live frame
        if self._shows_images:
            self.console.print(_to_renderable(_compose_cells(self._cells), self._columns))


def _can_show_images(console: Console) -> bool:
    """Return whether the terminal shows pictures, after one discarded drawing.

    At the first drawing the package asks the terminal for its abilities and the size of its cells. That must happen
    before a live display starts. The display would take the package's warning about a silent terminal for output, draw
    again, and so ask again without end.
    """
    logging.getLogger("textual_image").setLevel(logging.ERROR)
    try:
        console.render_lines(_to_renderable(_compose_cells([None]), 2))
    except Exception:  # an unusual terminal must not end the job: it goes on without pictures
        log.debug("no pictures in this terminal", exc_info=True)
        return False
    return True


def _compose_cells(cells: list[Image.Image | None]) -> Image.Image:
    """Return the images of a job side by side, two in a row."""
    columns = min(2, len(cells))
    canvas = Image.new("RGB", (columns * CELL_SIZE, -(-len(cells) // columns) * CELL_SIZE), (32, 32, 32))
    for index, cell in enumerate(cells):
        if cell is not None:
            canvas.paste(cell, ((index % columns) * CELL_SIZE, index // columns * CELL_SIZE))
    return canvas


def _to_renderable(image: Image.Image, columns: int) -> RenderableType:
    # imported here: the package asks the terminal for its abilities at import
    from textual_image.renderable import Image as TerminalImage

    return TerminalImage(image, width=columns, height="auto")
