"""The process that reads strangers' pictures, each in a child of its own that has never seen another.

It starts once, loads Pillow, and then only forks: no byte of a picture is looked at here. The child can open nothing,
start nothing and reach neither the bot nor the next picture; its memory and time are bounded, and it dies with us as we
die with the bot. Knows processes; knows nothing of the bot.

Says one byte when it is ready. Asked: kind (1 byte), length (4), the file. Answered: how the child ended (1 byte),
length (4), what it said. Numbers are big-endian. It ends when its input does.
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
SAID, SLOW, DIED, STRANGE = range(4)  # how a child ended
MOST_PNG = 64 * 1024 + reading.KEPT_SIDE * (1 + 3 * reading.KEPT_SIDE)  # the pixels as they are, and a PNG's own bytes
MOST_SAID = reading.HEAD.size + MOST_PNG
_PARENT_DEATH, _NO_NEW_PRIVILEGES = 1, 38  # prctl(2): PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS


def main(seconds: float, memory: int) -> None:
    """`seconds` of a clock for each picture, `memory` in bytes of address space."""
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
        del content, said  # the next one may be long in coming


def bound_to(parent: int) -> None:
    """We end when that process does, and no program that we start gains a right. Elsewhere than on Linux the end of
    our input has to do: there is no such call.
    """
    if sys.platform != "linux":
        return
    from ctypes import CDLL

    system = CDLL(None)
    system.prctl(_PARENT_DEATH, signal.SIGKILL, 0, 0, 0)
    system.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if os.getppid() != parent:  # it ended before we asked to be told
        os._exit(1)


def confine(seconds: float, memory: int) -> None:
    """From here on it opens and starts nothing, writes no file, and takes no more than its share."""
    whole = int(seconds) + 2  # the clock of whoever waits comes first
    bounds = [(resource.RLIMIT_CPU, whole), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 0)]
    bounds.append((resource.RLIMIT_NPROC, 0))
    if sys.platform == "linux":  # macOS refuses to bound an address space
        bounds.append((resource.RLIMIT_AS, memory))
    for which, most in bounds:
        resource.setrlimit(which, (most, most))


def _read_apart(kind: reading.Kind, content: bytes, seconds: float, memory: int, nowhere: int) -> tuple[int, bytes]:
    """How a child that reads it ended, and what it said. No child is left."""
    began, (source, sink), us = time.monotonic(), os.pipe(), os.getpid()
    child = os.fork()
    if child == 0:
        _be_child(kind, content, seconds, memory, (sink, nowhere, us))
    os.close(sink)
    try:
        end, said = _collected(source, began + seconds)
    finally:
        os.close(source)
        os.kill(child, signal.SIGKILL)  # it is ours until it is waited for, whatever it did
        _, status, used = os.wait4(child, 0)
    if end == SAID and not said:
        killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
        end = SLOW if killed or used.ru_utime + used.ru_stime >= seconds else DIED
    return end, said


def _be_child(
    kind: reading.Kind, content: bytes, seconds: float, memory: int, ends: tuple[int, int, int]
) -> NoReturn:  # fmt: skip
    """Does not return."""
    sink, nowhere, parent = ends
    try:
        for known in (0, 1, 2):  # a place to write to and nothing else: not the bot's pipes, not the log
            os.dup2(nowhere, known)
        bound_to(parent)
        confine(seconds, memory)
        said = memoryview(reading.answered(kind, content))
        while said:
            said = said[os.write(sink, said) :]
    finally:
        os._exit(0)


def _collected(source: int, until: float) -> tuple[int, bytes]:
    """What comes until the pipe is closed, in time and in bounds."""
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
