"""Which backend a worker draws with: its kind and address, its key, its workflows. Imports no torch."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator

from engine.process.backend_kinds import join_words, list_forms, load_backend_kinds

KIND_VARIABLE = "DARKROOM_BACKEND"
KEY_VARIABLE = "DARKROOM_BACKEND_KEY"
MIN_SIZE = 16  # pixels


class BackendSettings(BaseModel):
    """A backend. `key`: for `Authorization`; of the form NAME:PASSWORD it is sent as Basic. `size`: pixels; 0: guess.

    `kind`: a folder of `engine.backends`. `workflows`: files for a server that runs such; none: the built-in ones.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: str
    url: str
    key: SecretStr = SecretStr("")
    workflows: Annotated[tuple[Path, ...], Field(max_length=3)] = ()
    size: Annotated[int, Field(ge=0, le=2048)] = 0

    @field_validator("kind")
    @classmethod
    def _check_kind(cls, value: str) -> str:
        if value not in load_backend_kinds():
            raise ValueError(f"{list_forms()} is needed")
        return value

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        if not re.match(r"^https?://[^\s@?#]+$", value):
            raise ValueError(f"an address without a key is needed; the key belongs into {KEY_VARIABLE}")
        return value.rstrip("/")

    @field_validator("size")
    @classmethod
    def _check_size(cls, value: int) -> int:
        if 0 < value < MIN_SIZE:
            raise ValueError(f"a size of {MIN_SIZE} pixels or more is needed")
        return value

    @field_validator("workflows")
    @classmethod
    def _make_absolute(cls, value: tuple[Path, ...]) -> tuple[Path, ...]:
        return tuple(path.expanduser().absolute() for path in value)


def parse_backend(text: str, workflows: Sequence[Path] = (), size: int = 0) -> BackendSettings | None:
    """Return the backend of `KIND=ADDRESS`, else of the environment; None: there is none. The key comes from there.

    Raises ValueError with a sentence.
    """
    text = text or os.environ.get(KIND_VARIABLE, "")
    if not text:
        if workflows or size:
            raise ValueError("--workflow and --size need --backend.")
        return None
    kind, _, url = text.partition("=")
    kinds = load_backend_kinds()
    if kind not in kinds or not url:
        raise ValueError(f"--backend: {list_forms()} is needed.")
    if workflows and not kinds[kind].takes_workflows:
        takers = join_words([f"{name}=…" for name, each in kinds.items() if each.takes_workflows])
        raise ValueError(f"--workflow is for --backend {takers} alone.")
    key = SecretStr(os.environ.get(KEY_VARIABLE, ""))
    try:
        values = {"kind": kind, "url": url, "key": key, "workflows": tuple(workflows), "size": size}
        return BackendSettings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]  # an input may hold a key
        option = "--size" if first["loc"][:1] == ("size",) else "--backend"
        raise ValueError(f"{option}: {first['msg'].removeprefix('Value error, ')}.") from None
