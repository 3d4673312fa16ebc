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

from engine.cores import Cores, Kind
from engine.job import Job, Verdict
from engine.unfit import Unfit

log = logging.getLogger(__name__)

EARLY = 0.4  # share of an image's steps after which x0 shows what it will be
_UNSAFE = r"(?:nsfw|porn|hentai|sexy|unsafe|explicit)"
_MEANT = re.compile(_UNSAFE, re.IGNORECASE)
_DENIED = re.compile(rf"(?<![a-z])(?:not?|non)[\W_]*{_UNSAFE}", re.IGNORECASE)  # "not_nsfw", "non-explicit"


class PictureCheck:
    """One loaded classifier. A call runs a forward in the caller's thread and may raise any error of it."""

    def __init__(self, model: Any, processor: Any, unsafe: Sequence[int], threshold: float, name: str) -> None:
        self._model, self._processor = model.eval().requires_grad_(False), processor
        self._unsafe, self._threshold, self.name = list(unsafe), threshold, name
        config = model.config
        self._apart = config.problem_type == "multi_label_classification" or config.num_labels == 1

    @classmethod
    def load(
        cls, folder: Path, labels: Sequence[str] = (), threshold: float = 0.5, device: torch.device | str = "cpu"
    ) -> PictureCheck:
        """Load it and try it once. `labels` are unsafe from `threshold` on; none: those with unsafe names. Raises
        `Unfit`.
        """
        _refuse_pickles(folder)
        try:
            model, processor = _parts(folder)
        except Exception as error:  # an unknown folder can make the libraries raise anything
            raise _unfit(f"{folder.name} holds no image classifier that can be loaded.") from error
        check = cls(model.to(device), processor, _unsafe(model.config.id2label, labels), threshold, folder.name)
        try:
            check(Image.new("RGB", (64, 64), "grey"))
        except Exception as error:
            raise _unfit(f"{folder.name} fails at a plain grey picture: {error}"[:300]) from error
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
        if self._apart:
            return float(logits.sigmoid()[self._unsafe].max())
        return float(logits.softmax(dim=0)[self._unsafe].sum())


class Verdicts:
    """The verdicts on jobs that ask for a check. Used only in the decode worker's thread.

    An image's x0 is checked once, as soon as it shows enough; the finished picture is always checked again.
    """

    def __init__(self, check: PictureCheck | None, cores: Cores | None = None) -> None:
        self._check, self._cores = check, cores or Cores()
        self._early: dict[str, dict[int, Verdict]] = {}

    def early(self, job: Job, image: int, done: float, estimate: Callable[[], Image.Image]) -> Verdict:
        """Return the verdict on an image's previews. `done`: share of its steps; `estimate` is called at most once."""
        if not job.check or self._check is None or done < EARLY:
            return "unchecked"
        known = self._early.setdefault(job.id, {})
        if image not in known:
            known[image] = self._said(job, estimate, Kind.OTHER)
        return known[image]

    def final(self, job: Job, content: bytes) -> Verdict:
        """Return the verdict on a finished picture's bytes."""
        if not job.check:
            return "unchecked"
        return self._said(job, lambda: Image.open(BytesIO(content), formats=("PNG",)), Kind.PICTURE)

    def forget(self, job: str) -> None:
        self._early.pop(job, None)

    def _said(self, job: Job, picture: Callable[[], Image.Image], kind: Kind) -> Verdict:
        """Return the verdict. `picture` may take the cores itself, so the check takes them after it."""
        if self._check is None:
            return "unchecked"
        try:
            with picture() as opened, self._cores.held(kind):
                return self._check(opened)
        except Exception:  # the picture remains, and a moderator can look at it
            log.exception("job %s: the picture check failed", job.id)
            return "unchecked"


def _parts(folder: Path) -> tuple[Any, Any]:
    """Return (model, processor). Refuses a folder without a head: it would be initialised at random."""
    transformers: Any = import_module("transformers")
    plain: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    from engine.families.quiet import quiet  # imports transformers, which a worker without a check need not load

    with quiet():
        processor = transformers.AutoImageProcessor.from_pretrained(str(folder), backend="pil", **plain)
        model, found = transformers.AutoModelForImageClassification.from_pretrained(
            str(folder), use_safetensors=True, dtype=torch.float32, output_loading_info=True, **plain
        )
    if found["missing_keys"] or found["mismatched_keys"]:
        raise ValueError("weights are missing")
    return model, processor


def _unsafe(names: Mapping[int, str], wanted: Sequence[str]) -> list[int]:
    known = {str(name).lower(): index for index, name in names.items()}
    listed = ", ".join(sorted(known))[:300]
    if missing := [label for label in wanted if label.lower() not in known]:
        raise _unfit(f"it has no label {missing[0][:64]!r}; it has: {listed}.")
    meant = wanted or [name for name in known if _MEANT.search(name) and not _DENIED.search(name)]
    if not meant:
        raise _unfit(f"no label has a known unsafe name; name some in DARKROOM_CHECK_LABELS. It has: {listed}.")
    return sorted({known[label.lower()] for label in meant})


def _refuse_pickles(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise _unfit(f"{folder.name} is no folder with a model's config.json.")
    if not list(folder.glob("*.safetensors")):
        raise _unfit(f"{folder.name} has no weights in safetensors; a pickle can run code when it is opened.")


def _unfit(why: str) -> Unfit:
    return Unfit(f"The picture check cannot be used: {why}", "worker")
