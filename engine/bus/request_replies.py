"""A worker's replies to requests. A malformed request gets an error sentence and does not stop later requests."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from nats.aio.msg import Msg

from engine.bus.connection import BrokerUnreachable, translate_errors
from engine.contract import (
    DecodeReply,
    DecodeRequest,
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
    MalformedMessage,
    decode,
    encode,
)

log = logging.getLogger(__name__)

EmbedHandler = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]
DescribeHandler = Callable[[DescribeRequest], Awaitable[DescribeReply]]
DecodeHandler = Callable[[DecodeRequest], Awaitable[DecodeReply]]


async def answer_decode(handler: DecodeHandler, msg: Msg) -> None:
    """Reply with thumbnails, or with the reason why there are none."""
    try:
        reply = await handler(decode(msg.data, DecodeRequest))
    except MalformedMessage as error:
        reply = DecodeReply(error=f"The request is malformed: {error}"[:500])
    try:
        with translate_errors("answer with thumbnails"):
            await msg.respond(encode(reply))
    except BrokerUnreachable as error:
        log.warning("%s", error)


async def answer_describe(handler: DescribeHandler, msg: Msg) -> None:
    """Reply with prediction errors, or with the reason why there are none. A failed send is only logged."""
    try:
        reply = await handler(decode(msg.data, DescribeRequest))
    except MalformedMessage as error:
        reply = DescribeReply(error=f"The request is malformed: {error}"[:500])
    try:
        with translate_errors("answer an image-to-prompt request"):
            await msg.respond(encode(reply))
    except BrokerUnreachable as error:
        log.warning("%s", error)


async def answer_embed(handler: EmbedHandler, msg: Msg) -> EmbedReply:
    """Return the vectors, or the reason why there are none."""
    try:
        texts = decode(msg.data, EmbedRequest).texts
        vectors = await handler(texts)
        return EmbedReply(vectors=tuple(tuple(float(x) for x in vector) for vector in vectors))
    except MalformedMessage as error:
        return EmbedReply(error=f"The request is malformed: {error}"[:500])
    except Exception:
        log.exception("embedding failed")
        return EmbedReply(error="This worker failed to embed the texts.")
