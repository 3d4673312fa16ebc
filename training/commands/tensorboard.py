"""Writes a run's figures to TensorBoard, if it is installed. It works with any trainer."""

from __future__ import annotations

import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from training.commands.progress import print_status
from training.core.run import MetricsWriter


@contextmanager
def open_tensorboard(folder: Path, samples: int) -> Generator[MetricsWriter | None]:
    """Yield a TensorBoard writer for `folder`, or None without TensorBoard.

    A resumed run drops curves after `samples`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # TensorBoard warns about its own dependencies
            from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        print_status(
            "TensorBoard is not installed (pip install 'darkroom-bot[train]'); the figures are in run/log.jsonl."
        )
        yield None
        return
    with SummaryWriter(str(folder), purge_step=samples or None) as writer:
        yield writer
