"""The sandboxed subprocess that decodes uploads, each in a forked child.

The process starts once, loads Pillow and then only forks; it parses no upload itself. A child can open no file, start
no process and reach neither the bot nor another upload. Its memory and time are limited. The child dies with this
process, and this process dies with the bot. Imports nothing of the bot but `bot.images.reading`.

Protocol: the process writes one byte when it is ready. Request: kind (1 byte), length (4), the file. Answer: how the
child ended (1 byte), length (4), its output. Numbers are big-endian. The process exits when its input closes.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import struct
import sys
import time
from typing import BinaryIO, NoReturn

from bot.images import reading

ASKED, ANSWERED = struct.Struct(">cI"), struct.Struct(">BI")
READY = b"!"
SAID, SLOW, DIED, STRANGE = range(4)  # how a child ended: with output, out of time, crashed, with too much output
MOST_PNG = 64 * 1024 + reading.KEPT_SIDE * (1 + 3 * reading.KEPT_SIDE)  # raw pixels plus a PNG's overhead
MOST_SAID = reading.HEAD.size + MOST_PNG
_PARENT_DEATH, _NO_NEW_PRIVILEGES = 1, 38  # prctl(2): PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS


def main(seconds: float, memory: int) -> None:
    """Answer requests until the input closes. `seconds`: wall clock per upload. `memory`: bytes of address space."""
    bound_to(os.getppid())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    reading.prepare()
    nowhere = os.open(os.devnull, os.O_WRONLY)
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    _write(sink, READY)
    while len(head := source.read(ASKED.size)) == ASKED.size:
        kind, length = ASKED.unpack(head)
        content = source.read(length)
        if len(content) < length:
            return
        end, said = _read_apart(kind, content, seconds, memory, nowhere)
        _write(sink, ANSWERED.pack(end, len(said)))
        _write(sink, said)
        del content, said  # frees memory: the next request may be long in coming


def bound_to(parent: int) -> None:
    """End this process with `parent`, and let no program that it starts gain privileges.

    Only Linux has such a call. Elsewhere the process relies on the end of its input.
    """
    if sys.platform != "linux":
        return
    from ctypes import CDLL

    system = CDLL(None)
    system.prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if os.getppid() != parent:  # the parent ended before prctl took effect
        os._exit(1)


def confine(seconds: float, memory: int) -> None:
    """Set resource limits: no new files, no processes, no file writes, limited CPU time and memory."""
    whole = int(seconds) + 2  # the parent's wall-clock timeout comes first
    bounds = [(resource.RLIMIT_CPU, whole), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 0)]
    bounds.append((resource.RLIMIT_NPROC, 0))
    if sys.platform == "linux":  # macOS refuses to bound an address space
        bounds.append((resource.RLIMIT_AS, memory))
    for which, most in bounds:
        resource.setrlimit(which, (most, most))


def _read_apart(kind: reading.Kind, content: bytes, seconds: float, memory: int, nowhere: int) -> tuple[int, bytes]:
    """Decode one upload in a forked child. Return how the child ended, and its output. No child is left."""
    began, (source, sink), us = time.monotonic(), os.pipe(), os.getpid()
    child = os.fork()
    if child == 0:
        _be_child(kind, content, seconds, memory, (sink, nowhere, us))
    os.close(sink)
    try:
        end, said = _collected(source, began + seconds)
    finally:
        os.close(source)
        os.kill(child, signal.SIGKILL)  # the pid stays ours until `wait4`, whatever the child did
        _, status, used = os.wait4(child, 0)
    if end == SAID and not said:
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
        end = SLOW if killed or used.ru_utime + used.ru_stime >= seconds else DIED
    return end, said


def _be_child(
    kind: reading.Kind, content: bytes, seconds: float, memory: int, ends: tuple[int, int, int]
) -> NoReturn:  # fmt: skip
    """Decode the upload, write the answer to the pipe and exit. Does not return."""
    sink, nowhere, parent = ends
    try:
        for known in (0, 1, 2):  # stdio goes to /dev/null: the child has neither the bot's pipes nor the log
            os.dup2(nowhere, known)
        bound_to(parent)
        confine(seconds, memory)
        said = memoryview(reading.answered(kind, content))
        while said:
            said = said[os.write(sink, said) :]
    finally:
        os._exit(0)


def _collected(source: int, until: float) -> tuple[int, bytes]:
    """Read the pipe until it closes, within the time and size limits."""
    parts, length = list[bytes](), 0
    while True:
        left = until - time.monotonic()
        if left <= 0 or not select.select([source], [], [], left)[0]:
            return SLOW, b""
        part = os.read(source, 1 << 20)
        if not part:
            return SAID, b"".join(parts)
        parts.append(part)
        length += len(part)
        if length > MOST_SAID:
            return STRANGE, b""


def _write(sink: BinaryIO, content: bytes) -> None:
    sink.write(content)
    sink.flush()
