"""Whose fault a failed forward is: single jobs', or the device's or the model's, which is the worker's end.

Knows how forwards are tried once more; nothing of what becomes of the guilty.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import msgspec
import torch

from engine.families.family import Family
from engine.layouts import Layouts
from engine.memory import is_out_of_memory
from engine.trajectory import Trajectory
from engine.unfit import Unfit
from engine.whole import Whole

log = logging.getLogger(__name__)

T = TypeVar("T")


class DeviceLost(RuntimeError):
    """Not even the smallest thing can be computed any more: this process has to end."""


def check_device(device: torch.device) -> None:
    """Raises `DeviceLost`."""
    try:
        torch.zeros(1, device=device).add_(1).item()  # waits for the device
    except Exception as error:
        raise DeviceLost(f"the device {device} is lost: {error}") from error


def unforeseen(error: Exception, device: torch.device) -> Unfit:
    """What is said of a job that could not even be begun: its words could not be read, or its networks not be had.

    Raises `DeviceLost` where that is the device's end, and so the worker's.
    """
    check_device(device)
    if is_out_of_memory(error):
        return Unfit("This worker has not enough memory to begin this picture.", "worker")
    log.error("a picture could not be begun", exc_info=error)
    return Unfit("The model failed at this picture before its first step.", "model")


def guilty(
    jobs: Mapping[str, T], error: Exception, forward: Callable[[T], object], harmless: Callable[[], object]
) -> list[str]:
    """The jobs that fail by themselves too, after all together failed with `error`.

    Raises `error` where none of them does, or all do and what is `harmless` fails on the same model as well: so it is
    where a device is lost, for then every later call fails, whoever's it is.
    """
    found = [job for job, images in jobs.items() if len(jobs) == 1 or _fails(f"job {job}", partial(forward, images))]
    if not found or (len(found) == len(jobs) and _fails("a harmless picture", harmless)):
        raise error
    log.error("%s failed by itself; the model is well", ", ".join(found), exc_info=error)
    return found


def _fails(what: str, forward: Callable[[], object]) -> bool:
    """Want of memory is another matter: whoever runs short of it alone is found out at its own step."""
    try:
        forward()
    except Exception as error:
        log.warning("%s fails by itself: %r", what, error)
        return not is_out_of_memory(error)
    return False


def run_harmless(image: Trajectory | Whole, families: Mapping[str, Family], layouts: Layouts) -> None:
    """The network of an image once, at numbers that no job has chosen, in the shapes of the image's own forward."""
    if isinstance(image, Trajectory):
        _run_empty(image, families[image.model], layouts.size([image]))
    elif image.call is not None:
        args, kwargs = image.call.arguments
        image.call.forward(_zeros(args), _zeros(kwargs))


def _run_empty(image: Trajectory, family: Family, size: int) -> None:
    """Zeros and the empty text, without LoRAs."""
    recipe = msgspec.structs.replace(image.recipe, loras=())
    texts = tuple(torch.stack([part] * size) for part in family.condition("", recipe))
    x = torch.zeros(size, *image.x.shape, device=image.x.device)
    t = torch.full((size,), float(image.plan.table[image.k][0]), device=image.x.device)
    family.denoise(x, t, texts, image.dtype)


def _zeros(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, Mapping):
        return {key: _zeros(each) for key, each in value.items()}
    return type(value)(_zeros(each) for each in value) if type(value) in (list, tuple) else value
