"""Sums of words: `royalty + woman - 1.5*man` as weighted terms, and back. Pure text; knows no vectors.

A plus sign stands between terms wherever it is written; a minus sign only after a space or at the beginning, since
"x-ray" and "t-shirt" have one of their own. A phrase with either in it stands in double quotes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.unfit import Unfit

MAX_TERMS = 8
MAX_CHARACTERS = 200  # of a term
MAX_WEIGHT = 10.0

_MINUS = "-−–"  # what a keyboard gives, and what editors make of it
_SIGN = rf"\+|(?<![^\s+])[{_MINUS}]"
_TOKEN = re.compile(rf'"(?P<quoted>[^"]*)"|(?P<sign>{_SIGN})|(?P<words>(?:(?!{_SIGN})[^"])+)|"')
_AMOUNT = re.compile(r"(?P<weight>[0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})\s*[*×]\s*")


@dataclass(frozen=True)
class Term:
    """Words and how much of them: a negative weight takes them away."""

    text: str
    weight: float = 1.0


def read(expression: str) -> tuple[Term, ...]:
    """The terms of a sum, in order. Raises `Unfit` with one sentence for what is no sum."""
    text = expression.replace("“", '"').replace("”", '"')
    if len(text) > MAX_TERMS * (MAX_CHARACTERS + 20):
        raise _wrong(f"The sum is too long: at most {MAX_TERMS} terms of {MAX_CHARACTERS} characters.")
    terms: list[Term] = []
    for sign, words in _pieces(text):
        terms.append(_term(sign, words))
    if not terms:
        raise _wrong("The sum is empty: write one like “royalty + woman - man”.")
    if len(terms) > MAX_TERMS:
        raise _wrong(f"A sum may have {MAX_TERMS} terms; this one has {len(terms)}.")
    return tuple(terms)


def written(terms: Sequence[Term]) -> str:
    """The sum as it could be typed; `read` gives the same terms again."""
    said = ""
    for number, term in enumerate(terms):
        sign = "-" if term.weight < 0 else "+"
        lead = f" {sign} " if number else ("- " if term.weight < 0 else "")
        amount = "" if abs(term.weight) == 1 else f"{abs(term.weight):.6f}".rstrip("0").rstrip(".") + "*"
        said += f"{lead}{amount}{_quoted(term.text)}"
    return said


def _pieces(text: str) -> list[tuple[str, str]]:
    """(sign, what stands until the next sign), quotes kept."""
    pieces: list[tuple[str, str]] = []
    sign, words = "", ""
    for token in _TOKEN.finditer(text):
        if token.group() == '"':
            raise _wrong("A quotation mark has no partner.")
        if token["sign"] is None:
            words += token.group()
            continue
        if words.strip():
            pieces.append((sign, words))
        elif sign or pieces:
            raise _wrong(f"There are no words between two signs: {sign}{token.group()}.")
        sign, words = token.group(), ""
    if words.strip():
        pieces.append((sign, words))
    elif sign:
        raise _wrong(f"There are no words after the last {sign} sign.")
    return pieces


def _term(sign: str, words: str) -> Term:
    weighed = _AMOUNT.match(words.strip())
    amount = float(weighed["weight"]) if weighed else 1.0
    rest = words.strip()[weighed.end() :] if weighed else words.strip()
    text = _unquoted(rest)
    if not text:
        raise _wrong(f"There are no words for the weight {amount:g} to weigh.")
    if len(text) > MAX_CHARACTERS:
        raise _wrong(f"A term may have {MAX_CHARACTERS} characters; one has {len(text)}.")
    if amount > MAX_WEIGHT:
        raise _wrong(f"The weight {amount:g} of “{text[:40]}” is more than {MAX_WEIGHT:g}.")
    return Term(text, -amount if sign and sign in _MINUS else amount)


def _unquoted(words: str) -> str:
    """The text of a term, on one line and printable. A quoted phrase stands alone in its term."""
    if '"' in words and not (words.startswith('"') and words.endswith('"') and words.count('"') == 2):
        raise _wrong("A phrase in quotes is a term of its own: put a + or - sign between it and the next.")
    printable = "".join(mark if mark.isprintable() else " " for mark in words.strip('"'))
    return " ".join(printable.split())


def _quoted(text: str) -> str:
    """Quoted only where it would be read otherwise."""
    safe = text == _plainly(text)
    return text if safe else f'"{text}"'


def _plainly(text: str) -> str | None:
    signs = any(token["sign"] for token in _TOKEN.finditer(text))
    return None if signs or _AMOUNT.match(text) else text


def _wrong(sentence: str) -> Unfit:
    return Unfit(sentence, "member")
