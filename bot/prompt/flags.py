"""The flags of a prompt: names, values, and their place in the text.

It knows Midjourney's flags too, since people paste them: it parses them with their values, then ignores them with a
note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, get_args

from rapidfuzz import fuzz, process

from bot.domain.errors import UserError
from bot.domain.texts import shorten
from bot.prompt.concepts import remove_emphasis
from bot.prompt.part_flags import CONTROL_RANGE, REFERENCE_RANGE, extract_tags
from bot.prompt.part_flags import VALUE_RANGE as LORAS
from engine.contract import Sampler
from engine.contract.fields import SAMPLER_ROWS

if TYPE_CHECKING:
    from collections.abc import Mapping

SAMPLER_NAMES: tuple[Sampler, ...] = get_args(Sampler)
SAMPLER_LIST = f"{', '.join(SAMPLER_NAMES[:-1])} or {SAMPLER_NAMES[-1]}"
EVALUATIONS_RANGE = "5 to 1000, all or auto"
FlagArgument = Literal["nothing", "number", "word", "words", "sampler"]


@dataclass(frozen=True)
class Flag:
    """One of our own flags. `value_range` describes its values, for help, autocomplete and refusals."""

    name: str
    argument: FlagArgument
    value_range: str
    description: str


OUR_FLAGS = {
    flag.name: flag
    for flag in (
        Flag("steps", "word", "1 to 1000", "how many sampler steps"),
        Flag("evaluations", "word", EVALUATIONS_RANGE, "at how many of the steps the network is asked"),
        Flag("draft", "nothing", "no value", "asks the network 25 times only; a button finishes the picture"),
        Flag("seed", "word", "0 to 4294967295", "the noise to start from; the same seed gives the same picture"),
        Flag("guidance", "word", "1 to 30", "how closely to follow the prompt"),
        Flag("interval", "word", "from-to, each 0 to 1, as in 0.2-0.8", "in which part of the steps guidance holds"),
        Flag("ar", "word", "W:H, from 1:4 to 4:1", "the shape of the picture"),
        Flag("no", "words", "words, as in --no fog, text", "the negative prompt: what to steer away from"),
        Flag("model", "word", "the name of a model", "which model draws"),
        Flag("lora", "word", LORAS, "a LoRA of the model; may be given more than once"),
        Flag("control", "word", CONTROL_RANGE, "which shapes of the control picture are followed"),
        Flag("reference", "word", REFERENCE_RANGE, "how the reference picture is taken over"),
        Flag("vae", "word", "the name of an autoencoder, or none", "an autoencoder in place of the model's own"),
        Flag("clip-skip", "word", "1 to 12; 1 is all layers", "the layer of CLIP that is read, from its end"),
        Flag("sampler", "sampler", SAMPLER_LIST, "which sampler takes the steps"),
        Flag("count", "word", "1 to 4", "how many pictures"),
        Flag("best", "nothing", "no value", "draws twice as many, and shows those nearest to the prompt"),
        Flag("fast", "nothing", "no value", "30 steps of DPM++ 2M, or of the model's own sampler"),
        Flag("turbo", "nothing", "no value", "4 steps without guidance, if the model has a LoRA for that"),
        Flag("relax", "nothing", "no value", "waits longer, and counts against a limit of its own"),
        Flag("strength", "word", "0.05 to 1", "how much of the init image is drawn anew"),
        Flag("iw", "word", "0 to 3", "how much the init image weighs; 1 is --strength 0.6"),
        Flag("edit", "nothing", "no value", "changes the init image as the words say, with a model that can"),
        Flag("stop", "word", "10 to 100", "ends at this percentage of the steps, unfinished"),
        Flag("tile", "nothing", "no value", "edges that fit each other, as in wallpaper"),
        Flag("mix", "nothing", "no value", "weighted parts (::) are mixed into one prompt"),
        Flag("chaos", "word", "0 to 100", "how much guidance differs between the pictures"),
        Flag("raw", "nothing", "no value", "adds none of the model's styles to the prompt"),
        Flag("repeat", "word", "1 to 10", "how many jobs of the same prompt"),
        Flag("quality", "word", "0.25 to 4", "a factor on the usual steps"),
        Flag("walk", "words", "words, as in --walk a terrier", "pictures from this prompt to another one, and a film"),
        Flag("frames", "word", "4 to 16", "how many pictures a walk has"),
    )
}
ALIASES = {
    "aspect": "ar",
    "negative": "no",
    "cfg": "guidance",
    "guidance-interval": "interval",
    "cfg-interval": "interval",
    "loras": "lora",
    "c": "chaos",
    "r": "repeat",
    "q": "quality",
    "controlnet": "control",
    "clip_skip": "clip-skip",
    "clipskip": "clip-skip",
}

# Midjourney's flags, by what they take: ignored here. "number" and "word" may also stand without a value.
IGNORED_FLAGS: dict[str, FlagArgument] = {
    **dict.fromkeys(("video", "stealth", "public", "uplight", "upbeta", "hd"), "nothing"),
    **dict.fromkeys(("beta", "test", "testp", "creative", "upanime", "loop"), "nothing"),
    **dict.fromkeys(("version", "v", "stylize", "stylise", "s", "niji", "weird", "w"), "number"),
    **dict.fromkeys(("zoom", "cw", "sw", "ow", "exp", "sv", "sameseed", "bs", "hq"), "number"),
    **dict.fromkeys(("style", "motion", "mode", "end"), "word"),
    **dict.fromkeys(("sref", "cref", "oref", "p", "personalize", "profile"), "words"),
}

# Phones turn two hyphens into an em or en dash. A flag begins a word, or follows a weight's `::` directly.
_START = re.compile(r"(?:(?<=\s)|(?<=::)|^)(?:-{2,3}|-?[–—―]{1,2})([A-Za-z][A-Za-z0-9_-]*)=?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


@dataclass(frozen=True)
class ParsedFlag:
    """A flag as it was written: our own or Midjourney's name for it, and its value ("" if it has none)."""

    name: str
    value: str

    @property
    def text(self) -> str:
        """The flag for a note or a refusal: `--v 6`."""
        return f"--{self.name} {shorten(self.value, 40)}".rstrip()


def split_flags(text: str) -> tuple[str, tuple[ParsedFlag, ...]]:
    """Return the words of `text`, and its flags in order. Text after a flag's value belongs to the words again.

    `<lora:name:0.8>` is a flag too, wherever it stands: AUTOMATIC1111's way to write `--lora name:0.8`. Raises
    `UserError` for an unknown flag, naming the nearest one.
    """
    text, tags = extract_tags(text)
    starts = list(_START.finditer(text))
    words = [text[: starts[0].start()] if starts else text]
    flags = [ParsedFlag("lora", tag) for tag in tags]
    ends = [start.start() for start in starts[1:]] + [len(text)]
    for start, end in zip(starts, ends, strict=False):
        name = _resolve_name(start[1])
        argument = OUR_FLAGS[name].argument if name in OUR_FLAGS else IGNORED_FLAGS[name]
        value, rest = _split_value(argument, text[start.end() : end])
        flags.append(ParsedFlag(name, value))
        words.append(rest)
    return " ".join(" ".join(words).split()), tuple(flags)


@dataclass(frozen=True)
class FlagSpan:
    """A flag in its place: its written name in lower case, its text up to the next flag, and what follows its name."""

    name: str
    text: str
    tail: str


def split_spans(text: str) -> tuple[str, tuple[FlagSpan, ...]]:
    """Return the text before the first flag, and all flags in order, known or not."""
    starts = list(_START.finditer(text))
    ends = [*(start.start() for start in starts), len(text)]
    spans = zip(starts, ends[1:], strict=True)
    return text[: ends[0]], tuple(
        FlagSpan(match[1].lower(), text[match.start() : end], text[match.end() : end]) for match, end in spans
    )


def is_known(name: str) -> bool:
    """Return whether it is a flag of ours or of Midjourney's, or another name for one."""
    return name in OUR_FLAGS or name in ALIASES or name in IGNORED_FLAGS


@lru_cache(maxsize=2048)  # a job's title is needed again for each of its previews
def prompt_title(text: str) -> str:
    """Return the title of a job with the prompt `text`: its words without emphasis, its walk's end, its --no text.

    No other flag is part of it.
    """
    try:
        words, flags = split_flags(text)
    except UserError:  # a negative prompt of its own field may look like an unknown flag
        return text
    negative, walk_end = (
        next((flag.value for flag in reversed(flags) if flag.name == name), "") for name in ("no", "walk")
    )
    words, negative, walk_end = (" ".join(remove_emphasis(part).split()) for part in (words, negative, walk_end))
    words = f"{words} → {walk_end}" if words and walk_end else words
    return f"{words} (no {negative})" if words and negative else words or text


def find_first_flag(text: str) -> int:
    """Return where the first flag of `text` begins; its length if there is none."""
    match = _START.search(text)
    return match.start() if match else len(text)


def split_at_flags(text: str) -> tuple[str, str]:
    """Return the words before any flag, and the rest, each on one line."""
    flag_start = find_first_flag(text)
    return " ".join(text[:flag_start].split()), " ".join(text[flag_start:].split())


def _split_value(argument: FlagArgument, text: str) -> tuple[str, str]:
    if argument == "nothing":
        return "", text
    if argument == "words":
        return " ".join(text.split()), ""
    if argument == "sampler":
        return split_sampler(text)
    first_word, _, rest = text.strip().partition(" ")
    if argument == "number" and not _NUMBER.fullmatch(first_word):
        return "", text
    return first_word.rstrip(","), rest


def _resolve_name(typed_name: str) -> str:
    name = typed_name.lower()
    name = ALIASES.get(name, name)
    if name in OUR_FLAGS or name in IGNORED_FLAGS:
        return name
    names = sorted({*OUR_FLAGS, *ALIASES, *(ignored_name for ignored_name in IGNORED_FLAGS if len(ignored_name) > 2)})
    nearest_name = process.extractOne(name[:40], names, scorer=fuzz.ratio)[0]
    hint = "without effect here" if nearest_name in IGNORED_FLAGS else describe_values(nearest_name)
    raise UserError(f"There is no flag --{shorten(typed_name, 40)}; the nearest is --{nearest_name} ({hint}).")


def describe_values(name: str) -> str:
    """Describe in words the values that one of our flags takes."""
    return OUR_FLAGS[ALIASES.get(name, name)].value_range


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
