"""Names of samplers: ours, those of other programs, and those of classes in diffusers."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, get_args

from engine.job import Sampler

if TYPE_CHECKING:
    from collections.abc import Mapping

NAMES: tuple[Sampler, ...] = get_args(Sampler)
LISTED = f"{', '.join(NAMES[:-1])} or {NAMES[-1]}"
LONGEST = 4  # words of a name
QUOTES = {'"': '"', "“": "”", "„": "“", "'": "'"}

# Names in the form in which they are compared: small letters and digits, p for +, without "sample" and "scheduler".
_OTHERS: Mapping[str, Sampler] = MappingProxyType(
    {
        "eulera": "euler_ancestral",
        "eulerdiscrete": "euler",
        "eulerancestraldiscrete": "euler_ancestral",
        "dpmsolverpp": "dpmpp_2m",
        "dpmsolvermultistep": "dpmpp_2m",
        "dpm2": "kdpm2",
        "kdpm2discrete": "kdpm2",
        "heundiscrete": "heun",
        "unipcbh2": "unipc",
        "unipcmultistep": "unipc",
        "own": "native",
    }
)
_KNOWN: Mapping[str, Sampler] = MappingProxyType({**_OTHERS, **{name.replace("_", ""): name for name in NAMES}})
# What other programs append to a sampler's name: it makes another sampler, and is no word of the prompt.
_VARIANTS = frozenset({"karras", "exponential", "polyexponential", "sde", "heun", "ancestral", "trailing"})
_VARIANT_A = "a"  # of "DPM2 a"; before further words it is the article


def named(written: str) -> Sampler | None:
    """Return the sampler of that name: "DPM++ 2M Karras", "k_euler_a", "DDIMScheduler"; None if there is none."""
    bare = re.sub(r"[\s_.-]", "", written.lower().replace("+", "p"))
    bare = bare.removeprefix("sample").removesuffix("scheduler")
    return _KNOWN.get(bare) or _KNOWN.get(bare.removeprefix("k"))


def leading(text: str) -> tuple[str, str]:
    """Return the value of `--sampler` at the beginning of `text`, and the rest: names have up to four words.

    It is the longest beginning that is a name, else the first word. Quotation marks override that.
    """
    text = text.strip()
    if text[:1] in QUOTES and (end := text.find(QUOTES[text[0]], 1)) > 0:
        return text[1:end].strip(), text[end + 1 :]
    words = text.split(" ")
    taken = next((n for n in range(min(LONGEST, len(words)), 0, -1) if named(_bare(words[:n]))), 1)
    if taken > 1 and taken < len(words) and words[taken - 1].lower() == _VARIANT_A:
        taken -= 1
    while taken < len(words) and not words[taken - 1].endswith(",") and _varies(words, taken):
        taken += 1
    return _bare(words[:taken]), " ".join(words[taken:])


def _bare(words: list[str]) -> str:
    return " ".join(words).rstrip(",")


def _varies(words: list[str], place: int) -> bool:
    """Return whether the word there makes another sampler of the name before it."""
    word = words[place].lower().rstrip(",")
    return word in _VARIANTS or (word == _VARIANT_A and place == len(words) - 1)
