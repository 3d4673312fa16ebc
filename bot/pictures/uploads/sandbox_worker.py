"""The sandboxed subprocess that decodes uploads, each in a forked child.

The process starts once, loads Pillow and then only forks; it parses no upload itself. A child can open no file, start
no process and reach neither the bot nor another upload. Its memory and time are limited. The child dies with this
process, and this process dies with the bot. Imports nothing of the bot but `bot.pictures.uploads.image_decoding`.

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

from bot.pictures.uploads import image_decoding

REQUEST_HEADER = struct.Struct(">cI")
ANSWER_HEADER = struct.Struct(">BI")
READY = b"!"
# how a child ended: with output, out of time, crashed, with too much output
OUTPUT, TIMED_OUT, CRASHED, OVERSIZED = range(4)
# raw pixels plus a PNG's overhead
MAX_PNG_BYTES = 64 * 1024 + image_decoding.OUTPUT_SIDE * (1 + 3 * image_decoding.OUTPUT_SIDE)
MAX_OUTPUT_BYTES = image_decoding.HEADER.size + MAX_PNG_BYTES
# prctl(2): PR_SET_PDEATHSIG, PR_SET_NO_NEW_PRIVS
_PARENT_DEATH = 1
_NO_NEW_PRIVILEGES = 38


def main(seconds: float, memory: int) -> None:
    """Answer requests until the input closes. `seconds`: wall clock per upload. `memory`: bytes of address space."""
    die_with_parent(os.getppid())
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    image_decoding.prepare_pillow()
    devnull = os.open(os.devnull, os.O_WRONLY)
    source = sys.stdin.buffer
    sink = sys.stdout.buffer
    _write(sink, READY)
    while len(header := source.read(REQUEST_HEADER.size)) == REQUEST_HEADER.size:
        kind, length = REQUEST_HEADER.unpack(header)
        content = source.read(length)
        if len(content) < length:
            return
        exit_kind, output = _decode_in_child(kind, content, seconds, memory, devnull)
        _write(sink, ANSWER_HEADER.pack(exit_kind, len(output)))
        _write(sink, output)
        del content, output  # frees memory: the next request may come much later


def die_with_parent(parent: int) -> None:
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


def set_limits(seconds: float, memory: int) -> None:
    """Set resource limits: no new files, no processes, no file writes, limited CPU time and memory."""
    cpu_seconds = int(seconds) + 2  # the parent's wall-clock timeout comes first
    limits = [(resource.RLIMIT_CPU, cpu_seconds), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_NOFILE, 0)]
    limits.append((resource.RLIMIT_NPROC, 0))
    if sys.platform == "linux":  # macOS refuses to bound an address space
        limits.append((resource.RLIMIT_AS, memory))
    for kind, limit in limits:
        resource.setrlimit(kind, (limit, limit))


def _decode_in_child(
    kind: image_decoding.UploadKind, content: bytes, seconds: float, memory: int, devnull: int
) -> tuple[int, bytes]:
    """Decode one upload in a forked child. Return how the child ended, and its output. No child is left."""
    start_time, (source, sink), parent_pid = time.monotonic(), os.pipe(), os.getpid()
    child = os.fork()
    if child == 0:
        _run_child(kind, content, seconds, memory, (sink, devnull, parent_pid))
    os.close(sink)
    try:
        exit_kind, output = _collect_output(source, start_time + seconds)
    finally:
        os.close(source)
        os.kill(child, signal.SIGKILL)  # no other process gets the pid before `wait4`, even if the child has exited
        _, status, usage = os.wait4(child, 0)
    if exit_kind == OUTPUT and not output:
        cpu_exceeded = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU
        exit_kind = TIMED_OUT if cpu_exceeded or usage.ru_utime + usage.ru_stime >= seconds else CRASHED
    return exit_kind, output


def _run_child(
    kind: image_decoding.UploadKind, content: bytes, seconds: float, memory: int, channels: tuple[int, int, int]
) -> NoReturn:
    """Decode the upload, write the answer to the pipe and exit. Does not return."""
    sink, devnull, parent = channels
    try:
        for descriptor in (0, 1, 2):  # stdio goes to /dev/null: the child has neither the bot's pipes nor the log
            os.dup2(devnull, descriptor)
        die_with_parent(parent)
        set_limits(seconds, memory)
        output = memoryview(image_decoding.decode_upload(kind, content))
        while output:
            output = output[os.write(sink, output) :]
    finally:
        os._exit(0)


def _collect_output(source: int, deadline: float) -> tuple[int, bytes]:
    chunks = list[bytes]()
    length = 0
    while True:
        remaining = deadline - time.monotonic()
        if remaining <= 0 or not select.select([source], [], [], remaining)[0]:
            return TIMED_OUT, b""
        chunk = os.read(source, 1 << 20)
        if not chunk:
            return OUTPUT, b"".join(chunks)
        chunks.append(chunk)
        length += len(chunk)
        if length > MAX_OUTPUT_BYTES:
            return OVERSIZED, b""


def _write(sink: BinaryIO, content: bytes) -> None:
    sink.write(content)
    sink.flush()
