"""The error for a refused request, with the sentence for the member."""

from __future__ import annotations

from typing import Literal

HttpStatus = Literal[400, 401, 403, 404, 410, 413, 422, 429]


class UserError(Exception):
    """A request refused by a rule or for the member's mistake, never for a bug: shown as it is, logged only as a count.

    `status`, for web clients: 422 refused by the grammar, 429 by a limit, 404 not found, 410 gone, 403 not permitted,
    401 no valid key, 413 too large, 400 malformed. `retry_at`: when the same request would be admitted, in seconds
    since 1970, if known.
    The sentence may quote the member, so a front end escapes it like any other foreign text.
    """

    def __init__(self, sentence: str, status: HttpStatus = 422, *, retry_at: float | None = None) -> None:
        super().__init__(sentence)
        self.sentence = sentence
        self.status: HttpStatus = status
        self.retry_at = retry_at
