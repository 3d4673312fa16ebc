"""Silences the libraries' progress bars and notes on standard error while models load.

The settings are process-wide, and several threads may load at once: the last one restores what the first one found.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from threading import Lock

from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

_lock = Lock()
_active_loads = list[None]()
_saved_settings = ExitStack()


@contextmanager
def silence_libraries() -> Generator[None]:
    """Report only errors while a model loads: a missing pooler of the text encoder, for example, is intended."""
    with _lock:
        if not _active_loads:
            _silence_all()
        _active_loads.append(None)
    try:
        yield
    finally:
        with _lock:
            _active_loads.pop()
            if not _active_loads:
                _saved_settings.close()


def _silence_all() -> None:
    for library in (diffusers_logging, transformers_logging):
        _saved_settings.callback(library.set_verbosity, library.get_verbosity())
        if library.is_progress_bar_enabled():
            _saved_settings.callback(library.enable_progress_bar)
        library.set_verbosity_error()
        library.disable_progress_bar()
