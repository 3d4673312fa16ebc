"""A worker's half of `/describe` without torch. It knows the fitting texts: each one in a prompt lowers the error, and
each other word raises it.
"""

from __future__ import annotations

from collections.abc import Sequence

from engine.contract import DescribeReply, DescribeRequest


class FakeDescriber:
    """A callable for `serve_describe`. `fitting_texts`: the texts of a good prompt. `requests`: the requests so far."""

    def __init__(self, *fitting_texts: str) -> None:
        self.fitting_texts = fitting_texts
        self.requests = list[DescribeRequest]()

    async def __call__(self, request: DescribeRequest) -> DescribeReply:
        return DescribeReply(errors=tuple(tuple(row) for row in await self.errors(request)))

    async def errors(self, request: DescribeRequest) -> Sequence[Sequence[float]]:
        self.requests.append(request)
        draws = range(request.first, request.first + request.draws)
        return [[(1 + draw % 3) * self._error(text) for draw in draws] for text in request.texts]

    def _error(self, text: str) -> float:
        known_words = " ".join(self.fitting_texts).split()
        other_words = [word for word in text.replace(",", "").split() if word not in known_words]
        return 1.0 - 0.2 * sum(fitting_text in text for fitting_text in self.fitting_texts) + 0.01 * len(other_words)
