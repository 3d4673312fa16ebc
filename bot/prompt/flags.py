"""The flags of a prompt: names, values, and their place in the text.

Midjourney's flags are included, since people paste them: they are parsed with their values, then ignored with a note.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

from rapidfuzz import fuzz, process

from bot.prompt.emphasis import bare
from bot.prompt.loras import RANGE as LORAS
from bot.prompt.loras import untagged
from bot.prompt.samplers import LISTED, leading
from bot.refused import Refused
from bot.sentences import shortened

Takes = Literal["nothing", "number", "word", "words", "sampler"]


@dataclass(frozen=True)
class Flag:
    """One of our own flags. `range` describes its values, for help, autocomplete and refusals."""

    name: str
    takes: Takes
    range: str
    about: str


OURS = {
    flag.name: flag
    for flag in (
        Flag("steps", "word", "1 to 1000", "how many sampler steps"),
        Flag("seed", "word", "0 to 4294967295", "the noise to start from; the same seed gives the same picture"),
        Flag("guidance", "word", "1 to 30", "how closely to follow the words"),
        Flag("interval", "word", "from-to, each 0 to 1, as in 0.2-0.8", "in which part of the steps guidance holds"),
        Flag("ar", "word", "W:H, from 1:4 to 4:1", "the shape of the picture"),
        Flag("no", "words", "words, as in --no fog, text", "what to steer away from"),
        Flag("model", "word", "the name of a model", "which model draws"),
        Flag("lora", "word", LORAS, "a LoRA of the model; may be given more than once"),
        Flag("sampler", "sampler", LISTED, "which sampler takes the steps"),
        Flag("count", "word", "1 to 4", "how many pictures"),
        Flag("fast", "nothing", "no value", "30 steps of DPM++ 2M, or of the model's own sampler"),
        Flag("relax", "nothing", "no value", "waits longer, and counts against no cost limit"),
        Flag("strength", "word", "0.05 to 1", "how much of the init image is drawn anew"),
        Flag("iw", "word", "0 to 3", "how much the init image weighs; 1 is --strength 0.6"),
        Flag("stop", "word", "10 to 100", "ends at this percentage of the steps, unfinished"),
        Flag("tile", "nothing", "no value", "edges that fit each other, as in wallpaper"),
        Flag("mix", "nothing", "no value", "weighted parts (::) are mixed into one prompt"),
        Flag("chaos", "word", "0 to 100", "how much guidance differs between the pictures"),
        Flag("repeat", "word", "1 to 10", "how many jobs of the same prompt"),
        Flag("quality", "word", "0.25 to 4", "a factor on the usual steps"),
        Flag(
            "walk",
            "words",
            "words, as in --walk a terrier",
            "pictures from this prompt to another one, and a film",
        ),
        Flag("frames", "word", "4 to 16", "how many pictures a walk has"),
    )
}
ALIASES = {
    "aspect": "ar", "negative": "no", "cfg": "guidance", "guidance-interval": "interval", "cfg-interval": "interval",
    "loras": "lora", "c": "chaos", "r": "repeat", "q": "quality",
}  # fmt: skip

# Midjourney's flags, by what they take: ignored here. "number" and "word" may also stand without a value.
THEIRS: dict[str, Takes] = {
    **dict.fromkeys(("video", "turbo", "stealth", "public", "uplight", "upbeta", "hd"), "nothing"),
    **dict.fromkeys(("draft", "beta", "test", "testp", "creative", "upanime", "loop", "raw"), "nothing"),
    **dict.fromkeys(("version", "v", "stylize", "stylise", "s", "niji", "weird", "w"), "number"),
    **dict.fromkeys(("zoom", "cw", "sw", "ow", "exp", "sv", "sameseed", "bs", "hq"), "number"),
    **dict.fromkeys(("style", "motion", "mode", "end"), "word"),
    **dict.fromkeys(("sref", "cref", "oref", "p", "personalize", "profile"), "words"),
}

# Phones turn two hyphens into an em or en dash. A flag begins a word, or follows a weight's `::` directly.
_START = re.compile(r"(?:(?<=\s)|(?<=::)|^)(?:-{2,3}|-?[–—―]{1,2})([A-Za-z][A-Za-z0-9_-]*)=?")
_NUMBER = re.compile(r"[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)")


@dataclass(frozen=True)
class Given:
    """A flag as it was written: our own or Midjourney's name for it, and its value ("" if it has none)."""

    name: str
    value: str

    @property
    def written(self) -> str:
        """The flag for a note or a refusal: `--v 6`."""
        return f"--{self.name} {shortened(self.value, 40)}".rstrip()


def split(text: str) -> tuple[str, tuple[Given, ...]]:
    """Return the words of `text`, and its flags in order. Text after a flag's value belongs to the words again.

    `<lora:name:0.8>` is a flag too, wherever it stands: AUTOMATIC1111's way to write `--lora name:0.8`. Raises
    `Refused` for an unknown flag, naming the nearest one.
    """
    text, tags = untagged(text)
    starts = list(_START.finditer(text))
    words = [text[: starts[0].start()] if starts else text]
    flags = [Given("lora", tag) for tag in tags]
    ends = [start.start() for start in starts[1:]] + [len(text)]
    for start, end in zip(starts, ends, strict=False):
        name = _known(start[1])
        takes = OURS[name].takes if name in OURS else THEIRS[name]
        value, rest = _value(takes, text[start.end() : end])
        flags.append(Given(name, value))
        words.append(rest)
    return " ".join(" ".join(words).split()), tuple(flags)


@dataclass(frozen=True)
class Piece:
    """A flag in its place: its written name in lower case, its text up to the next flag, and what follows its name."""

    name: str
    text: str
    after: str


def pieces(text: str) -> tuple[str, tuple[Piece, ...]]:
    """Return the text before the first flag, and all flags in order, known or not."""
    starts = list(_START.finditer(text))
    ends = [*(start.start() for start in starts), len(text)]
    found = zip(starts, ends[1:], strict=True)
    return text[: ends[0]], tuple(Piece(at[1].lower(), text[at.start() : to], text[at.end() : to]) for at, to in found)


def is_known(name: str) -> bool:
    """Return whether it is a flag of ours or of Midjourney's, or another name for one."""
    return name in OURS or name in ALIASES or name in THEIRS


@lru_cache(maxsize=2048)  # a job's title is needed again for each of its previews
def title(text: str) -> str:
    """Return the title of a job with the prompt `text`: its words without emphasis, its walk's end, its --no text.

    No other flag is part of it.
    """
    try:
        words, flags = split(text)
    except Refused:  # an older version knew the flag
        return text
    away, to = (next((given.value for given in reversed(flags) if given.name == name), "") for name in ("no", "walk"))
    words, away, to = (" ".join(bare(one).split()) for one in (words, away, to))
    words = f"{words} → {to}" if words and to else words
    return f"{words} (no {away})" if words and away else words or text


def first_flag(text: str) -> int:
    """Return where the first flag of `text` begins; its length if there is none."""
    found = _START.search(text)
    return found.start() if found else len(text)


def parted(text: str) -> tuple[str, str]:
    """Return the words before any flag, and the rest, each on one line."""
    at = first_flag(text)
    return " ".join(text[:at].split()), " ".join(text[at:].split())


def _value(takes: Takes, text: str) -> tuple[str, str]:
    if takes == "nothing":
        return "", text
    if takes == "words":
        return " ".join(text.split()), ""
    if takes == "sampler":
        return leading(text)
    first, _, rest = text.strip().partition(" ")
    if takes == "number" and not _NUMBER.fullmatch(first):
        return "", text
    return first.rstrip(","), rest


def _known(written: str) -> str:
    name = written.lower()
    name = ALIASES.get(name, name)
    if name in OURS or name in THEIRS:
        return name
    names = sorted({*OURS, *ALIASES, *(theirs for theirs in THEIRS if len(theirs) > 2)})
    nearest = process.extractOne(name[:40], names, scorer=fuzz.ratio)[0]
    hint = "without effect here" if nearest in THEIRS else about(nearest)
    raise Refused(f"There is no flag --{shortened(written, 40)}; the nearest is --{nearest} ({hint}).")


def about(name: str) -> str:
    """Return what one of our flags takes, in words."""
    return OURS[ALIASES.get(name, name)].range
