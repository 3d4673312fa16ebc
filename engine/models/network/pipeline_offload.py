"""Offloads a pipeline's modules or layers: they are on the device only while they run."""

from __future__ import annotations

import copy
import fcntl
import logging
import os
import shutil
import tempfile
import threading
import weakref
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.hooks.group_offloading import ModuleGroup, apply_group_offloading
from diffusers.hooks.hooks import HookRegistry
from diffusers.pipelines.pipeline_utils import DiffusionPipeline
from torch import nn

from engine.contract import JobRejected
from engine.pipelines.network_call import NETWORK_NAMES, TEXT_ENCODER_PREFIX
from engine.process.load_progress import format_size
from engine.process.memory_requests import Offload

log = logging.getLogger(__name__)


def offload_parts(pipeline: Any, mode: Offload, device: torch.device, data: Path) -> Any:
    """Offload the parts of a pipeline before they are moved to `device`, and return it. Raises `JobRejected`.

    `data`: the folder in which, on a processor, files of layers wait.
    """
    for name, part in _iterate_parts(pipeline):
        part.eval().requires_grad_(False)
        is_plain = _has_plain_weights(part)
        if name in NETWORK_NAMES and mode == "layers":
            if device.type == "cpu" and not is_plain:
                log.warning("quantised weights cannot wait in files: those of a %s stay in memory", type(part).__name__)
            else:
                offload_layers(part, device, data)
        elif name.startswith(TEXT_ENCODER_PREFIX) and (mode == "layers" or device.type != "cpu"):
            if is_plain:
                offload_layers(part, device, data)
            elif device.type != "cpu":
                offload_to_cpu(part, device)
    return pipeline


def _iterate_parts(pipeline: Any) -> Iterator[tuple[str, Any]]:
    """Yield the modules of a pipeline by name, those of pipelines inside included."""
    for name, part in list(cast(dict[str, Any], vars(pipeline)).items()):
        if isinstance(part, DiffusionPipeline):
            yield from _iterate_parts(part)
        elif isinstance(part, torch.nn.Module):
            yield name, part


def _has_plain_weights(module: torch.nn.Module) -> bool:
    """Whether no library stores the weights in fewer bits, with more beside them."""
    return all(type(each) is torch.nn.Parameter for each in module.parameters())


RUN_DEVICE = "_run_device"  # attribute of an offloaded module: the device on which it runs


def offload_to_cpu(module: nn.Module, device: torch.device) -> None:
    """Keep the module on the host, and on the device only inside its forward."""
    module.to("cpu")
    vars(module)[RUN_DEVICE] = device

    def move_to_device(hooked_module: nn.Module, _: Any) -> None:
        hooked_module.to(device)

    def move_to_cpu(hooked_module: nn.Module, _: Any, out: Any) -> Any:
        hooked_module.to("cpu")
        return out

    module.register_forward_pre_hook(move_to_device)
    module.register_forward_hook(move_to_cpu, always_call=True)


def is_offloaded(module: Any) -> bool:
    """Whether the module's weights are off the device between its forwards, as a whole or layer by layer."""
    return RUN_DEVICE in vars(module)


HOOKS = ("group_offloading", "layer_execution_tracker", "lazy_prefetch_group_offloading")  # as diffusers calls them
FOLDER_NAME = "offloaded"  # of weights on disk; a process locks each folder in it that it uses
_LOCK_FILE = "lock"  # in each of them
# attributes of a module: diffusers' hooks, and ours
_REGISTRY = "_diffusers_hook"
_SETTINGS = "_layer_offload"


@dataclass(frozen=True)
class LayerOffload:
    """Where a module's layers run, the folder where they wait (None: in host memory), and whether block by block.

    `data` is the folder of such folders.
    """

    device: torch.device
    data: Path
    folder: Path | None
    is_by_block: bool

    def make_arguments(self) -> dict[str, Any]:
        """Return the arguments of diffusers' `apply_group_offloading`."""
        arguments: dict[str, Any] = {"onload_device": self.device, "offload_device": torch.device("cpu")}
        if self.is_by_block:
            arguments |= {"offload_type": "block_level", "num_blocks_per_group": 1}
        else:
            arguments |= {"offload_type": "leaf_level"}
        if self.device.type == "cuda":
            return arguments | {"use_stream": True, "record_stream": True, "non_blocking": True}
        return arguments | {"offload_to_disk_path": None if self.folder is None else str(self.folder)}


def offload_layers(module: torch.nn.Module, device: torch.device, data: Path) -> None:
    """Keep the module's layers off `device` between their forwards: block by block, or layer by layer.

    On a processor they wait in a folder of this module in `data`, which is removed with the module. Raises
    `JobRejected` where the disk has no room for them.
    """
    sizes = measure_layers((name, each.numel()) for name, each in module.named_parameters())
    folder = None if device.type == "cuda" else _make_folder(module, data)
    _join_tied_layers(module)
    _apply_hooks(module, LayerOffload(device, data, folder, sizes.has_small_blocks))


def find_offload(module: torch.nn.Module) -> LayerOffload | None:
    """Return how the module's layers are offloaded; None where they are not."""
    return vars(module).get(_SETTINGS)


def offload_like(module: torch.nn.Module, original: torch.nn.Module) -> None:
    """Offload the layers of a copy as its original's, if they are offloaded. Raises `JobRejected`."""
    if (settings := find_offload(original)) is not None:
        offload_layers(module, settings.device, settings.data)


def copy_without_offload(module: Any) -> Any:
    """Return a copy without hooks that shares the memory of the weights; on a processor they are mapped from files.

    The copy of a module that is not offloaded by layers shares the weights themselves.
    """
    if find_offload(module) is None:
        return copy.deepcopy(module, {id(each): each for each in (*module.parameters(), *module.buffers())})
    with _suspend_hooks(module):
        shared = {id(each): _share_memory(each) for each in (*module.parameters(), *module.buffers())}
        module_copy = copy.deepcopy(module, shared)
    _forget_offload(module_copy)
    return module_copy


def _forget_offload(module: torch.nn.Module) -> None:
    for each in module.modules():
        for attribute in (_REGISTRY, _SETTINGS, RUN_DEVICE):
            vars(each).pop(attribute, None)


def remove_stale_folders(data: Path) -> None:
    """Remove the weights that processes left on the disk when they were killed. A living process has a lock on its."""
    for folder in (data / FOLDER_NAME).glob("*/"):
        try:
            lock = _lock_folder(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process uses it, or has just removed it
            continue
        _remove_folder(folder, lock)


class _FileGroup(ModuleGroup):
    """A group of layers that waits in a file. Meanwhile it takes no memory, where diffusers' takes as much as ever.

    Its numbers are not finite then: a layer that computes without its weights draws no wrong picture.
    """

    def _offload_to_disk(self) -> None:
        super()._offload_to_disk()
        weights = cast(dict[torch.Tensor, str], self.tensor_to_key)
        for tensor in weights:
            value = torch.nan if tensor.is_floating_point() else 0
            tensor.data = tensor.data.new_full((), value).expand(tensor.shape)


def _apply_hooks(module: torch.nn.Module, settings: LayerOffload) -> None:
    apply_group_offloading(module, **settings.make_arguments())
    vars(module)[_SETTINGS], vars(module)[RUN_DEVICE] = settings, settings.device
    if settings.folder is not None:
        for group in _list_groups(module):
            group.__class__ = _FileGroup
            group.offload_()


@contextmanager
def _suspend_hooks(module: Any) -> Generator[None]:
    """Take the hooks off for a moment, with all weights in memory: a copied hook would run the original's layers."""
    settings = find_offload(module)
    assert settings is not None
    remove_hooks(module)
    try:
        yield
    finally:
        _apply_hooks(module, settings)


def remove_hooks(module: torch.nn.Module) -> None:
    """Take the hooks of offloading off, with all weights in memory: in host memory, or mapped from files."""
    settings = vars(module).pop(_SETTINGS, None)
    vars(module).pop(RUN_DEVICE, None)
    if settings is None:
        return
    if settings.folder is not None:
        for group in _list_groups(module):
            group.onload_()
    for name in HOOKS:
        HookRegistry.check_if_exists_or_initialize(module).remove_hook(name, recurse=True)


def _list_groups(module: torch.nn.Module) -> Iterator[Any]:
    for each in module.modules():
        registry: Any = vars(each).get(_REGISTRY)
        if registry is not None and (hook := registry.get_hook(HOOKS[0])) is not None:
            yield hook.group


def _join_tied_layers(module: torch.nn.Module) -> None:
    """Make one of several embeddings that share their weights: each would wait in a file of its own."""
    first_by_weight: dict[int, torch.nn.Module] = {}
    layers: Iterator[tuple[str, torch.nn.Module]] = cast(Any, module).named_modules(remove_duplicate=False)
    for name, layer in list(layers):
        if isinstance(layer, torch.nn.Embedding):
            first = first_by_weight.setdefault(id(layer.weight), layer)
            if first is not layer:
                module.set_submodule(name, first)


def _make_folder(module: torch.nn.Module, data: Path) -> Path:
    """Make the folder, and room in it: weights in one piece of memory each, as the files want them."""
    folder, lock = _make_locked_folder(data / FOLDER_NAME)
    needed = sum(each.nbytes for each in module.parameters())
    free = shutil.disk_usage(folder).free
    if needed > free:
        _remove_folder(folder, lock)
        raise JobRejected(
            f"Offloaded layers need {format_size(needed)} of disk, and {format_size(free)} are free.", "worker"
        )
    weakref.finalize(module, _remove_folder_in_thread, folder, lock)
    for each in (*module.parameters(), *module.buffers()):
        each.data = each.data.contiguous()
    return folder


def _make_locked_folder(parent: Path) -> tuple[Path, int]:
    """Return a new folder and its lock. A starting worker may remove it before it is locked; then another is made."""
    parent.mkdir(parents=True, exist_ok=True)
    while True:
        folder = Path(tempfile.mkdtemp(dir=parent))
        try:
            lock = _lock_folder(folder, fcntl.LOCK_EX)
        except FileNotFoundError:
            continue
        if (folder / _LOCK_FILE).exists():
            return folder, lock
        os.close(lock)


def _lock_folder(folder: Path, operation: int) -> int:
    """Return the descriptor that holds the folder's lock as long as it is open. Raises OSError."""
    lock = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(lock, operation)
    except OSError:
        os.close(lock)
        raise
    return lock


def _remove_folder_in_thread(folder: Path, lock: int) -> None:
    """Remove the folder without a wait: the garbage collector runs on any thread, an event loop's too."""
    removal = threading.Thread(target=_remove_folder, args=(folder, lock))
    if threading.main_thread().is_alive():
        removal.start()
    else:
        removal.run()  # at exit: nobody would wait for the thread


def _remove_folder(folder: Path, lock: int) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)


def _share_memory(tensor: torch.Tensor) -> torch.Tensor:
    if isinstance(tensor, torch.nn.Parameter):
        return torch.nn.Parameter(tensor.data, requires_grad=False)
    return tensor.detach()


STREAMED_GROUPS = 2  # on a GPU: the group that computes, and the next one, which is copied meanwhile
MAX_BLOCK_SHARE = 0.25  # of the module; larger blocks are offloaded layer by layer
FILE_PREFIXES = ("model.diffusion_model.",)  # of names in the original programs' files


@dataclass(frozen=True)
class LayerSizes:
    """Parameters of a module: all of them, those outside its blocks, those of its largest block and largest layer."""

    total: int
    outside_blocks: int
    largest_block: int
    largest_layer: int

    @property
    def has_small_blocks(self) -> bool:
        """Whether offloading block by block leaves only a small part of the module on the device."""
        return self.largest_block > 0 and self._count_blocks(STREAMED_GROUPS) <= MAX_BLOCK_SHARE * self.total

    def count_at_once(self, *, is_streamed: bool) -> int:
        """Return the most parameters that are on the device at once while the layers are offloaded."""
        groups = STREAMED_GROUPS if is_streamed else 1
        at_once = self._count_blocks(groups) if self.has_small_blocks else groups * self.largest_layer
        return min(self.total, at_once)

    def _count_blocks(self, groups: int) -> int:
        return self.outside_blocks + groups * self.largest_block


def measure_layers(parameters: Iterable[tuple[str, int]]) -> LayerSizes:
    """Return the sizes from weights' names and parameter counts."""
    blocks = Counter[str]()
    layers = Counter[str]()
    outside_blocks = 0
    for name, count in parameters:
        own_name = next((name.removeprefix(each) for each in FILE_PREFIXES if name.startswith(each)), name)
        layers[own_name.rpartition(".")[0]] += count
        if (block := _find_block(own_name)) is None:
            outside_blocks += count
        else:
            blocks[block] += count
    total = sum(layers.values())
    return LayerSizes(total, outside_blocks, max(blocks.values(), default=0), max(layers.values(), default=0))


def _find_block(name: str) -> str | None:
    """Return `transformer_blocks.0` of `transformer_blocks.0.attn.to_q.weight`; None outside a list of the module."""
    parts = name.split(".")
    return ".".join(parts[:2]) if len(parts) > 2 and parts[1].isdigit() else None
