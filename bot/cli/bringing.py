"""What `darkroom imagine` begins with: picture files, a mask, a rung of an older job's ladder.

Knows files and how a running Darkroom is asked for such a job; opens no picture.
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
    """A request to a running Darkroom: where it goes, its JSON, and the files beside it by the part's name."""

    path: str
    order: Mapping[str, object]
    files: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class Rung:
    """Step `step` of image `image`, counted from 0, of a job."""

    job: str
    image: int
    step: int


@dataclass(frozen=True)
class Bringing:
    """Nothing, or pictures with perhaps a mask, or a rung."""

    images: tuple[Path, ...] = ()
    mask: Path | None = None
    branch: Rung | None = None

    @property
    def anything(self) -> bool:
        return bool(self.images) or self.branch is not None

    def pictures(self) -> list[bytes]:
        """The files' bytes. Raises `Refused`."""
        return [_bytes(path) for path in self.images]

    def painted(self) -> bytes | None:
        """The mask's. Raises `Refused`."""
        return None if self.mask is None else _bytes(self.mask)

    def asked(self, prompt: str, options: Mapping[str, object]) -> Asked:
        """What is asked of a running Darkroom."""
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
    """The prompt and what is brought, as the command line says it. Raises `Refused`.

    With `blend`, the words that name files are pictures, and the others the prompt.
    """
    blended = [Path(word) for word in words if blend and Path(word).is_file()]
    rest = [word for word in words if not (blend and Path(word).is_file())]
    if blend and len(blended) < 2:
        raise Refused("--blend takes two to five picture files, as in --blend a.png b.png.")
    images = (*image, *blended)
    if branch and (images or mask):
        raise Refused("--branch begins with a job, so no picture goes with it.")
    if mask and not images:
        raise Refused("--mask says what of a picture is drawn anew: name that with --image.")
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
        raise Refused(f"{path} is larger than the {MOST_BYTES // 2**20} MiB that are taken.")
    return content
