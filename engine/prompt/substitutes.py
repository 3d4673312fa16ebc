"""Replaces nouns that a model never learned by the word it knows that is nearest: *capybara* by *mouse face*. Pure.

It follows search engines, which expand a query by the synonyms and wider meanings of its words (Voorhees 1994, "Query
expansion using lexical-semantic relations").
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

MAX_WORDS = 3  # of one noun: "tank top"
# Runs of words. A name in angle brackets is a textual inversion, and a word with a hyphen is another one.
_RUN = re.compile(r"(?<![\w<'-])[A-Za-z]+(?: [A-Za-z]+)*(?![\w>-])")
# Plural endings and what stands in their place (WordNet's `morphy(7WN)`), the longest first.
_PLURALS = (("ches", "ch"), ("shes", "sh"), ("ses", "s"), ("xes", "x"), ("ies", "y"), ("men", "man"), ("s", ""))


def replace_nouns(text: str, substitutes: Mapping[str, str]) -> str:
    """Return the text with each noun of `substitutes` (in lower case, singular) replaced; longer nouns first."""
    return _RUN.sub(lambda run: " ".join(_replace_in_run(run[0].split(" "), substitutes)), text)


def _replace_in_run(words: Sequence[str], substitutes: Mapping[str, str]) -> Iterator[str]:
    start = 0
    while start < len(words):
        length, word = _find_substitute(words[start : start + MAX_WORDS], substitutes)
        yield word
        start += length


def _find_substitute(words: Sequence[str], substitutes: Mapping[str, str]) -> tuple[int, str]:
    """Return how many of the first words are one noun, and its substitute; without one, the first word itself."""
    for length in range(len(words), 0, -1):
        noun = " ".join(words[:length]).lower()
        for form in _list_forms(noun):
            if form in substitutes:
                return length, substitutes[form]
    return 1, words[0]


def _list_forms(noun: str) -> Iterator[str]:
    """Yield a noun as it is written, then what may be its singular."""
    yield noun
    for ending, singular_ending in _PLURALS:
        if noun.endswith(ending) and len(noun) > len(ending) + 1:
            yield noun.removesuffix(ending) + singular_ending
