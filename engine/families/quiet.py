"""Silences the libraries' progress bars and notes on standard error while models load.

The settings are process-wide, and several threads may load at once: the last one restores what the first one found.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Lock

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

_lock, _loading, _found = Lock(), list[None](), ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """Report only errors while a model loads: a missing pooler of the text encoder, for example, is intended."""
    with _lock:
        if not _loading:
            _silence()
        _loading.append(None)
    try:
        yield
    finally:
        with _lock:
            _loading.pop()
            if not _loading:
                _found.close()


def _silence() -> None:
    for library in (diffusers_logging, transformers_logging):
        _found.callback(library.set_verbosity, library.get_verbosity())
        if library.is_progress_bar_enabled():
            _found.callback(library.enable_progress_bar)
        library.set_verbosity_error()
        library.disable_progress_bar()
