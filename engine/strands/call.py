"""A call to a network's forward, analysed so that calls of several images can be joined by rows.

A leaf of the arguments is *rows* (a tensor, or a list, with one entry for each row of the first argument), *time* (a
timestep without a dimension, which every diffusers network also accepts per row) or *one for all*: equal in all joined
calls. Nothing here runs a network.
"""

from __future__ import annotations

import hashlib
import inspect
import weakref
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

TIMES = ("timestep", "timesteps", "t", "r", "timestep_ratio")
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Forward:
    """A network's forward, computed in `kind` and returned in float32; None: unchanged. Timesteps keep their dtype."""

    net: Any
    kind: torch.dtype | None = None

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.net.forward).parameters)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.kind is None:
            return self.net.forward(*args, **kwargs)
        names = self.names
        args = tuple(each if names[n] in TIMES else cast(each, self.kind) for n, each in enumerate(args))
        kwargs = {name: each if name in TIMES else cast(each, self.kind) for name, each in kwargs.items()}
        return cast(self.net.forward(*args, **kwargs), torch.float32)


@dataclass(frozen=True)
class Call:
    """Calls may be joined only if their `signature` is equal. `rows`: of the network's batch."""

    forward: Forward
    names: tuple[str, ...]  # of the positional arguments
    arguments: Arguments
    rows: int
    signature: Hashable
    times: tuple[Any, ...] = ()  # its timesteps: numbers, or tensors with or without a dimension


class Reader:
    """Analyses one caller's calls to `forward`; caches digests of tensors that come again unchanged."""

    def __init__(self, forward: Forward) -> None:
        self.forward, self._names = forward, forward.names
        self._seen: dict[str, tuple[torch.Tensor, int, str]] = {}

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        names = self._names[: len(args)]
        named = {**dict(zip(names, args, strict=False)), **kwargs}
        rows = count(named.get(self._names[0]) if self._names else None)
        if rows == 0 or len(names) < len(args):  # it cannot be analysed, so it joins no other
            return Call(self.forward, names, (args, kwargs), max(1, rows), object())
        marks = tuple((name, self._mark(named[name], rows, name)) for name in sorted(named))
        times = tuple(named[name] for name in TIMES if isinstance(named.get(name), int | float | torch.Tensor))
        network = weakref.ref(self.forward.net)  # weak: a cached signature must not keep it in memory
        return Call(self.forward, names, (args, kwargs), rows, (network, self.forward.kind, marks), times)

    def _mark(self, value: Any, rows: int, path: str) -> Hashable:
        """Return the part of the signature for this part of the arguments."""
        if is_time(value, path):
            return "time"  # integers and floats can be joined: every network makes floats of them
        if isinstance(value, torch.Tensor):
            kind = (str(value.dtype), str(value.device))
            if is_rows(value, rows):
                return ("rows", tuple(value.shape[1:]), *kind)
            return ("same", tuple(value.shape), *kind, self._content(value, path))
        if is_rows(value, rows):
            return ("rows", frozenset(self._entry(each, f"{path}[{n}]") for n, each in enumerate(value)))
        if isinstance(value, Mapping):
            return ("dict", *((key, self._mark(value[key], rows, f"{path}.{key}")) for key in sorted(value)))
        if isinstance(value, list | tuple):
            return (type(value).__name__, *(self._mark(each, rows, f"{path}.{n}") for n, each in enumerate(value)))
        return (type(value).__name__, value if isinstance(value, Hashable) else id(value))

    def _entry(self, value: Any, path: str) -> Hashable:
        """Return the same for one entry of a list with one entry per row."""
        return (value.shape, str(value.dtype)) if isinstance(value, torch.Tensor) else self._mark(value, -1, path)

    def _content(self, tensor: torch.Tensor, path: str) -> str:
        """Return a digest of a *one for all* tensor (positions, say). It waits for the device, so it is cached."""
        version = -1 if tensor.is_inference() else tensor._version
        known = self._seen.get(path)
        if version < 0 or known is None or known[0] is not tensor or known[1] != version:
            plain = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8)
            known = (tensor, version, hashlib.sha256(plain.numpy().tobytes()).hexdigest())
            self._seen[path] = known
        return known[2]


def count(first: Any) -> int:
    """Return the rows of a network's first argument, its noisy input; 0 if it is no batch or list of tensors."""
    if isinstance(first, torch.Tensor):
        return len(first) if first.dim() else 0
    return len(first) if isinstance(first, list) and all(isinstance(each, torch.Tensor) for each in first) else 0


def is_time(value: Any, path: str) -> bool:
    if isinstance(value, bool) or path not in TIMES:
        return False
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.dim() == 0)


def is_rows(value: Any, rows: int) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() > 0 and len(value) == rows
    return isinstance(value, list) and len(value) == rows


def cast(value: Any, kind: torch.dtype) -> Any:
    """Return the value with every floating-point tensor in another dtype."""
    if isinstance(value, torch.Tensor):
        return value.to(kind) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        return type(value)(**{key: cast(each, kind) for key, each in value.items()})
    return type(value)(cast(each, kind) for each in value) if type(value) in (list, tuple) else value


def times_differ(calls: Sequence[Call]) -> bool:
    """Return whether calls have different timesteps. Waits for the device."""
    first = {tuple(float(torch.as_tensor(t).flatten()[0]) for t in call.times) for call in calls}
    return len(first) > 1


def joined(calls: Sequence[Call], padding: int = 0) -> Arguments:
    """Return the arguments of calls of equal signature as one call; `padding` repeats the first row that often.

    A single call without padding stays unchanged.
    """
    if len(calls) == 1 and not padding:
        return calls[0].arguments
    counts, every = [call.rows for call in calls], [call.arguments for call in calls]
    names, (_, kwargs) = calls[0].names, every[0]
    join = partial(_join, counts=counts, padding=padding, device=_device(every[0]))
    args = tuple(join([each[0][n] for each in every], name=name) for n, name in enumerate(names))
    return args, {name: join([each[1][name] for each in every], name=name) for name in kwargs}


def _device(arguments: Arguments) -> torch.device | None:
    """Return the device of the first tensor with a dimension: a network takes a row of timesteps only from its own."""
    args, kwargs = arguments
    flat = [part for each in (*args, *kwargs.values()) for part in (each if isinstance(each, list) else [each])]
    return next((part.device for part in flat if isinstance(part, torch.Tensor) and part.dim()), None)


def _join(
    values: Sequence[Any], counts: Sequence[int], padding: int, device: torch.device | None, name: str = ""
) -> Any:
    first = values[0]
    if is_time(first, name):
        each = [torch.as_tensor(t, dtype=_wide(t)) for t in values]
        kind = each[0].dtype if len({t.dtype for t in each}) == 1 else torch.float32
        times = [t.to(device, kind).expand(n) for t, n in zip(each, counts, strict=True)]
        return torch.cat([*times, *[times[0][:1]] * padding])
    if is_rows(first, counts[0]):
        if isinstance(first, torch.Tensor):
            return torch.cat([*values, *[first[:1]] * padding])
        return [each for value in values for each in value] + first[:1] * padding
    if isinstance(first, Mapping):
        return {key: _join([value[key] for value in values], counts, padding, device) for key in first}
    if isinstance(first, list | tuple):
        return type(first)(_join(each, counts, padding, device) for each in zip(*values, strict=True))
    return first


def _wide(t: Any) -> torch.dtype | None:
    """Return the dtype that the networks themselves give a number."""
    return torch.float64 if isinstance(t, float) else None


def split(output: Any, counts: Sequence[int], whole: int) -> list[Any]:
    """Return each call's part of an output of `whole` rows. Raises ValueError if it does not consist of rows."""
    if output is None or isinstance(output, bool | int | float | str):
        return [output] * len(counts)
    if is_rows(output, whole):
        starts = [sum(counts[:n]) for n in range(len(counts))]
        return [output[start : start + n] for start, n in zip(starts, counts, strict=True)]
    if isinstance(output, Mapping):  # diffusers' outputs are both dictionaries and dataclasses
        parts = {key: split(value, counts, whole) for key, value in output.items()}
        return [type(output)(**{key: part[n] for key, part in parts.items()}) for n in range(len(counts))]
    if isinstance(output, list | tuple):
        each = [split(value, counts, whole) for value in output]
        return [type(output)(part[n] for part in each) for n in range(len(counts))]
    raise ValueError("the network's output does not consist of rows")
