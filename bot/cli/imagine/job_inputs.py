"""Pictures, mask and keyframe that `darkroom imagine` starts from, and the request for them to a running Darkroom.

`--control canny:sketch.png` and `--reference face.png:0.5` are split into their flag's value and their file: the order
behind the name is free, and a file's own colons stay. Decodes no picture.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bot.cli.options import AS_CONFIGURED, EngineOptions
from bot.domain.errors import UserError
from bot.pictures.uploads.upload_decoder import MAX_UPLOAD_BYTES
from bot.prompt.picture_flags import DEFAULT_REFERENCE_SCALE, is_control_part, is_scale

BRANCH_PATTERN = re.compile(r"([0-9A-Za-z]{26})(?:/([1-4]))?:([0-9]{1,4})")
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".avif", ".heic", ".tif", ".tiff")


@dataclass(frozen=True)
class ApiRequest:
    """A request to a running Darkroom: its path, its JSON, and its files with the names of their form parts."""

    path: str
    body: Mapping[str, object]
    files: tuple[tuple[str, bytes], ...] = ()


@dataclass(frozen=True)
class KeyframeRef:
    """The keyframe at `step` of a job's image `image`, which counts from 0."""

    job: str
    image: int
    step: int


@dataclass(frozen=True)
class JobInputs:
    """What a job starts from: nothing, pictures with an optional mask, or a keyframe; and pictures that it follows."""

    images: tuple[Path, ...] = ()
    mask: Path | None = None
    keyframe: KeyframeRef | None = None
    controls: tuple[Path, ...] = ()
    references: tuple[Path, ...] = ()

    @property
    def has_any(self) -> bool:
        return bool(self.images) or self.keyframe is not None

    def read_parts(self) -> dict[str, list[bytes]]:
        """Read the files, by the names of their form parts. Raise `UserError`."""
        masks = () if self.mask is None else (self.mask,)
        paths = {"picture": self.images, "mask": masks, "control": self.controls, "reference": self.references}
        return {part: read_files(files) for part, files in paths.items()}

    def build_request(self, prompt: str, options: Mapping[str, object]) -> ApiRequest:
        """Build the request to a running Darkroom. Raise `UserError`."""
        if self.keyframe is not None:
            path = f"/api/jobs/{self.keyframe.job}/branch/{self.keyframe.image + 1}"
            prompt_field = {"prompt": prompt} if prompt else {}
            return ApiRequest(path, {**options, **prompt_field, "step": self.keyframe.step, "exact": True})
        files = tuple((part, content) for part, contents in self.read_parts().items() for content in contents)
        return ApiRequest("/api/jobs", {**options, "prompt": prompt, "exact": True}, files)


@dataclass(frozen=True)
class ImagineRequest:
    """What the command line asks for. `options` are named as in `bot.prompt.parse` and win over flags.

    `engine`: how weights of a model that is loaded here are stored, and which stay off the device.
    """

    prompt: str
    options: Mapping[str, object]
    output_folder: Path = Path()
    with_film: bool = False
    as_json: bool = False
    inputs: JobInputs = field(default_factory=JobInputs)
    engine: EngineOptions = AS_CONFIGURED


def split_arguments(
    words: Sequence[str],
    image: Sequence[Path],
    mask: Path | None,
    blend: bool,
    branch: str | None,
    controls: Sequence[Path] = (),
    references: Sequence[Path] = (),
) -> tuple[str, JobInputs]:
    """Split the command line into the prompt and what the job starts from. Raise `UserError`.

    With `blend`, words that name files are pictures, and the others are the prompt.
    """
    blend_files = [Path(word) for word in words if blend and Path(word).is_file()]
    prompt_words = [word for word in words if not (blend and Path(word).is_file())]
    if blend and len(blend_files) < 2:
        raise UserError("--blend takes two to five picture files, as in --blend a.png b.png.")
    images = (*image, *blend_files)
    if branch and (images or mask or controls or references):
        raise UserError("--branch starts from a job and takes no picture.")
    if mask and not images:
        raise UserError("--mask marks what of a picture is drawn anew: name the picture with --image.")
    keyframe = _parse_keyframe(branch) if branch else None
    return " ".join(prompt_words), JobInputs(images, mask, keyframe, tuple(controls), tuple(references))


def _parse_keyframe(text: str) -> KeyframeRef:
    match = BRANCH_PATTERN.fullmatch(text)
    if match is None:
        raise UserError("--branch takes a job and a step, as in 01J…:400, or with the picture's number 01J…/2:400.")
    return KeyframeRef(match[1].upper(), int(match[2] or 1) - 1, int(match[3]))


def read_files(paths: Sequence[Path]) -> list[bytes]:
    """Read picture files. Raise `UserError`."""
    return [_read_file(path) for path in paths]


def _read_file(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_UPLOAD_BYTES + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}.") from error
    if len(content) > MAX_UPLOAD_BYTES:
        raise UserError(f"{path} is too large: a picture may have {MAX_UPLOAD_BYTES // 2**20} MiB.")
    return content


def split_controls(arguments: Sequence[str], images: Sequence[Path] = ()) -> tuple[list[str], list[Path]]:
    """Return the values of the flag `--control`, and the files. Raise `UserError` for a file without a control.

    Where only some have a file, the others follow the first of `images`, if there is one.
    """
    values = list[str]()
    files = list[Path | None]()
    for argument in arguments:
        name, *parts = argument.split(":")
        if not parts and _is_file(name):
            raise UserError(f"Say what of {name} is followed, as in --control canny:{name}.")
        file = ":".join(part for part in parts if not is_control_part(part))
        values.append(":".join([name, *(part for part in parts if is_control_part(part))]))
        files.append(Path(file) if file else None)
    followed_image = images[0] if images and any(files) else None
    return values, [path for path in (file or followed_image for file in files) if path is not None]


def split_references(arguments: Sequence[str]) -> tuple[list[str], list[Path]]:
    """Return the values of the flag `--reference`, and the files. A file alone takes the model's first adapter.

    Where only some have a name or a scale, the others have the usual scale.
    """
    values = list[str]()
    files = list[Path]()
    for argument in arguments:
        scales = [part for part in argument.split(":") if is_scale(part)]
        name, *parts = [part for part in argument.split(":") if not is_scale(part)] or [""]
        if _is_file(name) or Path(":".join((name, *parts))).is_file():
            name, parts = "", [name, *parts]
        files += [Path(":".join(parts))] if parts else []
        values.append(":".join(part for part in (name, *scales) if part))
    return [value or f"{DEFAULT_REFERENCE_SCALE:g}" for value in values] if any(values) else [], files


def _is_file(text: str) -> bool:
    return Path(text).suffix.lower() in PICTURE_SUFFIXES or Path(text).is_file()
