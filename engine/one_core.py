"""Limits a thread that computes beside the engine to one core."""

from __future__ import annotations

import threading

import torch


def take_one_core(cores: int) -> None:
    """Make torch compute on one core in this thread: a second team of threads would fight the engine's for the cores.

    torch also gives the number to every thread that starts later, and another number gives other last bits. So a
    short-lived thread resets it for them to `cores`.
    """
    torch.get_num_threads()  # a thread adopts the global number at its first call: make that call now
    torch.set_num_threads(1)
    back = threading.Thread(target=torch.set_num_threads, args=(cores,))
    back.start()
    back.join()
