"""The picture check: an image classifier that decides whether a picture may be shown.

It accepts any image classifier in transformers' folder format. Weights must be safetensors, and the folder's own code
never runs. After a failed check the picture stays "unchecked", and the caller holds it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from engine.contract import Job, JobRejected, Verdict
from engine.device.core_turns import CoreTurns, WorkKind

log = logging.getLogger(__name__)

EARLY_SHARE = 0.4  # share of an image's steps after which x0 shows what it will be
_UNSAFE_WORDS = r"(?:nsfw|porn|hentai|sexy|unsafe|explicit)"
_UNSAFE_NAME = re.compile(_UNSAFE_WORDS, re.IGNORECASE)
_NEGATED_NAME = re.compile(rf"(?<![a-z])(?:not?|non)[\W_]*{_UNSAFE_WORDS}", re.IGNORECASE)  # "not_nsfw", "non-explicit"


class PictureCheck:
    """One loaded classifier. A call runs a forward in the caller's thread and may raise any error of it."""

    def __init__(self, model: Any, processor: Any, unsafe_labels: Sequence[int], threshold: float, name: str) -> None:
        self._model = model.eval().requires_grad_(False)
        self._processor = processor
        self._unsafe = list(unsafe_labels)
        self._threshold = threshold
        self.name = name
        config = model.config
        self._is_multi_label = config.problem_type == "multi_label_classification" or config.num_labels == 1

    @classmethod
    def load(
        cls, folder: Path, labels: Sequence[str] = (), threshold: float = 0.5, device: torch.device | str = "cpu"
    ) -> PictureCheck:
        """Load it and try it once. `labels` are unsafe from `threshold` on; none: those with unsafe names.

        Raises `JobRejected`.
        """
        _refuse_pickles(folder)
        try:
            model, processor = _load_parts(folder)
        except Exception as error:  # an unknown folder can make the libraries raise anything
            raise _rejection(f"{folder.name} holds no image classifier that can be loaded.") from error
        check = cls(
            model.to(device), processor, _find_unsafe_labels(model.config.id2label, labels), threshold, folder.name
        )
        try:
            check(Image.new("RGB", (64, 64), "grey"))
        except Exception as error:
            raise _rejection(f"{folder.name} fails at a plain grey picture: {error}"[:300]) from error
        return check

    @property
    def labels(self) -> list[str]:
        """The labels that count as unsafe."""
        return [str(self._model.config.id2label[index]) for index in self._unsafe]

    def __call__(self, picture: Image.Image) -> Verdict:
        """Flag a picture if the unsafe labels together reach the threshold; in a multi-label model, if any one does."""
        score = self.score(picture)
        if not math.isfinite(score):
            raise ValueError("the picture check gave a number that is not finite")
        return "flagged" if score >= self._threshold else "passed"

    @torch.inference_mode()
    def score(self, picture: Image.Image) -> float:
        """Return how unsafe a picture looks, 0 to 1."""
        pixels = self._processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        logits = self._model(pixel_values=pixels.to(self._model.device)).logits[0].float()
        if self._is_multi_label:
            return float(logits.sigmoid()[self._unsafe].max())
        return float(logits.softmax(dim=0)[self._unsafe].sum())


class JobVerdicts:
    """The verdicts on jobs that ask for a check. Used only in the decode worker's thread.

    An image's x0 is checked once, as soon as it shows enough; the finished picture is always checked again.
    """

    def __init__(self, check: PictureCheck | None, cores: CoreTurns | None = None) -> None:
        self._check = check
        self._cores = cores or CoreTurns()
        self._preview_verdicts: dict[str, dict[int, Verdict]] = {}

    def check_preview(self, job: Job, image: int, steps_share: float, decode_x0: Callable[[], Image.Image]) -> Verdict:
        """Return the verdict on an image's previews. `steps_share`: of its steps, how many are done, 0 to 1.

        It calls `decode_x0` at most once.
        """
        if not job.check or self._check is None or steps_share < EARLY_SHARE:
            return "unchecked"
        verdicts = self._preview_verdicts.setdefault(job.id, {})
        if image not in verdicts:
            verdicts[image] = self._classify(job, decode_x0, WorkKind.OTHER)
        return verdicts[image]

    def check_final(self, job: Job, content: bytes) -> Verdict:
        """Return the verdict on a finished picture's bytes."""
        if not job.check:
            return "unchecked"
        return self._classify(job, lambda: Image.open(BytesIO(content), formats=("PNG",)), WorkKind.PICTURE)

    def forget_job(self, job: str) -> None:
        self._preview_verdicts.pop(job, None)

    def _classify(self, job: Job, open_picture: Callable[[], Image.Image], kind: WorkKind) -> Verdict:
        """Return the verdict. `open_picture` may take the cores itself, so the check takes them after it."""
        if self._check is None:
            return "unchecked"
        try:
            with open_picture() as image, self._cores.hold(kind):
                return self._check(image)
        except Exception:  # the picture remains, and a moderator can look at it
            log.exception("job %s: the picture check failed", job.id)
            return "unchecked"


def _load_parts(folder: Path) -> tuple[Any, Any]:
    """Return (model, processor). Refuses a folder without a head: it would be initialised at random."""
    transformers: Any = import_module("transformers")
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    from engine.models.library_logging import silence_libraries

    with silence_libraries():
        processor = transformers.AutoImageProcessor.from_pretrained(str(folder), backend="pil", **options)
        model, loading_info = transformers.AutoModelForImageClassification.from_pretrained(
            str(folder), use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
        )
    if loading_info["missing_keys"] or loading_info["mismatched_keys"]:
        raise ValueError("weights are missing")
    return model, processor


def _find_unsafe_labels(label_names: Mapping[int, str], requested: Sequence[str]) -> list[int]:
    index_by_label = {str(name).lower(): index for index, name in label_names.items()}
    label_list = ", ".join(sorted(index_by_label))[:300]
    if missing := [label for label in requested if label.lower() not in index_by_label]:
        raise _rejection(f"it has no label {missing[0][:64]!r}; it has: {label_list}.")
    unsafe_labels = requested or [
        name for name in index_by_label if _UNSAFE_NAME.search(name) and not _NEGATED_NAME.search(name)
    ]
    if not unsafe_labels:
        raise _rejection(
            f"no label has a known unsafe name; name some in DARKROOM_PICTURE_CHECK_LABELS. It has: {label_list}."
        )
    return sorted({index_by_label[label.lower()] for label in unsafe_labels})


def _refuse_pickles(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise _rejection(f"{folder.name} is no folder with a model's config.json.")
    if not list(folder.glob("*.safetensors")):
        raise _rejection(f"{folder.name} has no weights in safetensors; a pickle can run code when it is opened.")


def _rejection(reason: str) -> JobRejected:
    return JobRejected(f"The picture check cannot be used: {reason}", "worker")
