"""Batches many network calls into few forwards and splits the outputs.

Whether calls may be joined follows from their arguments (`call.py`) and is then *tried*. The first time that calls of a
signature meet, and the first time at different timesteps, each also runs alone. If the outputs differ by more than
rounding, or the joint forward fails, such calls run one by one from then on.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch

from engine.memory import is_out_of_memory
from engine.strands.call import Call, joined, split, times_differ

log = logging.getLogger(__name__)

ROUNDING = {torch.float32: 1e-3, torch.float64: 1e-6}  # relative; swapped rows differ by far more
HALF = 5e-2  # the same for bfloat16 and float16
MOST_TRIED = 1000


class Gathering:
    """`forwards` and `rows` count what ran, trials and padding included."""

    def __init__(self) -> None:
        self.forwards, self.rows = 0, 0
        self._tried: dict[Hashable, bool] = {}

    def run(self, calls: Sequence[Call], most: int, bucket: int | None = None) -> list[Any]:
        """Return the output of each call, in order, from forwards of at most `most` rows (a larger call runs alone).

        With a `bucket`, every forward has exactly that many rows if its calls fit. Then an output's bits do not depend
        on the other calls. Raises what the network raises for a call by itself, or out of memory.
        """
        outputs: list[Any] = [None] * len(calls)
        for group in _groups(calls):
            for chunk in _chunks(calls, group, bucket or most):
                together = [calls[n] for n in chunk]
                for n, output in zip(chunk, self._forward(together, bucket), strict=True):
                    outputs[n] = output
        return outputs

    def _forward(self, calls: list[Call], bucket: int | None) -> list[Any]:
        rows = sum(call.rows for call in calls)
        padding = max(0, bucket - rows) if bucket else 0
        if len(calls) == 1 and not padding:
            return [self._alone(calls[0])]
        meeting = self._meeting(calls, padding)
        if meeting not in self._tried:
            return self._try(calls, padding, meeting)
        return self._together(calls, padding) if self._tried[meeting] else [self._alone(call) for call in calls]

    def _meeting(self, calls: list[Call], padding: int) -> Hashable:
        """Return the key of what is tried once. It compares timesteps only until that has been tried."""
        differing = (calls[0].signature, padding > 0, True)
        if differing in self._tried or (len(calls) > 1 and times_differ(calls)):
            return differing
        return (calls[0].signature, padding > 0, False)

    def _alone(self, call: Call) -> Any:
        self.forwards, self.rows = self.forwards + 1, self.rows + call.rows
        return call.forward(*call.arguments)

    def _together(self, calls: list[Call], padding: int) -> list[Any]:
        arguments, counts = joined(calls, padding), [call.rows for call in calls]
        self.forwards, self.rows = self.forwards + 1, self.rows + sum(counts) + padding
        return split(calls[0].forward(*arguments), counts, sum(counts) + padding)

    def _try(self, calls: list[Call], padding: int, meeting: Hashable) -> list[Any]:
        """Run the calls alone and joined. Non-finite outputs prove nothing, so the next such calls try again."""
        alone = [self._alone(call) for call in calls]
        together = self._tried_together(calls, padding)
        parts = [list(_tensors(each)) for each in alone]
        if not all(part.isfinite().all() for each in parts for part in each):
            return alone
        same = together is not None and all(
            _alike(part, list(_tensors(other))) for part, other in zip(parts, together, strict=True)
        )
        if len(self._tried) >= MOST_TRIED:
            self._tried.clear()
        self._tried[meeting] = same
        if not same:
            log.warning("calls to %s cannot be joined by rows: they run one by one from now on", _name(calls[0]))
        return together if same and together is not None else alone

    def _tried_together(self, calls: list[Call], padding: int) -> list[Any] | None:
        try:
            return self._together(calls, padding)
        except Exception as error:
            if is_out_of_memory(error):
                raise
            log.info("%s failed on joined calls: %r", _name(calls[0]), error)
            return None


def _groups(calls: Sequence[Call]) -> list[list[int]]:
    """Return the indices of calls of equal signature, in order."""
    groups: dict[Hashable, list[int]] = {}
    for place, call in enumerate(calls):
        groups.setdefault(call.signature, []).append(place)
    return list(groups.values())


def _chunks(calls: Sequence[Call], places: list[int], most: int) -> Iterator[list[int]]:
    chunk: list[int] = []
    for place in places:
        if chunk and sum(calls[n].rows for n in chunk) + calls[place].rows > most:
            yield chunk
            chunk = []
        chunk.append(place)
    yield chunk


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, dict):
        yield from _tensors(list(output.values()))
    elif isinstance(output, list | tuple):
        for each in output:
            yield from _tensors(each)


def _alike(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    if [part.shape for part in some] != [part.shape for part in others]:
        return False
    return all(_near(one, other) for one, other in zip(some, others, strict=True))


def _near(one: torch.Tensor, other: torch.Tensor) -> bool:
    if not one.is_floating_point():
        return bool(torch.equal(one, other))
    scale = float(one.double().norm())
    return float((one.double() - other.double()).norm()) <= ROUNDING.get(one.dtype, HALF) * scale


def _name(call: Call) -> str:
    return type(call.forward.net).__name__
