"""Forks the workers of pytest-xdist from one process that has imported the large libraries: most of a worker's start.

xdist starts a `python` for each worker. `CLIENT` stands in for it: it hands its streams and its code to this process,
and ends when the fork ends. Only libraries are imported before the fork, so coverage and pytest see all of our code. No
pytest plugins either, which pytest must import itself.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from importlib import import_module
from pathlib import Path
from types import ModuleType

IMPORTED: dict[str, tuple[str, ...]] = {  # modules, and what of them is imported when it is first used
    "aiohttp": (),
    "discord": (),
    "nats": (),
    "sqlalchemy": (),
    "scipy.stats": (),
    "torch": (),
    "torchvision": (),
    "peft": (),
    "spandrel": (),
    "transformers": ("BertModel", "CLIPTextModel", "CLIPTokenizer", "T5EncoderModel"),
    "diffusers": ("AutoencoderKL", "ControlNetModel", "StableDiffusionPipeline", "StableDiffusionXLPipeline"),
}
CLIENT = """
import os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect(sys.argv[1])
socket.send_fds(server, [sys.argv[-1].encode()], [0, 1, 2])
os.close(0)
os.close(1)
server.recv(1)
"""


@contextmanager
def serve_forks() -> Iterator[str]:
    """The command that starts a fork in place of `python`."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listener:
        client = Path(folder) / "client.py"
        address = str(Path(folder) / "socket")
        client.write_text(CLIENT)
        listener.bind(address)
        listener.listen()
        command = [sys.executable, __file__, str(listener.fileno())]
        with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=[listener.fileno()]):
            yield f"{sys.executable} -I -S {client} {address}"


def main() -> None:
    del sys.path[0]  # this folder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with pytest, which closes our input
    with Path(os.devnull).open("w") as devnull, redirect_stderr(devnull):
        import_libraries()
    gc.freeze()
    with socket.socket(fileno=int(sys.argv[1])) as listener:
        while sys.stdin.fileno() not in select.select([sys.stdin.fileno(), listener], [], [])[0]:
            connection, _ = listener.accept()
            code, streams, *_ = socket.recv_fds(connection, 4096, 3)
            if os.fork() == 0:
                listener.close()
                return become_worker(code, streams, connection)
            for descriptor in (connection.detach(), *streams):
                os.close(descriptor)
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def import_libraries() -> None:
    for name, attributes in IMPORTED.items():
        with suppress(ImportError):  # the tests that need it say so
            module = import_module(name)
            for attribute in attributes:
                getattr(module, attribute)


def become_worker(code: bytes, streams: Sequence[int], connection: socket.socket) -> None:
    """Run the code like `python -c`. The client ends when the connection closes, which is when this process ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    connection.detach()
    sys.argv = ["-c"]
    sys.modules["__main__"] = ModuleType("__main__")
    exec(code, sys.modules["__main__"].__dict__)


if __name__ == "__main__":
    main()
