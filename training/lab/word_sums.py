"""Parses sums of words such as `royalty + woman - 1.5*man` into weighted terms, and formats them. Pure text.

A plus sign separates terms anywhere. A minus sign does so only after a space or at the beginning, since "x-ray" and
"t-shirt" contain one. A phrase that contains a sign stands in double quotes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from engine.contract import JobRejected

MAX_TERMS = 8
MAX_TERM_LENGTH = 200  # of a term
MAX_WEIGHT = 10.0

_MINUS = "-−–"  # what a keyboard types, and what editors turn it into
_SIGN = rf"\+|(?<![^\s+])[{_MINUS}]"
_TOKEN = re.compile(rf'"(?P<quoted>[^"]*)"|(?P<sign>{_SIGN})|(?P<words>(?:(?!{_SIGN})[^"])+)|"')
_AMOUNT = re.compile(r"(?P<weight>[0-9]{1,6}(?:\.[0-9]{0,6})?|\.[0-9]{1,6})\s*[*×]\s*")


@dataclass(frozen=True)
class Term:
    """A phrase and its weight; a negative weight subtracts it."""

    text: str
    weight: float = 1.0


def parse_sum(expression: str) -> tuple[Term, ...]:
    """Parse a sum into its terms, in order. Raises `JobRejected` with one sentence if it is not a sum."""
    text = expression.replace("“", '"').replace("”", '"')
    if len(text) > MAX_TERMS * (MAX_TERM_LENGTH + 20):
        raise _make_error(f"The sum is too long: at most {MAX_TERMS} terms of {MAX_TERM_LENGTH} characters.")
    terms = [_parse_term(sign, words) for sign, words in _split_terms(text)]
    if not terms:
        raise _make_error("The sum is empty: write one like “royalty + woman - man”.")
    if len(terms) > MAX_TERMS:
        raise _make_error(f"A sum may have {MAX_TERMS} terms; this one has {len(terms)}.")
    return tuple(terms)


def format_sum(terms: Sequence[Term]) -> str:
    """Format the sum as it could be typed; `parse_sum` returns the same terms again."""
    text = ""
    for number, term in enumerate(terms):
        sign = "-" if term.weight < 0 else "+"
        separator = f" {sign} " if number else ("- " if term.weight < 0 else "")
        amount = "" if abs(term.weight) == 1 else f"{abs(term.weight):.6f}".rstrip("0").rstrip(".") + "*"
        text += f"{separator}{amount}{_quote(term.text)}"
    return text


def _split_terms(text: str) -> list[tuple[str, str]]:
    """Split into (sign, text until the next sign), quotes kept."""
    pieces: list[tuple[str, str]] = []
    sign = ""
    words = ""
    for token in _TOKEN.finditer(text):
        if token.group() == '"':
            raise _make_error("A quotation mark is not closed.")
        if token["sign"] is None:
            words += token.group()
            continue
        if words.strip():
            pieces.append((sign, words))
        elif sign or pieces:
            raise _make_error(f"There are no words between two signs: {sign}{token.group()}.")
        sign = token.group()
        words = ""
    if words.strip():
        pieces.append((sign, words))
    elif sign:
        raise _make_error(f"There are no words after the last {sign} sign.")
    return pieces


def _parse_term(sign: str, words: str) -> Term:
    weight_match = _AMOUNT.match(words.strip())
    amount = float(weight_match["weight"]) if weight_match else 1.0
    phrase = words.strip()[weight_match.end() :] if weight_match else words.strip()
    text = _unquote(phrase)
    if not text:
        raise _make_error(f"There are no words for the weight {amount:g}.")
    if len(text) > MAX_TERM_LENGTH:
        raise _make_error(f"A term may have {MAX_TERM_LENGTH} characters; one has {len(text)}.")
    if amount > MAX_WEIGHT:
        raise _make_error(f"The weight {amount:g} of “{text[:40]}” is more than {MAX_WEIGHT:g}.")
    return Term(text, -amount if sign and sign in _MINUS else amount)


def _unquote(words: str) -> str:
    """Return a term's text on one line, printable. A quoted phrase must be a term by itself."""
    if '"' in words and not (words.startswith('"') and words.endswith('"') and words.count('"') == 2):
        raise _make_error("A phrase in quotes must be a whole term: put a + or - sign between it and the next.")
    printable = "".join(letter if letter.isprintable() else " " for letter in words.strip('"'))
    return " ".join(printable.split())


def _quote(text: str) -> str:
    """Quote the text if it would be parsed otherwise."""
    has_sign = any(token["sign"] for token in _TOKEN.finditer(text))
    return f'"{text}"' if has_sign or _AMOUNT.match(text) else text


def _make_error(message: str) -> JobRejected:
    return JobRejected(message, "member")
