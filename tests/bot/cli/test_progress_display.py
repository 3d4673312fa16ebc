"""Progress of a job: drawn where there is a terminal, only sentences where there is none."""

from __future__ import annotations

import io

import pytest
from PIL import Image
from rich.console import Console

from bot.cli.imagine.progress_display import ProgressDisplay


def make_jpeg(colour: str, size: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(buffer, "JPEG")
    return buffer.getvalue()


def _console(*, terminal: bool) -> tuple[Console, io.StringIO]:
    text = io.StringIO()
    return Console(file=text, force_terminal=terminal, width=80, color_system="truecolor"), text


def test_a_pipe_gets_sentences_only() -> None:
    console, text = _console(terminal=False)
    with ProgressDisplay(console, 4) as screen:
        screen.show_queue(2, 30.0)
        screen.print_note("Accepted but ignored: --v 6.")
        screen.show_step(3, 10, 4.0)
        screen.show_frame(0, make_jpeg("red"))
        screen.print_pictures([make_jpeg("red")])
    assert text.getvalue() == "Accepted but ignored: --v 6.\n"
    assert screen.frame_count == 1


def test_a_terminal_shows_the_queue_the_steps_and_the_picture() -> None:
    console, text = _console(terminal=True)
    with ProgressDisplay(console, 4) as screen:
        screen.show_queue(2, 30.0)
        screen._live.refresh()
        assert "2 ahead in the queue" in text.getvalue()
        screen.show_loading("loading sd-1.5, 40 %", 40)
        screen._live.refresh()
        assert "loading sd-1.5, 40 %" in text.getvalue()
        screen.show_loading("loading sd-1.5", None)
        screen.show_step(370, 1000, 12.4)
        screen._live.refresh()
        assert "step 370 of 1000, 12 s left" in text.getvalue()
        before = len(text.getvalue())
        screen.show_frame(1, make_jpeg("red"))
        screen._live.refresh()
        assert len(text.getvalue()) > before + 200  # a picture takes some characters
    assert screen.frame_count == 1


def test_only_the_picture_stays_on_the_screen() -> None:
    console, text = _console(terminal=True)
    with ProgressDisplay(console, 1) as screen:
        pass
    before = len(text.getvalue())
    screen.print_pictures([make_jpeg("blue")])
    assert text.getvalue()[before:].count("\n") >= 5
    assert screen.frame_count == 0


@pytest.mark.parametrize("payload", [b"", b"not a picture", make_jpeg("red")[:80]])
def test_a_broken_preview_is_left_out(payload: bytes) -> None:
    console, _ = _console(terminal=True)
    with ProgressDisplay(console, 4) as screen:
        screen.show_frame(0, payload)
        screen.show_frame(7, make_jpeg("red"))
        screen._live.refresh()
    assert screen.frame_count == 2


def test_text_from_others_is_not_markup() -> None:
    console, text = _console(terminal=False)
    with ProgressDisplay(console, 1) as screen:
        screen.print_note("[bold]a[/bold] [link=http://x]b")
    assert text.getvalue() == "[bold]a[/bold] [link=http://x]b\n"
