"""Says which styles the pictures of a prompt take in turn: those in which the model draws its subject well. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from engine.prompt.substitutes import replace_nouns

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
