"""Init images, mask and keyframe that `darkroom imagine` starts from, and the request for them to a running Darkroom.

Decodes no picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bot.images.intake import MOST_BYTES
from bot.refused import Refused

BRANCH = re.compile(r"([0-9A-Za-z]{26})(?:/([1-4]))?:([0-9]{1,4})")


@dataclass(frozen=True)
class Asked:
    """A request to a running Darkroom: its path, its JSON, and its files with the names of their form parts."""

    path: str
    order: Mapping[str, object]
    files: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Rung:
    """The keyframe at `step` of a job's image `image`, which counts from 0."""

    job: str
    image: int
    step: int


@dataclass(frozen=True)
class Bringing:
    """What a job starts from: nothing, pictures with an optional mask, or a keyframe."""

    images: tuple[Path, ...] = ()
    mask: Path | None = None
    branch: Rung | None = None

    @property
    def anything(self) -> bool:
        return bool(self.images) or self.branch is not None

    def pictures(self) -> list[bytes]:
        """Read the picture files. Raise `Refused`."""
        return [_bytes(path) for path in self.images]

    def painted(self) -> bytes | None:
        """Read the mask. Raise `Refused`."""
        return None if self.mask is None else _bytes(self.mask)

    def asked(self, prompt: str, options: Mapping[str, object]) -> Asked:
        """Build the request to a running Darkroom. Raise `Refused`."""
        if self.branch is not None:
            path = f"/api/jobs/{self.branch.job}/branch/{self.branch.image + 1}"
            words = {"prompt": prompt} if prompt else {}
            return Asked(path, {**options, **words, "step": self.branch.step, "exact": True})
        painted = self.painted()
        files = [("picture", content) for content in self.pictures()]
        files += [("mask", painted)] if painted is not None else []
        return Asked("/api/jobs", {**options, "prompt": prompt, "exact": True}, tuple(files))


def told(
    words: Sequence[str], image: Sequence[Path], mask: Path | None, blend: bool, branch: str | None
) -> tuple[str, Bringing]:
    """Split the command line into the prompt and what the job starts from. Raise `Refused`.

    With `blend`, words that name files are pictures, and the others are the prompt.
    """
    blended = [Path(word) for word in words if blend and Path(word).is_file()]
    rest = [word for word in words if not (blend and Path(word).is_file())]
    if blend and len(blended) < 2:
        raise Refused("--blend takes two to five picture files, as in --blend a.png b.png.")
    images = (*image, *blended)
    if branch and (images or mask):
        raise Refused("--branch starts from a job and takes no picture.")
    if mask and not images:
        raise Refused("--mask marks what of a picture is drawn anew: name the picture with --image.")
    return " ".join(rest), Bringing(images, mask, _rung(branch) if branch else None)


def _rung(text: str) -> Rung:
    found = BRANCH.fullmatch(text)
    if found is None:
        raise Refused("--branch takes a job and a step, as in 01J…:400, or with the picture's number 01J…/2:400.")
    return Rung(found[1].upper(), int(found[2] or 1) - 1, int(found[3]))


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > MOST_BYTES:
        raise Refused(f"{path} is too large: a picture may have {MOST_BYTES // 2**20} MiB.")
    return content
