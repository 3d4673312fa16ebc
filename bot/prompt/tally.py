"""Scores for image-to-prompt: how much better each text predicts an image's noise than no text. Pure.

Errors arrive draw by draw. Noise is easier to predict at some levels than at others, so every error counts as a share
of the one without text at the same draw. Texts are compared over the same draws only.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

NOTHING = ""  # the text without words
CLEARLY = 2.0  # standard errors by which a text must be better than another to replace it
LEAST = 0.002  # and by how much at least, as a share of the error


class Tally:
    """The errors of one image."""

    def __init__(self) -> None:
        self._errors: dict[str, dict[int, float]] = {}

    def add(self, texts: Sequence[str], first: int, errors: Sequence[Sequence[float]]) -> None:
        """Add the errors of each text at the draws from `first` on."""
        for text, found in zip(texts, errors, strict=True):
            self._errors.setdefault(text, {}).update(enumerate(found, first))

    @property
    def tried(self) -> int:
        """The number of texts with words."""
        return len(self._errors.keys() - {NOTHING})

    def missing(self, texts: Iterable[str], draws: range) -> list[str]:
        """Return the texts not tried with all of these draws yet, each once; the one without words among them."""
        wanted = dict.fromkeys((NOTHING, *texts))
        return [text for text in wanted if not self._errors.get(text, {}).keys() >= set(draws)]

    def gain(self, text: str, draws: range) -> float:
        """Return the share by which the error is lower than without words, over these draws."""
        return 1.0 - statistics.fmean(self._share(text, draw) for draw in draws)

    def best(self, texts: Iterable[str], draws: range, most: int) -> list[str]:
        """Return the best of these texts over these draws, in order; of equal ones the earlier first."""
        return sorted(dict.fromkeys(texts), key=lambda text: -self.gain(text, draws))[:most]

    def clearly(self, text: str, other: str, draws: range) -> bool:
        """Return whether a text beats another by more than chance and than `LEAST`, over two draws at least."""
        better = [self._share(other, draw) - self._share(text, draw) for draw in draws]
        doubt = statistics.stdev(better) / math.sqrt(len(better))
        return statistics.fmean(better) > max(LEAST, CLEARLY * doubt)

    def _share(self, text: str, draw: int) -> float:
        without = self._errors[NOTHING][draw]
        return self._errors[text][draw] / without if without > 0 else 1.0
