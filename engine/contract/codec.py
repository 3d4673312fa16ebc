"""Encode and decode contract values as MessagePack; bytes that break the contract raise `MalformedMessage`."""

from __future__ import annotations

import threading
from typing import Any, TypeVar

import msgspec
from msgspec import Struct
from msgspec.msgpack import Decoder

from engine.contract.fields import VERSION


class MalformedMessage(ValueError):
    """Bytes from outside break the contract; the text names the first violation."""


class OtherVersion(MalformedMessage):
    """The writer has another version of the contract: the text says which of the two needs an update.

    `is_newer`: the writer's is newer, so this program will read the message once it is updated.
    """

    def __init__(self, text: str, *, is_newer: bool) -> None:
        super().__init__(text)
        self.is_newer = is_newer


class _VersionHeader(Struct):
    """The fields that are read from bytes that this process cannot decode."""

    v: int = VERSION
    worker: str = ""
    task: _VersionHeader | None = None


T = TypeVar("T")
_LEARNING = threading.Lock()
_DECODERS = dict[Any, Decoder[Any]]()


def encode(value: object) -> bytes:
    """Return a contract value as MessagePack."""
    return msgspec.msgpack.encode(value)


def learn_type(message_type: type[T]) -> Decoder[T]:
    """Return the decoder of a type, which msgspec learns at its first use: here in one thread at a time.

    A second thread that reads a type meanwhile finds its fields empty, and the process dies (msgspec 0.22). So every
    type that several threads read comes through here first.
    """
    decoder = _DECODERS.get(message_type)
    if decoder is None:
        with _LEARNING:
            decoder = _DECODERS[message_type] = Decoder(message_type, strict=True)
    return decoder


def convert(value: object, value_type: type[T], *, strict: bool = True) -> T:
    """Return plain values, as JSON has them, as a value of this type; without `strict`, texts too.

    Raises `msgspec.ValidationError`.
    """
    learn_type(value_type)
    return msgspec.convert(value, value_type, strict=strict)


def decode_json(content: bytes | bytearray, value_type: type[T]) -> T:
    """Return JSON as a value of this type. Raises `msgspec.MsgspecError`, `UnicodeDecodeError` or `RecursionError`."""
    learn_type(value_type)
    return msgspec.json.decode(content, type=value_type)


def decode(payload: bytes, message_type: type[T]) -> T:
    """Return bytes as a value of this type (a struct or a union of structs).

    Raises `MalformedMessage`, which `OtherVersion` is too, and nothing else.
    """
    try:
        return learn_type(message_type).decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise _decode_error(payload, str(error)) from error


def _decode_error(payload: bytes, reason: str) -> MalformedMessage:
    try:
        header = learn_type(_VersionHeader).decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
        return MalformedMessage(reason)
    versions = {header.v, header.task.v if header.task else VERSION} - {VERSION}
    if not versions:
        return MalformedMessage(reason)
    version = versions.pop()
    sender = f"the worker {header.worker[:64]!r}" if header.worker else "its sender"
    is_newer = version > VERSION
    return OtherVersion(
        f"{sender} has version {version} of the contract, and this program {VERSION}: "
        f"update {'this program' if is_newer else sender}",
        is_newer=is_newer,
    )
