"""The folder `run/` of one training run: its owner, its lock, its origin, and how to clear it.

The lock file names our command, so no other folder called `run/` is mistaken for ours. Only files that a run writes are
ever deleted. Knows files; knows nothing of what is trained.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.training import checkpoint
from engine.training.run import CHECKPOINT

RUN, LOCK, ORIGIN, LOG = "run", "lock", "origin.json", "log.jsonl"
FINISHED, MERGED, WHOLE, BOARD = "finished.json", "merged.json", "whole", "tensorboard"
WRITTEN = (CHECKPOINT, f"{CHECKPOINT}.fresh", LOG, ORIGIN, FINISHED, MERGED, "sheets", BOARD, WHOLE)
MARK = "darkroom train "
MARK_BYTES = 64
BEFORE = (LOCK, "skipped.txt")  # files that exist before the first checkpoint


def refuse_foreign(out: Path, kind: str, data: Path | None = None) -> None:
    """Raise ValueError if `out` cannot be the folder of a run of this kind. Changes nothing."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out names a folder, and {out} is a file.")
    if data is not None and _in_each_other(out.resolve(), data.resolve()):
        raise ValueError(f"One of --out {out} and --data {data} is inside the other: take two folders.")
    folder = out / RUN
    for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        if path.is_symlink():
            raise ValueError(f"{path} is a link, and runs do not follow links: take another folder for --out.")
    if _unused(out):
        return
    if (whose := kind_of(folder)) is None:
        raise ValueError(f"{out} is not empty and holds no run: take another folder for --out.")
    if whose != kind:
        raise ValueError(f"{out} holds a run of `darkroom train {whose}`: take another folder for --out.")


def kind_of(folder: Path) -> str | None:
    """Return the command of this run, by its lock, or None; runs of earlier versions, by their origin."""
    try:
        with (folder / LOCK).open("rb") as lock:
            mark = lock.read(MARK_BYTES).decode(errors="replace")
    except OSError:
        mark = ""
    if mark.startswith(MARK):
        return mark.removeprefix(MARK).strip()
    kind = read_object(folder / ORIGIN).get("kind")
    return kind if isinstance(kind, str) else None


@contextmanager
def alone(folder: Path, kind: str) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends in any way. Follows no link."""
    number = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(number, "r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process is training in {folder.parent}.") from None
        lock.write(f"{MARK}{kind}\n".encode())
        lock.flush()
        lock.truncate()
        yield


def position_in(folder: Path) -> dict[str, Any] | None:
    """Return the run's position; None without a checkpoint. Raises ValueError if the checkpoint is not one of ours."""
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    position = checkpoint.position(path)
    kinds = {"steps": int, "kept": int, "started": (int, float), "settings": dict}
    if not all(isinstance(position.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"{path} is not a complete checkpoint: start over with --fresh.")
    return position


def origin_in(folder: Path, position: Mapping[str, Any]) -> dict[str, Any]:
    """Return the run's starting conditions from its checkpoint; for earlier versions, from a file beside it."""
    origin = position.get("origin")
    return origin if isinstance(origin, dict) else read_object(folder / ORIGIN)


def clear(folder: Path) -> None:
    """Delete a run's files, the checkpoint first: without it the others do not count."""
    for path in (folder / name for name in WRITTEN):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_object(path: Path) -> dict[str, Any]:
    """Read a small JSON object; empty if the file is missing, incomplete, or something else."""
    try:
        said = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return said if isinstance(said, dict) else {}


def rewind(log: Path, samples: int) -> None:
    """Drop log lines that a kill cut short, and lines of steps that will be repeated."""
    if not log.exists():
        return
    kept: list[str] = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["samples"] <= samples:
                kept.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    checkpoint.write_whole(log, "".join(kept))


def _unused(out: Path) -> bool:
    """Tell whether `out` is empty, or has only what a refused or killed command leaves before a run begins."""
    if not out.exists():
        return True
    folder = out / RUN
    if any(path != folder for path in out.iterdir()):
        return False
    inside = list(folder.iterdir()) if folder.is_dir() else []
    if folder.is_file() or any(path.name not in BEFORE for path in inside):
        return False
    lock = folder / LOCK
    return not lock.exists() or not lock.stat().st_size or kind_of(folder) is not None


def _in_each_other(one: Path, other: Path) -> bool:
    return one.is_relative_to(other) or other.is_relative_to(one)
