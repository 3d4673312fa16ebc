"""The folder `run/` of one training run: its owner, its lock, its position, and how to clear it.

The lock file names our command, so no other folder called `run/` is mistaken for ours. It deletes only files that a run
writes. It is the same for every kind of network.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from training.core import checkpoint
from training.core.run import CHECKPOINT_FILE

RUN_FOLDER = "run"
LOCK_FILE = "lock"
LOG_FILE = "log.jsonl"
FINISHED_FILE = "finished.json"
MERGED_FILE = "merged.json"
STAGING_FOLDER = "whole"
TENSORBOARD_FOLDER = "tensorboard"
RUN_FILES = (
    CHECKPOINT_FILE,
    f"{CHECKPOINT_FILE}.fresh",
    LOG_FILE,
    FINISHED_FILE,
    MERGED_FILE,
    "sheets",
    TENSORBOARD_FOLDER,
    STAGING_FOLDER,
)
LOCK_PREFIX = "darkroom train "
LOCK_BYTES = 64
EARLY_FILES = (LOCK_FILE, "skipped.txt")  # files that exist before the first checkpoint


def refuse_foreign(out: Path, kind: str, data: Path | None = None) -> None:
    """Raise ValueError if `out` cannot be the folder of a run of this kind. Changes nothing."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out names a folder, and {out} is a file.")
    if data is not None and _are_nested(out.resolve(), data.resolve()):
        raise ValueError(f"One of --out {out} and --data {data} is inside the other: take two folders.")
    folder = out / RUN_FOLDER
    for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        if path.is_symlink():
            raise ValueError(f"{path} is a link, and runs do not follow links: take another folder for --out.")
    if _is_unused(out):
        return
    if (existing_kind := read_kind(folder)) is None:
        raise ValueError(f"{out} is not empty and holds no run: take another folder for --out.")
    if existing_kind != kind:
        raise ValueError(f"{out} holds a run of `darkroom train {existing_kind}`: take another folder for --out.")


def read_kind(folder: Path) -> str | None:
    """Return the command of this run, by its lock, or None."""
    try:
        with (folder / LOCK_FILE).open("rb") as lock:
            content = lock.read(LOCK_BYTES).decode(errors="replace")
    except OSError:
        return None
    return content.removeprefix(LOCK_PREFIX).strip() if content.startswith(LOCK_PREFIX) else None


@contextmanager
def lock_run(folder: Path, kind: str) -> Generator[None]:
    """Hold a lock that the system releases when the process ends in any way. Follows no link."""
    descriptor = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
    with os.fdopen(descriptor, "r+b") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"Another process is training in {folder.parent}.") from None
        lock.write(f"{LOCK_PREFIX}{kind}\n".encode())
        lock.flush()
        lock.truncate()
        yield


def read_position(folder: Path) -> dict[str, Any] | None:
    """Return the run's position; None without a checkpoint. Raises ValueError if the checkpoint is not one of ours."""
    path = folder / CHECKPOINT_FILE
    if not path.exists():
        return None
    position = checkpoint.read_position(path)
    kinds = {"steps": int, "kept": int, "started": (int, float), "settings": dict, "origin": dict}
    if not all(isinstance(position.get(name), kind) for name, kind in kinds.items()):
        raise ValueError(f"{path} is not a complete checkpoint: start over with --fresh.")
    return position


def clear_run(folder: Path) -> None:
    """Delete a run's files, the checkpoint first: without it the others do not count."""
    for path in (folder / name for name in RUN_FILES):
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a small JSON object; empty if the file is missing, incomplete, or something else."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], content) if isinstance(content, dict) else {}


def trim_log(log: Path, samples: int) -> None:
    """Drop log lines that a kill cut short, and lines of steps that will be repeated."""
    if not log.exists():
        return
    lines: list[str] = []
    for line in log.read_text(errors="replace").splitlines():
        try:
            if json.loads(line)["samples"] <= samples:
                lines.append(line + "\n")
        except (ValueError, KeyError, TypeError):
            continue
    checkpoint.write_atomically(log, "".join(lines))


def _is_unused(out: Path) -> bool:
    """Tell whether `out` is empty, or has only what a refused or killed command leaves before a run begins."""
    if not out.exists():
        return True
    folder = out / RUN_FOLDER
    if any(path != folder for path in out.iterdir()):
        return False
    run_files = list(folder.iterdir()) if folder.is_dir() else []
    if folder.is_file() or any(path.name not in EARLY_FILES for path in run_files):
        return False
    lock = folder / LOCK_FILE
    return not lock.exists() or not lock.stat().st_size or read_kind(folder) is not None


def _are_nested(first: Path, second: Path) -> bool:
    return first.is_relative_to(second) or second.is_relative_to(first)
