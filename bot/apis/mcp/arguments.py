"""The arguments of the tools. Their JSON Schemas are what an assistant reads; Darkroom itself checks the values."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from engine.contract import MAX_COUNT

JOB_PATTERN = r"[0-9A-Za-z]{26}"
MAX_PROMPT = 4000  # characters; Darkroom's own limit is lower
MAX_PICTURE = 23 * 2**20  # characters: 16 MiB as base64

Job = Annotated[str, Field(pattern=f"^{JOB_PATTERN}$", description="The job's id.")]
PictureNumber = Annotated[int, Field(ge=1, le=MAX_COUNT, description="Which of the job's pictures, from 1.")]
Picture = Annotated[
    str,
    Field(
        max_length=MAX_PICTURE,
        description="A finished picture as JOB/2, or a picture as a data: URL in base64. "
        "Where the server runs on the user's machine, also the path of a file.",
    ),
]
Wait = Annotated[
    bool, Field(description="Wait for the pictures. With false, return the job's id at once: ask for it by `job`.")
]


class Arguments(BaseModel):
    """Arguments of one tool."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class DrawArguments(Arguments):
    """What every tool takes that draws from a prompt."""

    negative: str | None = Field(None, max_length=MAX_PROMPT, description="What the picture shall not have.")
    count: int | None = Field(None, ge=1, le=MAX_COUNT, description=f"How many pictures, 1 to {MAX_COUNT}.")
    steps: int | None = Field(None, description="Steps of the sampler; more take longer.")
    evaluations: int | str | None = Field(
        None, description="At how many of the steps the network is asked: a number, all or auto."
    )
    seed: int | None = Field(None, description="The same seed gives the same picture.")
    guidance: float | None = Field(None, description="How closely to follow the prompt, 1 to 30.")
    sampler: str | None = Field(None, max_length=100, description="As in `dpmpp_2m`.")
    model: str | None = Field(None, max_length=200, description="One of the models that `queue` lists.")
    wait: Wait = True

    def options(self) -> dict[str, Any]:
        """Return what goes into the request to Darkroom: the fields that are set."""
        return self.model_dump(exclude={"wait", "picture", "mask", "by_words"}, exclude_none=True)


class ImagineArguments(DrawArguments):
    """Arguments of `imagine`."""

    prompt: str = Field(max_length=MAX_PROMPT, description="What to draw. It may contain flags, such as --tile.")
    ar: str | None = Field(None, max_length=20, description="The shape as W:H, such as 3:2.")
    quality: float | None = Field(None, description="Multiplies the usual steps, 0.25 to 4.")
    best: bool | None = Field(None, description="Draw twice as many, and show those nearest to the prompt.")
    fast: bool | None = Field(None, description="Fewer steps: a quick sketch.")
    draft: bool | None = Field(None, description="A first look in a quarter of the time, less fine.")


class EditArguments(DrawArguments):
    """Arguments of `edit`."""

    picture: Picture
    prompt: str = Field(max_length=MAX_PROMPT, description="What the picture shall show afterwards.")
    mask: Picture | None = Field(None, description="White where the picture is drawn anew; of the same shape.")
    strength: float | None = Field(None, ge=0.05, le=1, description="How much is drawn anew: 0.05 little, 1 all.")
    by_words: bool = Field(
        False, description="The prompt says what to change, as in `make it winter`; this needs a model that edits."
    )


class PictureArguments(Arguments):
    """Arguments of `vary` and `upscale`."""

    job: Job
    picture: PictureNumber = 1
    wait: Wait = True


class DescribeArguments(Arguments):
    """Arguments of `describe`."""

    picture: Picture
    model: str | None = Field(None, max_length=64, description="The model that scores the words.")


class JobArguments(Arguments):
    """Arguments of `job`."""

    job: Job
    preview: bool = Field(True, description="Also show how the pictures look by now.")


class CancelArguments(Arguments):
    """Arguments of `cancel`."""

    job: Job


class NoArguments(Arguments):
    """`queue` takes none."""
