"""`darkroom imagine` at a pseudo-terminal: one that answers questions, and one that does not."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time

import pytest

SHOW = """
import io
from PIL import Image
from rich.console import Console
from bot.cli.imagine.progress_display import ProgressDisplay
out = io.BytesIO()
Image.new("RGB", (64, 64), "red").save(out, "JPEG")
with ProgressDisplay(Console(), 1) as screen:
    for k in range(1, 4):
        screen.show_step(k, 3, 1.0)
        screen.show_frame(0, out.getvalue())
        screen._live.refresh()
screen.print_pictures([out.getvalue()])
print("THE END")
"""
CELL_SIZE = b"\x1b[16t"


def _run_at_terminal(code: str, *, answers: bool) -> bytes:
    """Runs a program at a pseudo-terminal without a known cell size, which may answer queries; returns the output."""
    terminal, program_end = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 80, 0, 0))
    env = os.environ | {"TERM": "xterm-256color"}
    command = [sys.executable, "-c", code]
    program = subprocess.Popen(
        command, stdin=program_end, stdout=program_end, stderr=program_end, env=env, start_new_session=True
    )
    os.close(program_end)
    output = b""
    deadline = time.monotonic() + 60
    try:
        while time.monotonic() < deadline:
            if not select.select([terminal], [], [], 0.2)[0]:
                continue
            try:
                new = os.read(terminal, 65536)
            except OSError:  # on Linux: the other side has closed
                break
            output += new
            if answers and CELL_SIZE in new:
                os.write(terminal, b"\x1b[6;20;10t")
    finally:
        program.kill()
        program.wait()
        os.close(terminal)
    return output


@pytest.mark.parametrize("answers", [True, False])
def test_pictures_are_drawn_and_the_program_ends(answers: bool) -> None:
    output = _run_at_terminal(SHOW, answers=answers)
    assert b"THE END" in output
    assert "▀".encode() in output
    assert b"step 3 of 3" in output
    assert output.count(CELL_SIZE) <= 1
    assert b"Traceback" not in output


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--interval", "0.8-0.2"], "--interval 0.8-0.2 is not possible: it takes from-to, each 0 to 1"),
        (["--lora", "style:9"], "--lora style:9 is not possible: it takes a name, or name:weight from -4 to 4"),
        ([part for n in range(5) for part in ("--lora", f"l{n}")], "these are 5"),
        (["--sampler", "DPM++ 2M SDE Karras"], "--sampler DPM++ 2M SDE Karras is not possible: it takes ddpm,"),
        (["--model", "some/folder", "--sampler", "Euler b"], "--sampler Euler b is not possible"),
    ],
)
def test_options_are_refused_before_anything_is_loaded(options: list[str], message: str) -> None:
    command = [sys.executable, "-m", "bot", "imagine", "a fox", *options]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert message in result.stderr
    assert result.stdout == ""
