"""Names of samplers: Darkroom's, those of other programs, and those of classes in diffusers."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, get_args

from engine.contract import Sampler
from engine.contract.fields import SAMPLER_ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping

SAMPLER_NAMES: tuple[Sampler, ...] = get_args(Sampler)
SAMPLER_LIST = f"{', '.join(SAMPLER_NAMES[:-1])} or {SAMPLER_NAMES[-1]}"
MAX_NAME_WORDS = 4  # words of a name
QUOTE_PAIRS = {'"': '"', "“": "”", "„": "“", "'": "'"}

_SAMPLERS_BY_NAME: Mapping[str, Sampler] = MappingProxyType(
    {
        **{other_name: row.name for row in SAMPLER_ROWS for other_name in row.other_names},
        **{name.replace("_", ""): name for name in SAMPLER_NAMES},
    }
)
# What other programs append to a sampler's name: it makes another sampler, and is no word of the prompt.
_VARIANTS = frozenset({"karras", "exponential", "polyexponential", "sde", "heun", "ancestral", "trailing"})
_VARIANT_A = "a"  # of "DPM2 a"; before further words it is the article


def find_sampler(text: str) -> Sampler | None:
    """Return the sampler of that name: "DPM++ 2M Karras", "k_euler_a", "DDIMScheduler"; None if there is none."""
    key = re.sub(r"[\s_.-]", "", text.lower().replace("+", "p"))
    key = key.removeprefix("sample").removesuffix("scheduler")
    return _SAMPLERS_BY_NAME.get(key) or _SAMPLERS_BY_NAME.get(key.removeprefix("k"))


def split_sampler(text: str) -> tuple[str, str]:
    """Return the value of `--sampler` at the beginning of `text`, and the rest: names have up to four words.

    It is the longest beginning that is a name, else the first word. Quotation marks override that.
    """
    text = text.strip()
    if text[:1] in QUOTE_PAIRS and (end := text.find(QUOTE_PAIRS[text[0]], 1)) > 0:
        return text[1:end].strip(), text[end + 1 :]
    words = text.split(" ")
    word_count = next(
        (n for n in range(min(MAX_NAME_WORDS, len(words)), 0, -1) if find_sampler(_join_name(words[:n]))), 1
    )
    if word_count > 1 and word_count < len(words) and words[word_count - 1].lower() == _VARIANT_A:
        word_count -= 1
    while word_count < len(words) and not words[word_count - 1].endswith(",") and _is_variant(words, word_count):
        word_count += 1
    return _join_name(words[:word_count]), " ".join(words[word_count:])


def _join_name(words: list[str]) -> str:
    return " ".join(words).rstrip(",")


def _is_variant(words: list[str], index: int) -> bool:
    """Return whether the word there makes another sampler of the name before it."""
    word = words[index].lower().rstrip(",")
    return word in _VARIANTS or (word == _VARIANT_A and index == len(words) - 1)
