"""The bodies of OpenAI's image API: its fields, and those of Darkroom that it has no name for.

Unknown fields are ignored: programs send what newer models of OpenAI's take.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal, TypeVar

import msgspec
from msgspec import Meta

from bot.apis.openai.errors import FieldError
from bot.domain.errors import UserError
from engine.contract import MAX_INIT_IMAGES, convert

T = TypeVar("T", bound=msgspec.Struct)

MAX_PICTURES = 10
DEFAULT_COMPRESSION = 90  # per cent, of JPEG and WebP
FIELD_PATTERN = re.compile(r"at `\$\.(\w+)")

PictureFormat = Literal["png", "jpeg", "webp"]


class CommonFields(msgspec.Struct, frozen=True, kw_only=True):
    """What image requests and responses have alike. `seed` to `strength` are Darkroom's own (`extra_body` there)."""

    stream: bool | None = None
    seed: int | None = None
    steps: int | None = None
    evaluations: int | str | None = None
    sampler: str | None = None
    guidance: float | None = None
    negative_prompt: str | None = None
    strength: float | None = None


class DrawBody(CommonFields, frozen=True, kw_only=True):
    """What all image requests have."""

    prompt: str
    model: str | None = None
    n: Annotated[int, Meta(ge=1, le=MAX_PICTURES)] | None = None
    size: Annotated[str, Meta(max_length=11)] | None = None
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    moderation: Literal["auto", "low"] | None = None
    output_format: PictureFormat | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    response_format: Literal["b64_json", "url"] | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None
    user: str | None = None

    @property
    def picture_format(self) -> PictureFormat:
        return self.output_format or "png"

    @property
    def wants_url(self) -> bool:
        """Whether pictures are answered as addresses. By default OpenAI's older models do."""
        if self.response_format is None:
            return (self.model or "").startswith("dall-e")
        return self.response_format == "url"


class GenerationBody(DrawBody, frozen=True, kw_only=True):
    """The body of `POST /v1/images/generations`."""

    style: Literal["vivid", "natural"] | None = None


class EditFields(DrawBody, frozen=True, kw_only=True):
    """The texts in the form of `POST /v1/images/edits`, beside `image` or several `image[]`, and perhaps `mask`."""

    input_fidelity: Literal["high", "low"] | None = None


class ImageReference(msgspec.Struct, frozen=True):
    """A picture in a JSON body: a data URL with base64, or an address of Darkroom's page or of a file at Discord."""

    image_url: str


class JsonEditBody(EditFields, frozen=True, kw_only=True):
    """The JSON body of `POST /v1/images/edits`, in place of a form."""

    images: Annotated[list[ImageReference], Meta(min_length=1, max_length=MAX_INIT_IMAGES)]
    mask: ImageReference | None = None

    def without_pictures(self) -> EditFields:
        """Return the fields alone, so that nothing keeps the pictures in memory."""
        return EditFields(**{name: getattr(self, name) for name in EditFields.__struct_fields__})


class ImageTool(msgspec.Struct, frozen=True, kw_only=True):
    """The tool of a response. Other tools are ignored."""

    type: str
    model: str | None = None
    size: Annotated[str, Meta(max_length=11)] | None = None
    quality: Literal["auto", "low", "medium", "high"] | None = None
    background: Literal["auto", "opaque", "transparent"] | None = None
    output_format: PictureFormat | None = None
    output_compression: Annotated[int, Meta(ge=0, le=100)] | None = None
    partial_images: Annotated[int, Meta(ge=0, le=3)] | None = None


class MessagePart(msgspec.Struct, frozen=True):
    """A part of a message: a text (`input_text`) or a picture (`input_image`)."""

    type: str = ""
    text: str = ""
    image_url: str = ""


class ConversationMessage(msgspec.Struct, frozen=True):
    """A message of the conversation."""

    content: str | list[MessagePart] = ""


class ResponseBody(CommonFields, frozen=True, kw_only=True):
    """The body of `POST /v1/responses`. `model` names a language model, which is not needed here."""

    input: str | Annotated[list[ConversationMessage], Meta(min_length=1)]
    tools: list[ImageTool] = []

    def read_tool(self) -> EditFields:
        """Return what the tool is asked for. Raises `FieldError` without the tool, or without words."""
        tool = next((tool for tool in self.tools if tool.type == "image_generation"), None)
        if tool is None:
            raise FieldError("tools", "Only pictures are made here: name the tool image_generation.")
        of_tool = {name: getattr(tool, name) for name in ImageTool.__struct_fields__ if name != "type"}
        common = {name: getattr(self, name) for name in CommonFields.__struct_fields__}
        return EditFields(prompt=self._prompt(), **of_tool, **common)

    def list_picture_urls(self) -> list[str]:
        """Return the addresses of the newest message's pictures."""
        return [part.image_url for part in self._parts() if part.image_url]

    def _prompt(self) -> str:
        return "\n".join(part.text for part in self._parts() if part.text)

    def _parts(self) -> list[MessagePart]:
        """Return the parts of the newest message."""
        content = self.input if isinstance(self.input, str) else self.input[-1].content
        return [MessagePart("input_text", content)] if isinstance(content, str) else content


class VariationFields(DrawBody, frozen=True, kw_only=True):
    """The texts in the form of `POST /v1/images/variations`, beside `image`."""

    prompt: str = ""


def decode_fields(texts: dict[str, str], fields_type: type[T]) -> T:
    """Return a form's texts as their struct. Raises `FieldError`."""
    try:
        return convert(texts, fields_type, strict=False)
    except msgspec.ValidationError as error:
        raise name_field(UserError(f"The request can't be read: {error}.", 400)) from error


def name_field(error: UserError) -> UserError:
    """Return the refusal of a body with the field that it is about, if it names one."""
    match = FIELD_PATTERN.search(error.sentence)
    return FieldError(match[1], error.sentence) if match else error
