"""Requests that a worker answers at once, without a job: embed texts, score texts, decode keyframes."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from engine.contract.fields import (
    MAX_CANDIDATES,
    MAX_ESTIMATE_BYTES,
    MAX_FRAME_BYTES,
    MAX_KEYFRAMES,
    MAX_NOISINGS,
    MAX_THUMBNAIL_BYTES,
    CandidateText,
    Coordinate,
    Name,
    Sentence,
    Side,
    SquaredError,
    Text,
    VersionedValue,
)


class EmbedRequest(VersionedValue, frozen=True, kw_only=True):
    """Ask for the embedding of each text."""

    texts: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=64)]


class EmbedReply(VersionedValue, frozen=True, kw_only=True):
    """Unit vectors, one per text (mean-pooled, L2-normalised), or the reason why there are none."""

    vectors: Annotated[tuple[Annotated[tuple[Coordinate, ...], Meta(max_length=4096)], ...], Meta(max_length=64)] = ()
    error: Sentence = ""


class DescribeRequest(VersionedValue, frozen=True, kw_only=True):
    """Ask how well a model predicts an image's noise under each text (Li et al. 2023, arXiv 2303.16203).

    `revision`: the model's; empty: the one that the worker has, as in a recipe. `picture`: a PNG; the model sees its
    middle square at the native size. Each text is tried with the same `draws` noisings, from number `first` on of one
    fixed sequence.
    """

    model: Name
    revision: Annotated[str, Meta(max_length=64)] = ""
    picture: Annotated[bytes, Meta(min_length=1, max_length=MAX_FRAME_BYTES)]
    texts: Annotated[tuple[CandidateText, ...], Meta(min_length=1, max_length=MAX_CANDIDATES)]
    first: Annotated[int, Meta(ge=0, le=1000)] = 0
    draws: Annotated[int, Meta(ge=1, le=MAX_NOISINGS)] = 1


class DescribeReply(VersionedValue, frozen=True, kw_only=True):
    """For each text the mean squared error of the noise at each draw, or the reason why there is none.

    `may_retry_elsewhere`: this worker cannot answer now, another may.
    """

    errors: Annotated[
        tuple[Annotated[tuple[SquaredError, ...], Meta(max_length=MAX_NOISINGS)], ...], Meta(max_length=MAX_CANDIDATES)
    ] = ()
    error: Sentence = ""
    may_retry_elsewhere: bool = False


class DecodeRequest(VersionedValue, frozen=True, kw_only=True):
    """Decode the x0 of a ladder's keyframes into thumbnails, with the model revision that made them.

    `width`, `height` and `tile` are the recipe's. Each of `latents` is float16, C-order, in the shape that follows from
    them.
    """

    model: Name
    revision: Annotated[str, Meta(min_length=1, max_length=64)]
    width: Side
    height: Side
    tile: bool = False
    latents: Annotated[
        tuple[Annotated[bytes, Meta(min_length=2, max_length=MAX_ESTIMATE_BYTES)], ...],
        Meta(min_length=1, max_length=MAX_KEYFRAMES),
    ]


class DecodeReply(VersionedValue, frozen=True, kw_only=True):
    """One JPEG for each of the latents, or the reason why there are none."""

    thumbnails: Annotated[
        tuple[Annotated[bytes, Meta(min_length=1, max_length=MAX_THUMBNAIL_BYTES)], ...], Meta(max_length=MAX_KEYFRAMES)
    ] = ()
    error: Sentence = ""
