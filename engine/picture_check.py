"""The picture check: an image classifier that says of a picture whether it may be shown. Knows no queue and no bus.

Any image classifier in a folder of transformers will do. Weights are safetensors or nothing, and the folder's own code
is never run. A check that fails says nothing of the picture: it stays "unchecked", and whoever asked holds it.
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

EARLY = 0.4  # the share of its steps after which an image's estimate shows what it will be
_UNSAFE = r"(?:nsfw|porn|hentai|sexy|unsafe|explicit)"
_MEANT = re.compile(_UNSAFE, re.IGNORECASE)
_DENIED = re.compile(rf"(?<![a-z])(?:not?|non)[\W_]*{_UNSAFE}", re.IGNORECASE)  # "not_nsfw", "non-explicit"


class PictureCheck:
    """One loaded classifier. A call takes a forward of it on the caller's thread; it may raise whatever that raises."""

    def __init__(self, model: Any, processor: Any, unsafe: Sequence[int], threshold: float, name: str) -> None:
        self._model, self._processor = model.eval().requires_grad_(False), processor
        self._unsafe, self._threshold, self.name = list(unsafe), threshold, name
        config = model.config
        self._apart = config.problem_type == "multi_label_classification" or config.num_labels == 1

    @classmethod
    def load(
        cls, folder: Path, labels: Sequence[str] = (), threshold: float = 0.5, device: torch.device | str = "cpu"
    ) -> PictureCheck:
        """`labels` count as unsafe, from `threshold` on; none: those whose name says so. Tried once. Raises `Unfit`."""
        _refuse_pickles(folder)
        try:
            model, processor = _parts(folder)
        except Exception as error:  # whatever a stranger's folder makes the libraries raise
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
        """Flagged where the unsafe labels together reach the threshold, or one of several that go together does."""
        score = self.score(picture)
        if not math.isfinite(score):
            raise ValueError("the picture check gave a number that is not finite")
        return "flagged" if score >= self._threshold else "passed"

    @torch.inference_mode()
    def score(self, picture: Image.Image) -> float:
        """How unsafe a picture looks, 0 to 1."""
        pixels = self._processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        logits = self._model(pixel_values=pixels.to(self._model.device)).logits[0].float()
        if self._apart:
            return float(logits.sigmoid()[self._unsafe].max())
        return float(logits.softmax(dim=0)[self._unsafe].sum())


class Verdicts:
    """What the check says of jobs that ask for it. One thread's: the lane's.

    An image's estimate is looked at once, as soon as it shows anything; what is finished is always looked at anew.
    """

    def __init__(self, check: PictureCheck | None, cores: Cores | None = None) -> None:
        self._check, self._cores = check, cores or Cores()
        self._early: dict[str, dict[int, Verdict]] = {}

    def early(self, job: Job, image: int, done: float, estimate: Callable[[], Image.Image]) -> Verdict:
        """Of an image's previews, when the share `done` of its steps is done; `estimate` is called at most once."""
        if not job.check or self._check is None or done < EARLY:
            return "unchecked"
        known = self._early.setdefault(job.id, {})
        if image not in known:
            known[image] = self._said(job, estimate, Kind.OTHER)
        return known[image]

    def final(self, job: Job, content: bytes) -> Verdict:
        """Of a finished picture's bytes."""
        if not job.check:
            return "unchecked"
        return self._said(job, lambda: Image.open(BytesIO(content), formats=("PNG",)), Kind.PICTURE)

    def forget(self, job: str) -> None:
        self._early.pop(job, None)

    def _said(self, job: Job, picture: Callable[[], Image.Image], kind: Kind) -> Verdict:
        """`picture` may take the cores itself, so the check takes them only after it."""
        if self._check is None:
            return "unchecked"
        try:
            with picture() as opened, self._cores.held(kind):
                return self._check(opened)
        except Exception:  # the picture is there all the same, and a moderator can look at it
            log.exception("job %s: the picture check failed", job.id)
            return "unchecked"


def _parts(folder: Path) -> tuple[Any, Any]:
    """(model, processor). A head that the folder lacks would be made up at random: that is refused."""
    transformers: Any = import_module("transformers")
    plain: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    from engine.families.quiet import quiet  # brings transformers, which a worker without a check need not load

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
        raise _unfit(f"none of its labels is known as unsafe; name some in DARKROOM_CHECK_LABELS. It has: {listed}.")
    return sorted({known[label.lower()] for label in meant})


def _refuse_pickles(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise _unfit(f"{folder.name} is no folder with a model's config.json.")
    if not list(folder.glob("*.safetensors")):
        raise _unfit(f"{folder.name} has no weights in safetensors, and a pickle can run code when it is opened.")


def _unfit(why: str) -> Unfit:
    return Unfit(f"The picture check cannot be used: {why}", "worker")
