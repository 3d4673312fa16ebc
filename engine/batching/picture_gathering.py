"""Gathers the pictures of a batch's images into the rows of each forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from engine.batching.model_inputs import PictureInput
from engine.batching.trajectory import Trajectory
from engine.models.pictures.picture_conditions import PictureRows


class _Span(NamedTuple):
    """Rows of a picture in a forward: those in `rows` of its tensors, from the forward's row `start` on."""

    start: int
    rows: slice
    picture: PictureInput

    @property
    def row_count(self) -> int:
        return self.rows.stop - self.rows.start


def gather_pictures(images: Sequence[Trajectory], forward_rows: int, forwards: int) -> list[tuple[PictureRows, ...]]:
    """Return the pictures of each forward, a value for each slot, in a sequence that the slots alone decide.

    Padding rows have none. Pictures of one slot with tensors of other shapes stay apart. In a pinned batch shape every
    row takes part, those without the picture with zeros and a scale of 0: the bits must not depend on other images.
    """
    spans_by_forward: list[dict[tuple[object, ...], list[_Span]]] = [{} for _ in range(forwards)]
    first_row = 0
    for image in images:
        for picture in image.model_inputs.pictures:
            key = (*picture.slot, *(tensor.shape[1:] for tensor in picture.tensors))
            for number, span in _split_rows(picture, first_row, image.rows, forward_rows):
                spans_by_forward[number].setdefault(key, []).append(span)
        first_row += image.rows
    is_pinned = images[0].bucket is not None
    return [
        tuple(_join_spans(spans[key], forward_rows, is_pinned) for key in sorted(spans, key=repr))
        for spans in spans_by_forward
    ]


def _split_rows(picture: PictureInput, first_row: int, rows: int, forward_rows: int) -> list[tuple[int, _Span]]:
    """Return (forward, span) of an image's rows, which may reach over several forwards."""
    spans: list[tuple[int, _Span]] = []
    row = 0
    while row < rows:
        number, start = divmod(first_row + row, forward_rows)
        count = min(rows - row, forward_rows - start)
        spans.append((number, _Span(start, slice(row, row + count), picture)))
        row += count
    return spans


def _join_spans(spans: Sequence[_Span], forward_rows: int, is_pinned: bool) -> PictureRows:
    first = spans[0].picture
    rows = [span.start + number for span in spans for number in range(span.row_count)]
    scales = [span.picture.scale for span in spans for _ in range(span.row_count)]
    parts = zip(*([tensor[span.rows] for tensor in span.picture.tensors] for span in spans), strict=True)
    joined = PictureRows(
        first.slot,
        torch.tensor(rows, device=first.tensors[0].device),
        tuple(part[0] if len(part) == 1 else torch.cat(part) for part in parts),
        torch.tensor(scales, device=first.tensors[0].device),
        rows == list(range(forward_rows)),
        scales[0] if len({*scales}) == 1 else None,
        first.network,
    )
    return joined.fill(forward_rows) if is_pinned and not joined.is_whole else joined
