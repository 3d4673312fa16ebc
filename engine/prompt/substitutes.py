"""Replaces nouns that a model never learned by the word it knows that is nearest: *capybara* by *mouse face*. Pure.

It follows search engines, which expand a query by the synonyms and wider meanings of its words (Voorhees 1994, "Query
expansion using lexical-semantic relations").
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence

MAX_WORDS = 3  # of one noun: "tank top"
# Runs of words. A name in angle brackets is a textual inversion. A word with a hyphen is another word, and so is one
# with an apostrophe, but for a genitive: "don't", "terrier's".
_RUN = re.compile(r"(?<![\w<'’-])[A-Za-z]+(?: [A-Za-z]+)*(?![\w>-]|['’](?!s\b)\w)")
# Plural endings and what stands in their place (WordNet's `morphy(7WN)`), the longest first.
_PLURALS = (("ches", "ch"), ("shes", "sh"), ("ses", "s"), ("xes", "x"), ("ies", "y"), ("men", "man"), ("s", ""))


def replace_nouns(text: str, substitutes: Mapping[str, str], kept: Collection[str] = ()) -> str:
    """Return the text with each noun of `substitutes` (in lower case, singular) replaced; longer nouns first.

    A capital inside a run of words begins a name: "the singer Tom". `kept`: words in lower case that stay as they are.
    """
    return _RUN.sub(lambda run: " ".join(_replace_in_run(run[0].split(" "), substitutes, kept)), text)


def _replace_in_run(words: Sequence[str], substitutes: Mapping[str, str], kept: Collection[str]) -> Iterator[str]:
    start = 0
    while start < len(words):
        length = 1
        word = words[start]
        if not (start and word.istitle()) and word.lower() not in kept:
            length, word = _find_substitute(words[start : start + MAX_WORDS], substitutes)
        yield word
        start += length


def _find_substitute(words: Sequence[str], substitutes: Mapping[str, str]) -> tuple[int, str]:
    """Return how many of the first words are one noun, and its substitute; without one, the first word itself."""
    for length in range(len(words), 0, -1):
        noun = " ".join(words[:length]).lower()
        for form in list_forms(noun):
            if form in substitutes:
                return length, substitutes[form]
    return 1, words[0]


def list_forms(noun: str) -> Iterator[str]:
    """Yield a noun as it is written, then what may be its singular."""
    yield noun
    for ending, singular_ending in _PLURALS:
        if noun.endswith(ending) and len(noun) > len(ending) + 1:
            yield noun.removesuffix(ending) + singular_ending
