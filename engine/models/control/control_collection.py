"""The control networks of one model: which fit, and those that are in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from threading import RLock

import torch

from engine.contract import ControlImage, ControlModel, Dtype
from engine.contract.rejection import JobRejected
from engine.models.control.compatibility import TargetNetwork, is_compatible
from engine.models.control.control_files import CONTROL_KIND, ControlFile
from engine.models.control.control_network import ControlNetwork, load_control_network
from engine.models.family import TORCH_DTYPES
from engine.models.files.pipeline_parts import count_parameters

MAX_CONTROLS = 64  # announced control networks, the limit of `engine.contract.ModelProfile`
MAX_KEPT = 4  # networks that stay in memory after their last picture


class ControlCollection:
    """The control networks in `folder` for one model; None: there is no such folder. Any thread may use it."""

    def __init__(self, target: TargetNetwork, device: torch.device) -> None:
        self.folder: Path | None = None
        self.target = target
        self._device = device
        self._lock = RLock()
        self._compatible_revisions: dict[str, bool] = {}
        self._kept: OrderedDict[tuple[str, Dtype], ControlNetwork] = OrderedDict()

    def list_compatible(self) -> tuple[ControlModel, ...]:
        """Return all that fit this model. Each is checked once."""
        files = [file for file in CONTROL_KIND.find_all(self.folder) if self._is_compatible(file)]
        return tuple(
            ControlModel(file.name, file.revision, file.usual_preprocessor, file.row_share)
            for file in files[:MAX_CONTROLS]
        )

    def find(self, control: ControlImage) -> ControlFile:
        """Return a control picture's network. Raises `JobRejected`: missing, unfit or of another revision."""
        file = CONTROL_KIND.find(self.folder, control.name)
        if control.revision and control.revision != file.revision:
            raise JobRejected(f"This worker has another version of the control network {control.name}.", "worker")
        if not self._is_compatible(file):
            raise JobRejected(f"The control network {control.name} does not fit this model.", "model")
        return file

    def load(self, file: ControlFile, dtype: Dtype) -> ControlNetwork:
        """Return the network in this format, loaded at its first use. Raises `JobRejected`."""
        with self._lock:
            key = file.revision, dtype
            if key not in self._kept:
                self._kept[key] = load_control_network(file, self.target, dtype, self._device)
            self._kept.move_to_end(key)
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
            return self._kept[key]

    def count_bytes(self, files: Sequence[ControlFile], dtype: Dtype, *, with_kept: bool = True) -> int:
        """Return the bytes of these networks, `with_kept`: and of those in memory. They are read from headers."""
        wanted = {(file.revision, dtype): file for file in files}
        with self._lock:
            kept_bytes = {key: network.nbytes for key, network in self._kept.items() if with_kept or key in wanted}
        added = [file for key, file in wanted.items() if key not in kept_bytes]
        predicted = sum(count_parameters(list(file.weights))[0] for file in added)
        return sum(kept_bytes.values()) + predicted * TORCH_DTYPES[dtype].itemsize

    def release_others(self, files: Sequence[ControlFile], dtype: Dtype) -> None:
        """Drop all networks but these."""
        wanted = {(file.revision, dtype) for file in files}
        with self._lock:
            for key in self._kept.keys() - wanted:
                del self._kept[key]

    def release(self) -> None:
        """Drop all networks."""
        with self._lock:
            self._kept.clear()

    def _is_compatible(self, file: ControlFile) -> bool:
        with self._lock:
            if file.revision not in self._compatible_revisions:
                self._compatible_revisions[file.revision] = is_compatible(file, self.target)
            return self._compatible_revisions[file.revision]
