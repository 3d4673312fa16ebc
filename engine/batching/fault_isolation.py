"""Fault isolation: finds out whether a failed forward is the fault of single jobs, of the model or of the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar, cast

import msgspec
import torch

from engine.batching.batch import BatchLayouts
from engine.batching.pipeline_images import PipelineImage
from engine.batching.trajectory import Trajectory
from engine.contract import JobRejected
from engine.device.memory import is_out_of_memory
from engine.models.family import Family

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


def reject_before_start(error: Exception, device: torch.device) -> JobRejected:
    """Return the error of a job that failed before its first step: in text encoding or in loading its networks.

    Raises `DeviceLost` if the device caused it.
    """
    check_device(device)
    if is_out_of_memory(error):
        return JobRejected("This worker has not enough memory to start this picture.", "worker")
    log.error("a picture failed before its first step", exc_info=error)
    return JobRejected("The model failed at this picture before its first step.", "model")


def find_failing_jobs(
    jobs: Mapping[str, T],
    error: Exception,
    run_forward: Callable[[T], object],
    run_harmless_forward: Callable[[], object],
) -> list[str]:
    """Return the jobs that also fail by themselves, after they failed together with `error`.

    Raises `error` if none of them fails alone. Also raises it if all fail and `run_harmless_forward` on the same model
    fails too: after the device is lost, every later call fails.
    """
    failing = [
        job
        for job, job_images in jobs.items()
        if len(jobs) == 1 or _does_fail(f"job {job}", partial(run_forward, job_images))
    ]
    if not failing or (len(failing) == len(jobs) and _does_fail("the test forward", run_harmless_forward)):
        raise error
    log.error("job %s failed; the model's test forward succeeded", ", ".join(failing), exc_info=error)
    return failing


def _does_fail(subject: str, run_forward: Callable[[], object]) -> bool:
    """Return whether the forward fails. Out of memory does not count: the step of that job alone will show it."""
    try:
        run_forward()
    except Exception as error:
        log.warning("%s fails by itself: %r", subject, error)
        return not is_out_of_memory(error)
    return False


def run_harmless(image: Trajectory | PipelineImage, families: Mapping[str, Family], layouts: BatchLayouts) -> None:
    """Run the image's network once on neutral input, in the shapes of the image's own forward."""
    if isinstance(image, Trajectory):
        _run_empty_prompt(image, families[image.model], layouts.forward_rows([image]))
    elif image.pending_call is not None:
        args, kwargs = image.pending_call.arguments
        image.pending_call.forward(_zeros_like(args), _zeros_like(kwargs))


def _run_empty_prompt(image: Trajectory, family: Family, size: int) -> None:
    recipe = msgspec.structs.replace(image.recipe, loras=())
    conditioning = tuple(torch.stack([part] * size) for part in family.encode_conditioning("", recipe))
    x = torch.zeros(size, *image.x.shape, device=image.x.device)
    t = torch.full((size,), float(image.plan.coefficients_at(image.k)[0]), device=image.x.device)
    family.denoise(x, t, conditioning, image.dtype)


def _zeros_like(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return torch.zeros_like(value)
    if isinstance(value, Mapping):
        return {key: _zeros_like(item) for key, item in cast(Mapping[Any, Any], value).items()}
    return type(value)(_zeros_like(each) for each in value) if type(value) in (list, tuple) else value
