"""Refused: a member's request that the house does not take, with the sentence that the member is shown.

Knows the status a web client gets for it; knows nothing of Discord, HTTP or why a rule exists.
"""

from __future__ import annotations

from typing import Literal

Status = Literal[400, 403, 404, 410, 413, 422, 429]


class Refused(Exception):
    """The member's business, never ours: shown as it is, logged at most as a count.

    `status`: 422 refused by the grammar, 429 by a limit, 404 not there, 410 not there any more, 403 not theirs, 413 too
    large, 400 malformed.
    `frees`: when the same request would be taken, in seconds since 1970, where that is known. The sentence may quote
    the member's own words, so a front end escapes it like any other text from outside.
    """

    def __init__(self, sentence: str, status: Status = 422, *, frees: float | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status: Status = status
        self.frees = frees
