"""An unmodified pipeline's call: its arguments, its clone with two hooks, and its network's forwards.

A call to a network's forward is analysed so that a batch can join calls of several images by rows.

A leaf of the arguments is *rows* (a tensor, or a list, with one entry for each row of the first argument), *time* (a
timestep without a dimension, which every diffusers network also accepts per row) or *one for all*: equal in all joined
calls. Nothing here runs a network.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import weakref
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, cast

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin

from engine.contract import FULL_INTERVAL, JobRejected, Recipe, has_skipped_steps, noise_seed
from engine.prompt.emphasis import strip_emphasis

TIMESTEP_NAMES = ("timestep", "timesteps", "t", "r", "timestep_ratio")
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class NetworkForward:
    """A network's forward, computed in `dtype` and returned in float32; None: unchanged. Timesteps keep their dtype."""

    net: Any
    dtype: torch.dtype | None = None

    @property
    def parameter_names(self) -> tuple[str, ...]:
        return tuple(inspect.signature(self.net.forward).parameters)

    def __call__(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.dtype is None:
            return self.net.forward(*args, **kwargs)
        names = self.parameter_names
        args = tuple(
            each if names[n] in TIMESTEP_NAMES else cast_tensors(each, self.dtype) for n, each in enumerate(args)
        )
        kwargs = {
            name: each if name in TIMESTEP_NAMES else cast_tensors(each, self.dtype) for name, each in kwargs.items()
        }
        return cast_tensors(self.net.forward(*args, **kwargs), torch.float32)


@dataclass(frozen=True)
class NetworkCall:
    """Calls may be joined only if their `signature` is equal. `rows`: of the network's batch."""

    forward: NetworkForward
    argument_names: tuple[str, ...]  # of the positional arguments
    arguments: Arguments
    rows: int
    signature: Hashable
    timesteps: tuple[Any, ...] = ()  # its timesteps: numbers, or tensors with or without a dimension


class CallAnalyzer:
    """Analyses one caller's calls to `forward`; caches digests of tensors that come again unchanged."""

    def __init__(self, forward: NetworkForward) -> None:
        self.forward = forward
        self._parameter_names = forward.parameter_names
        self._digests: dict[str, tuple[torch.Tensor, int, str]] = {}

    def analyze(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NetworkCall:
        names = self._parameter_names[: len(args)]
        values = {**dict(zip(names, args, strict=False)), **kwargs}
        rows = count_rows(values.get(self._parameter_names[0]) if self._parameter_names else None)
        if rows == 0 or len(names) < len(args):  # it cannot be analysed, so it joins no other
            return NetworkCall(self.forward, names, (args, kwargs), max(1, rows), object())
        signatures = tuple((name, self._make_signature(values[name], rows, name)) for name in sorted(values))
        timesteps = tuple(
            values[name] for name in TIMESTEP_NAMES if isinstance(values.get(name), int | float | torch.Tensor)
        )
        network_ref = weakref.ref(self.forward.net)  # weak: a cached signature must not keep it in memory
        return NetworkCall(
            self.forward, names, (args, kwargs), rows, (network_ref, self.forward.dtype, signatures), timesteps
        )

    def _make_signature(self, value: Any, rows: int, path: str) -> Hashable:
        if is_timestep(value, path):
            return "time"  # integers and floats can be joined: every network makes floats of them
        if isinstance(value, torch.Tensor):
            tensor_type = (str(value.dtype), str(value.device))
            if is_rows(value, rows):
                return ("rows", tuple(value.shape[1:]), *tensor_type)
            return ("same", tuple(value.shape), *tensor_type, self._digest_tensor(value, path))
        kind = type(value).__name__
        if is_rows(value, rows):
            return ("rows", frozenset(self._make_entry_signature(each, f"{path}[{n}]") for n, each in enumerate(value)))
        if isinstance(value, Mapping):
            items = cast(Mapping[str, Any], value)
            return ("dict", *((key, self._make_signature(items[key], rows, f"{path}.{key}")) for key in sorted(items)))
        if isinstance(value, list | tuple):
            parts = enumerate(cast(Sequence[Any], value))
            return (kind, *(self._make_signature(each, rows, f"{path}.{n}") for n, each in parts))
        return (kind, value if isinstance(value, Hashable) else id(value))

    def _make_entry_signature(self, value: Any, path: str) -> Hashable:
        if isinstance(value, torch.Tensor):
            return value.shape, str(value.dtype)
        return self._make_signature(value, -1, path)

    def _digest_tensor(self, tensor: torch.Tensor, path: str) -> str:
        """Return a digest of a *one for all* tensor (positions, say). It waits for the device, so it is cached."""
        version = -1 if tensor.is_inference() else tensor._version
        cached = self._digests.get(path)
        if version < 0 or cached is None or cached[0] is not tensor or cached[1] != version:
            content = tensor.detach().to("cpu").contiguous().flatten().view(torch.uint8)
            cached = (tensor, version, hashlib.sha256(content.numpy().tobytes()).hexdigest())
            self._digests[path] = cached
        return cached[2]


def count_rows(argument: Any) -> int:
    """Return the rows of a network's first argument, its noisy input; 0 if it is no batch or list of tensors."""
    if isinstance(argument, torch.Tensor):
        return len(argument) if argument.dim() else 0
    parts = cast(list[Any], argument) if isinstance(argument, list) else []
    return len(parts) if all(isinstance(each, torch.Tensor) for each in parts) else 0


def is_timestep(value: Any, path: str) -> bool:
    if isinstance(value, bool) or path not in TIMESTEP_NAMES:
        return False
    return isinstance(value, int | float) or (isinstance(value, torch.Tensor) and value.dim() == 0)


def is_rows(value: Any, rows: int) -> bool:
    if isinstance(value, torch.Tensor):
        return value.dim() > 0 and len(value) == rows
    return isinstance(value, list) and len(cast(list[Any], value)) == rows


def cast_tensors(value: Any, dtype: torch.dtype) -> Any:
    """Return the value with every floating-point tensor in another dtype."""
    if isinstance(value, torch.Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, Mapping):
        items = cast(Mapping[str, Any], value)
        return cast(Any, type(items))(**{key: cast_tensors(each, dtype) for key, each in items.items()})
    return type(value)(cast_tensors(each, dtype) for each in value) if type(value) in (list, tuple) else value


def has_different_timesteps(calls: Sequence[NetworkCall]) -> bool:
    """Return whether calls have different timesteps. Waits for the device."""
    timesteps = {tuple(float(torch.as_tensor(t).flatten()[0]) for t in call.timesteps) for call in calls}
    return len(timesteps) > 1


def join_calls(calls: Sequence[NetworkCall], padding: int = 0) -> Arguments:
    """Return the arguments of calls of equal signature as one call; `padding` repeats the first row that often.

    A single call without padding stays unchanged.
    """
    if len(calls) == 1 and not padding:
        return calls[0].arguments
    counts = [call.rows for call in calls]
    call_arguments = [call.arguments for call in calls]
    names, (_, kwargs) = calls[0].argument_names, call_arguments[0]
    join_argument = partial(_join_values, counts=counts, padding=padding, device=_find_device(call_arguments[0]))
    args = tuple(join_argument([each[0][n] for each in call_arguments], name=name) for n, name in enumerate(names))
    return args, {name: join_argument([each[1][name] for each in call_arguments], name=name) for name in kwargs}


def _find_device(arguments: Arguments) -> torch.device | None:
    """Return the device of the first tensor with a dimension: a network takes a row of timesteps only from its own."""
    args, kwargs = arguments
    leaves = [
        part
        for each in (*args, *kwargs.values())
        for part in (cast(list[Any], each) if isinstance(each, list) else [each])
    ]
    return next((part.device for part in leaves if isinstance(part, torch.Tensor) and part.dim()), None)


def _join_values(
    values: Sequence[Any], counts: Sequence[int], padding: int, device: torch.device | None, name: str = ""
) -> Any:
    first = values[0]
    kind = cast(Any, type(first))
    if is_timestep(first, name):
        tensors = [torch.as_tensor(t, dtype=_choose_dtype(t)) for t in values]
        dtype = tensors[0].dtype if len({t.dtype for t in tensors}) == 1 else torch.float32
        timesteps = [t.to(device, dtype).expand(n) for t, n in zip(tensors, counts, strict=True)]
        return torch.cat([*timesteps, *[timesteps[0][:1]] * padding])
    if is_rows(first, counts[0]):
        if isinstance(first, torch.Tensor):
            return torch.cat([*values, *[first[:1]] * padding])
        return [each for value in values for each in value] + first[:1] * padding
    if isinstance(first, Mapping):
        keys = cast(Mapping[str, Any], first)
        return {key: _join_values([value[key] for value in values], counts, padding, device) for key in keys}
    if isinstance(first, list | tuple):
        return kind(_join_values(each, counts, padding, device) for each in zip(*values, strict=True))
    return first


def _choose_dtype(t: Any) -> torch.dtype | None:
    """Return the dtype that the networks themselves give a number."""
    return torch.float64 if isinstance(t, float) else None


def split_output(output: Any, counts: Sequence[int], total_rows: int) -> list[Any]:
    """Return each call's part of an output of `total_rows` rows. Raises ValueError if it does not consist of rows."""
    if output is None or isinstance(output, bool | int | float | str):
        return [output] * len(counts)
    if is_rows(output, total_rows):
        starts = [sum(counts[:n]) for n in range(len(counts))]
        return [output[start : start + n] for start, n in zip(starts, counts, strict=True)]
    kind = cast(Any, type(output))
    if isinstance(output, Mapping):  # diffusers' outputs are both dictionaries and dataclasses
        items = cast(Mapping[str, Any], output)
        parts = {key: split_output(value, counts, total_rows) for key, value in items.items()}
        return [kind(**{key: part[n] for key, part in parts.items()}) for n in range(len(counts))]
    if isinstance(output, list | tuple):
        split_parts = [split_output(value, counts, total_rows) for value in cast(Sequence[Any], output)]
        return [kind(part[n] for part in split_parts) for n in range(len(counts))]
    raise ValueError("the network's output does not consist of rows")


def refuse_unsupported_recipe(recipe: Recipe) -> None:
    """Raise `JobRejected` for a recipe that only the batching engine supports."""
    prefix = f"With the sampler {recipe.sampler}, this model's pictures go through its own pipeline as a whole, which"
    if [concept.weight for concept in recipe.concepts] != [1.0]:
        raise JobRejected(f"{prefix} takes one prompt without weights.", "member")
    if recipe.lineage:
        raise JobRejected(f"{prefix} supports no variations.", "member")
    if recipe.guidance_interval != FULL_INTERVAL:
        raise JobRejected(f"{prefix} applies guidance at every step.", "member")
    if has_skipped_steps(recipe):
        raise JobRejected(f"{prefix} evaluates the network at every step.", "member")
    if recipe.controls or recipe.references:
        raise JobRejected(f"{prefix} takes no control or reference pictures: take the sampler ddim.", "member")
    if recipe.start is not None or recipe.stop_at < 1.0 or recipe.tile or recipe.mixed or recipe.interpolation:
        limits = "starts from noise, runs to the end, and supports no tiles, mixed prompts or walks"
        raise JobRejected(
            f"{prefix} {limits}: take the sampler ddim, or another model where this one has none.", "member"
        )


def make_arguments(pipeline: Any, recipe: Recipe, image: int, output_type: str, no_guidance: float) -> dict[str, Any]:
    """Return the arguments of `pipeline(...)` for one image; only those in its signature.

    `no_guidance` is this pipeline's value for our guidance of 1. Sizes are not binned and prompts not cleaned: whether
    a pipeline can clean them depends on other installed packages.
    """
    parameters = inspect.signature(type(pipeline).__call__).parameters
    scale = recipe.guidance - 1.0 + no_guidance
    # guidance_scale is then an input of the network
    has_guidance_rows = "true_cfg_scale" in parameters and recipe.guidance_kind == "rows"
    arguments: dict[str, Any] = {
        "prompt": " ".join(strip_emphasis(concept.text) for concept in recipe.concepts),
        "negative_prompt": strip_emphasis(recipe.negative) or _choose_empty_negative(pipeline),
        "width": recipe.width,
        "height": recipe.height,
        "num_inference_steps": recipe.steps,
        "eta": recipe.eta,
        "true_cfg_scale" if has_guidance_rows else "guidance_scale": scale,
        "num_images_per_prompt": 1,
        "generator": torch.Generator().manual_seed(noise_seed(recipe, image)),
        "output_type": output_type,
        "use_resolution_binning": False,
        "clean_caption": False,
    }
    if recipe.steps != 2:
        arguments["intermediate_timesteps"] = None  # Sana Sprint's default only fits two steps
    if not has_guidance_rows and "true_cfg_scale" in parameters:
        del arguments["negative_prompt"]  # no unconditional row runs, so a negative prompt has no effect
    return {name: value for name, value in arguments.items() if name in parameters}


def _choose_empty_negative(pipeline: Any) -> str | None:
    """Return the empty negative prompt. SDXL encodes an empty text but uses zeros for None; others need a text."""
    return None if pipeline.config.get("force_zeros_for_empty_prompt") else ""


NETWORK_NAMES = ("unet", "transformer", "transformer_2", "prior", "decoder")  # that a pipeline runs at each step
TEXT_ENCODER_PREFIX = "text_encoder"  # of the names of a pipeline's text encoders
X0_SCHEDULERS = (  # schedulers whose result tuple ends with x0
    "DDIMScheduler",
    "DDPMScheduler",
    "DPMSolverSDEScheduler",
    "EDMEulerScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
)
MULTISTEP_SCHEDULERS = ("DPMSolverMultistepScheduler", "UniPCMultistepScheduler")  # schedulers that store x0

RunCall = Callable[[NetworkCall], Any]
OnSamplerStep = Callable[["SamplerProgress"], None]
MakeForward = Callable[[str, Any], NetworkForward]  # attribute name and the pipeline's network → the forward to run


@dataclass(frozen=True)
class SamplerProgress:
    """A sampler has done `step` of `total_steps` evaluations: its sample, and its x0 if known.

    Samplers such as Heun's need several evaluations per step.
    """

    sampler: int  # its scheduler's identity: a pipeline may have several
    step: int
    total_steps: int
    sample: torch.Tensor
    x0: torch.Tensor | None


def clone_pipeline(
    pipeline: Any, run_call: RunCall, on_step: OnSamplerStep, make_forward: MakeForward, scheduler: Any = None
) -> Any:
    """Return a clone of `pipeline`, with `scheduler` in place of its own if given. Its progress bar is off."""
    cloner = _PipelineCloner(run_call, on_step, make_forward)
    if scheduler is not None:
        cloner.clones[id(pipeline.scheduler)] = watch_scheduler(scheduler, on_step)
    return cloner.clone(pipeline)


class _PipelineCloner:
    """Clones a pipeline. Nested pipelines share schedulers, and so do their clones."""

    def __init__(self, run_call: RunCall, on_step: OnSamplerStep, make_forward: MakeForward) -> None:
        self._run_call = run_call
        self._on_step = on_step
        self._make_forward = make_forward
        self.clones: dict[int, Any] = {}

    def clone(self, pipeline: Any) -> Any:
        clone = copy.copy(pipeline)
        for name, part in list(cast(dict[str, Any], vars(pipeline)).items()):
            vars(clone)[name] = self._clone_part(name, part)
        clone.set_progress_bar_config(disable=True)
        return clone

    def _clone_part(self, name: str, part: Any) -> Any:
        is_cloned = isinstance(part, SchedulerMixin) or _is_pipeline(part)
        if not is_cloned and not (isinstance(part, torch.nn.Module) and name in NETWORK_NAMES):
            return part
        if id(part) not in self.clones:
            self.clones[id(part)] = self._make_clone(name, part)
        return self.clones[id(part)]

    def _make_clone(self, name: str, part: Any) -> Any:
        if _is_pipeline(part):
            return self.clone(part)
        if isinstance(part, SchedulerMixin):
            return watch_scheduler(part, self._on_step)
        return wrap_network(self._make_forward(name, part), self._run_call)


def _is_pipeline(part: Any) -> bool:
    # it takes seconds to import, for which a worker without pipelines need not wait
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    return isinstance(part, DiffusionPipeline)


def wrap_network(real_forward: NetworkForward, run_call: RunCall) -> Any:
    """Return a network with the same weights whose forward calls `run_call`. It reports float32 as its dtype."""
    network_copy = copy.copy(real_forward.net)
    analyzer = CallAnalyzer(real_forward)

    @wraps(real_forward.net.forward)
    def forward(*args: Any, **kwargs: Any) -> Any:
        return run_call(analyzer.analyze(args, kwargs))

    network_copy.forward = forward
    if real_forward.dtype is not None:
        network_class = cast(type[Any], type(network_copy))
        network_copy.__class__ = type(
            network_class.__name__, (network_class,), {"dtype": property(lambda self: torch.float32)}
        )
    return network_copy


def watch_scheduler(scheduler: Any, on_step: OnSamplerStep) -> Any:
    """Return a copy of a scheduler that reports each step. It has its own class, so that copies of it work too."""
    scheduler_copy = copy.deepcopy(scheduler)
    scheduler_class = cast(type[Any], type(scheduler))

    @wraps(scheduler_class.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = scheduler_class.step(self, *args, **kwargs)
        self.reported_steps = getattr(self, "reported_steps", 0) + 1
        sample = _get_sample(result)
        x0 = _get_x0(self, scheduler_class.__name__, args, result)
        on_step(SamplerProgress(id(self), self.reported_steps, len(self.timesteps), sample, x0))
        return result

    scheduler_copy.__class__ = type(scheduler_class.__name__, (scheduler_class,), {"step": step})
    return scheduler_copy


def _get_sample(result: Any) -> torch.Tensor:
    return cast(tuple[Any, ...], result)[0] if isinstance(result, tuple) else result.prev_sample


def _get_x0(scheduler: Any, class_name: str, args: tuple[Any, ...], result: Any) -> torch.Tensor | None:
    """Return the scheduler's own x0, or None if it is not known to have one."""
    if isinstance(result, dict) and cast(dict[str, Any], result).get("pred_original_sample") is not None:
        return cast(dict[str, Any], result)["pred_original_sample"]
    if class_name in X0_SCHEDULERS and isinstance(result, tuple) and len(outputs := cast(tuple[Any, ...], result)) > 1:
        return outputs[1]
    config = scheduler.config
    if class_name in MULTISTEP_SCHEDULERS and (config.get("predict_x0") or "++" in str(config.get("algorithm_type"))):
        return scheduler.model_outputs[-1]
    if class_name == "FlowMatchEulerDiscreteScheduler" and len(args) >= 3 and scheduler.step_index:
        sigma = scheduler.sigmas[scheduler.step_index - 1]  # x = (1 - sigma)·x0 + sigma·noise (Lipman et al. 2022)
        return args[2].float() - sigma * args[0].float()
    return None
