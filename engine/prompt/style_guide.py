"""Says which styles the pictures of a prompt take in turn: those in which the model draws its subject well. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

_ARTICLES = re.compile(r"^(?:(?:an?|the|cute)\s+)+")
# The embedded model reads 24 tokens: these, four of a style, and two at the ends.
MAX_TOKENS = 18
_TOKEN = re.compile(r"\w{1,6}|[^\w\s]")


@dataclass(frozen=True)
class StyleGuide:
    """The styles of a model. In the main one it draws everything; in the others well the labels that are listed.

    `substitutes`: nouns that it reads as labels.
    """

    main_style: str
    labels_by_style: Mapping[str, frozenset[str]]
    substitutes: Mapping[str, str] = field(default_factory=dict[str, str])

    def choose_styles(self, text: str) -> tuple[str, ...]:
        """Return the styles that the pictures of a text take in turn; every other picture has the main one.

        A text has none if its label is not listed, or if it is so long that the model would cut the style off.
        """
        if estimate_token_count(replace_nouns(text, self.substitutes)) > MAX_TOKENS:
            return ()
        names = _list_names(replace_nouns(text.partition(",")[0], self.substitutes))
        others = [style for style, labels in self.labels_by_style.items() if not labels.isdisjoint(names)]
        return tuple(style for other in others for style in (self.main_style, other))


def _list_names(subject: str) -> tuple[str, str]:
    """Return a subject without punctuation, and without articles: a label may begin with one."""
    name = subject.lower().strip(" .!?()")
    return name, _ARTICLES.sub("", name)


def estimate_token_count(text: str) -> int:
    """Return about how many tokens of WordPiece a text has: one for every six letters begun, and for each mark."""
    return len(_TOKEN.findall(text))


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
