"""A worker's replies to requests. A malformed request gets an error sentence and does not stop later requests."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence

from nats.aio.msg import Msg

from engine.bus.link import Unreachable, reaching
from engine.job import (
    DecodeReply,
    DecodeRequest,
    DescribeReply,
    DescribeRequest,
    EmbedReply,
    EmbedRequest,
    Malformed,
    decode,
    encode,
)

log = logging.getLogger(__name__)

Embed = Callable[[Sequence[str]], Awaitable[Sequence[Sequence[float]]]]
Describe = Callable[[DescribeRequest], Awaitable[DescribeReply]]
Decode = Callable[[DecodeRequest], Awaitable[DecodeReply]]


async def answer_decode(answer: Decode, msg: Msg) -> None:
    """Reply with thumbnails, or with the reason why there are none."""
    try:
        reply = await answer(decode(msg.data, DecodeRequest))
    except Malformed as error:
        reply = DecodeReply(error=f"The request is malformed: {error}"[:500])
    try:
        with reaching("answer with thumbnails"):
            await msg.respond(encode(reply))
    except Unreachable as error:
        log.warning("%s", error)


async def answer_describe(describe: Describe, msg: Msg) -> None:
    """Reply with prediction errors, or with the reason why there are none. A failed send is only logged."""
    try:
        reply = await describe(decode(msg.data, DescribeRequest))
    except Malformed as error:
        reply = DescribeReply(error=f"The request is malformed: {error}"[:500])
    try:
        with reaching("answer an image-to-prompt request"):
            await msg.respond(encode(reply))
    except Unreachable as error:
        log.warning("%s", error)


async def answer_embed(embed: Embed, msg: Msg) -> EmbedReply:
    """Return the vectors, or the reason why there are none."""
    try:
        texts = decode(msg.data, EmbedRequest).texts
        vectors = await embed(texts)
        return EmbedReply(vectors=tuple(tuple(float(x) for x in vector) for vector in vectors))
    except Malformed as error:
        return EmbedReply(error=f"The request is malformed: {error}"[:500])
    except Exception:
        log.exception("embedding failed")
        return EmbedReply(error="This worker failed to embed the texts.")
