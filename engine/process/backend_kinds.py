"""The kinds of servers that can draw a worker's jobs: each folder of `engine.backends` is one.

A folder declares `BACKEND` and has a module `client` with `open_backend`, a coroutine that takes the settings and the
names of the models to offer, and returns an `engine.remote.drawing.Backend`. Nothing else names it: deleting the
folder takes the kind out. Imports nothing heavy: the command line lists the kinds in its help.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module

PACKAGE = "engine.backends"


@dataclass(frozen=True)
class BackendKind:
    """`title`: in sentences. `address`: one as people write it; with "…" it is only the beginning of one.

    `takes_workflows`: whether `--workflow` is for it.
    """

    title: str
    address: str
    takes_workflows: bool = False


@cache
def load_backend_kinds() -> Mapping[str, BackendKind]:
    """Return every kind by the name of its folder, those with a usual address first."""
    names = [each.name for each in pkgutil.iter_modules(import_module(PACKAGE).__path__)]
    kinds: dict[str, BackendKind] = {name: import_module(f"{PACKAGE}.{name}").BACKEND for name in names}
    return dict(sorted(kinds.items(), key=lambda each: (each[1].address.endswith("…"), each[0])))


def list_forms() -> str:
    """Return how each kind is named on the command line, as in "comfyui=http://127.0.0.1:8188 or openai=https://…"."""
    return join_words([f"{name}={kind.address}" for name, kind in load_backend_kinds().items()])


def join_words(words: Collection[str]) -> str:
    """Return "a, b or c"."""
    *most, last = words or ("none",)
    return f"{', '.join(most)} or {last}" if most else last
