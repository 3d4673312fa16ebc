"""Limits a thread that computes beside the engine to one core."""

from __future__ import annotations

import threading

import torch


def limit_to_one_core(engine_threads: int) -> None:
    """Make torch compute on one core in this thread: a second team of threads would fight the engine's for the cores.

    torch also gives the number to every thread that starts later, and another number gives other last bits. So a
    short-lived thread resets it for them to `engine_threads`.
    """
    torch.get_num_threads()  # a thread adopts the global number at its first call: make that call now
    torch.set_num_threads(1)
    reset_thread = threading.Thread(target=torch.set_num_threads, args=(engine_threads,))
    reset_thread.start()
    reset_thread.join()
