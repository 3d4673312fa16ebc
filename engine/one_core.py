"""A thread that computes beside the engine and takes one core for it. Knows torch's threads; no work."""

from __future__ import annotations

import threading

import torch


def take_one_core(cores: int) -> None:
    """This thread computes alone: a second team of threads would fight the engine's for the same cores.

    torch also hands the number to every thread that starts later, and other numbers of threads give other last bits; so
    a thread of a moment sets it back for them to `cores`.
    """
    torch.get_num_threads()  # a thread takes the common number when it first asks: now, not after the next line
    torch.set_num_threads(1)
    back = threading.Thread(target=torch.set_num_threads, args=(cores,))
    back.start()
    back.join()
