"""Group offloading: a module's layers are on the device only while they run, by diffusers' own hooks.

On a GPU the weights wait in pinned host memory, and the next group is copied on a stream of its own while one computes.
On a processor they wait in files, and a group is mapped while it computes. The values stay the same, and so the bits.
"""

from __future__ import annotations

import copy
import fcntl
import os
import shutil
import tempfile
import threading
import weakref
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers.hooks.group_offloading import ModuleGroup, apply_group_offloading
from diffusers.hooks.hooks import HookRegistry

from engine.contract.rejection import JobRejected
from engine.models.network.cpu_offload import RUN_DEVICE
from engine.models.network.layer_sizes import measure_layers
from engine.process.load_progress import format_size

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
