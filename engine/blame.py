"""Fault isolation: finds out whether a failed forward is the fault of single jobs, of the model or of the device."""

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
    """The device computes nothing any more, not even the smallest operation: this process has to end."""


def check_device(device: torch.device) -> None:
    """Raise `DeviceLost` if the device no longer computes."""
    try:
        torch.zeros(1, device=device).add_(1).item()  # waits for the device
    except Exception as error:
        raise DeviceLost(f"the device {device} is lost: {error}") from error


def unforeseen(error: Exception, device: torch.device) -> Unfit:
    """Return the error of a job that failed before its first step: in text encoding or in loading its networks.

    Raises `DeviceLost` if the device caused it.
    """
    check_device(device)
    if is_out_of_memory(error):
        return Unfit("This worker has not enough memory to start this picture.", "worker")
    log.error("a picture failed before its first step", exc_info=error)
    return Unfit("The model failed at this picture before its first step.", "model")


def guilty(
    jobs: Mapping[str, T], error: Exception, forward: Callable[[T], object], harmless: Callable[[], object]
) -> list[str]:
    """Return the jobs that also fail by themselves, after they failed together with `error`.

    Raises `error` if none of them fails alone. Also raises it if all fail and the `harmless` forward on the same model
    fails too: after the device is lost, every later call fails.
    """
    found = [job for job, images in jobs.items() if len(jobs) == 1 or _fails(f"job {job}", partial(forward, images))]
    if not found or (len(found) == len(jobs) and _fails("a harmless picture", harmless)):
        raise error
    log.error("%s failed by itself; the model is well", ", ".join(found), exc_info=error)
    return found


def _fails(what: str, forward: Callable[[], object]) -> bool:
    """Return whether the forward fails. Out of memory does not count: the step of that job alone will show it."""
    try:
        forward()
    except Exception as error:
        log.warning("%s fails by itself: %r", what, error)
        return not is_out_of_memory(error)
    return False


def run_harmless(image: Trajectory | Whole, families: Mapping[str, Family], layouts: Layouts) -> None:
    """Run the image's network once on neutral input, in the shapes of the image's own forward."""
    if isinstance(image, Trajectory):
        _run_empty(image, families[image.model], layouts.size([image]))
    elif image.call is not None:
        args, kwargs = image.call.arguments
        image.call.forward(_zeros(args), _zeros(kwargs))


def _run_empty(image: Trajectory, family: Family, size: int) -> None:
    """Run it with zeros and the empty text, without LoRAs."""
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
