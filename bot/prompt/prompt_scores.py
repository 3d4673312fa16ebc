"""Scores for image-to-prompt: how much better each text predicts an image's noise than no text. Pure.

Errors arrive draw by draw. At some levels noise is easier to predict than at others. So every error counts as a share
of the error without text at the same draw. Only the same draws are compared.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

EMPTY_TEXT = ""  # a prompt without words
MIN_STANDARD_ERRORS = 2.0  # standard errors by which a text must be better than another to replace it
MIN_GAIN = 0.002  # and by at least this share of the error


class PromptScores:
    """The errors of one image."""

    def __init__(self) -> None:
        self._errors: dict[str, dict[int, float]] = {}

    def add(self, texts: Sequence[str], first_draw: int, errors: Sequence[Sequence[float]]) -> None:
        """Add the errors of each text at the draws from `first_draw` on."""
        for text, text_errors in zip(texts, errors, strict=True):
            self._errors.setdefault(text, {}).update(enumerate(text_errors, first_draw))

    @property
    def text_count(self) -> int:
        """The number of texts with words."""
        return len(self._errors.keys() - {EMPTY_TEXT})

    def missing_texts(self, texts: Iterable[str], draws: range) -> list[str]:
        """Return the texts without a score at some of these draws, each once; the empty text too."""
        required_texts = dict.fromkeys((EMPTY_TEXT, *texts))
        return [text for text in required_texts if not self._errors.get(text, {}).keys() >= set(draws)]

    def error_reduction(self, text: str, draws: range) -> float:
        """Return the share by which the error is lower than without words, over these draws."""
        return 1.0 - statistics.fmean(self._error_share(text, draw) for draw in draws)

    def best_texts(self, texts: Iterable[str], draws: range, count: int) -> list[str]:
        """Return the best of these texts over these draws, in order; of equal ones the earlier first."""
        return sorted(dict.fromkeys(texts), key=lambda text: -self.error_reduction(text, draws))[:count]

    def is_clearly_better(self, text: str, other_text: str, draws: range) -> bool:
        """Return whether a text beats another by more than chance and than `MIN_GAIN`, over two draws at least."""
        differences = [self._error_share(other_text, draw) - self._error_share(text, draw) for draw in draws]
        standard_error = statistics.stdev(differences) / math.sqrt(len(differences))
        return statistics.fmean(differences) > max(MIN_GAIN, MIN_STANDARD_ERRORS * standard_error)

    def _error_share(self, text: str, draw: int) -> float:
        baseline = self._errors[EMPTY_TEXT][draw]
        return self._errors[text][draw] / baseline if baseline > 0 else 1.0
