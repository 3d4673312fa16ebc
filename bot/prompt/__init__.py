"""The prompt grammar: `terrier, looking up --ar 16:9 --seed 7`, `a::2 b::-1`, `{x,y}`. Pure.

`concepts` cleans and weights the text, `permutations` expands braces, `flags` finds flags, `values` parses them (with
`samplers` and `loras`), `own` expands a member's flag aliases, `request` is the result, and `possible` refuses what a
model cannot do. Emphasis, as in `(word:1.2)`, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bot.prompt.concepts import WORDLESS, clean, concepts
from bot.prompt.flags import OURS, THEIRS, split
from bot.prompt.loras import merged
from bot.prompt.own import spelt
from bot.prompt.permutations import MAX_JOBS, expand
from bot.prompt.request import Request, recipe, remarks
from bot.prompt.values import WEIGHED, read
from bot.refused import Refused
from bot.sentences import jobs, shortened
from engine.job import MAX_COUNT

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bot.prompt.flags import Given
    from engine.job import Concept, Warm

__all__ = ["Parsed", "Request", "parse", "recipe", "remarks"]

FIELDS = {
    "no": "negative", "relax": "relaxed", "lora": "loras", "iw": "strength", "stop": "until", "mix": "mixed",
}  # fmt: skip


@dataclass(frozen=True)
class Parsed:
    """One request per permutation, in order, and notes for the member."""

    requests: tuple[Request, ...]
    notes: tuple[str, ...]


def parse(
    text: str, defaults: Warm | None, *, models: Sequence[str] = (), options: Mapping[str, object] | None = None,
    wordless: bool = False, own: Mapping[str, str] | None = None,
) -> Parsed:  # fmt: skip
    """Parse `text`. `defaults`: the model that is used if none is named; None while no worker is online.

    `options` are a front end's own fields, by the names of Request (`steps`, `ar` as "16:9" or a pair, `negative`, …):
    they win over flags; None, "" and False count as absent. `wordless`: the prompt may be empty. `own`: the member's
    flag aliases, by name. Raises `Refused`: one sentence about the first mistake.
    """
    prompts = expand(clean(text))
    notes = [f"The braces make {jobs(len(prompts))}."] if len(prompts) > 1 else []
    requests: list[Request] = []
    for prompt, stands in (spelt(prompt, own or {}) for prompt in prompts):
        notes += stands
        request, said = _request(prompt, models, options or {}, wordless)
        requests += [request] * request.repeat
        notes += said
        if defaults is not None and request.model in (None, defaults.name):
            notes += remarks(request, defaults)
    if (made := sum(map(_jobs, requests))) > MAX_JOBS:
        raise Refused(f"This makes {made} jobs; at most {MAX_JOBS} are taken at once.")
    return Parsed(tuple(requests), tuple(dict.fromkeys(notes)))


def _jobs(request: Request) -> int:
    return -(-request.frames // MAX_COUNT) if request.walk else 1


def _request(
    prompt: str, models: Sequence[str], options: Mapping[str, object], wordless: bool
) -> tuple[Request, list[str]]:
    words, flags = split(prompt)
    ours: dict[str, object] = {given.name: given.value for given in flags if given.name in OURS}
    if added := [given.value for given in flags if given.name == "lora"]:
        ours["lora"] = added
    values: dict[str, Any] = {FIELDS.get(name, name): read(name, value, models) for name, value in ours.items()}
    values = _joined(values, _read_options(options, models))
    if not words and values.get("negative"):
        raise Refused("This only says what not to draw: put what should be drawn before --no.")
    parts = (WORDLESS,) if wordless and not words else concepts(words)
    if values.get("walk") and (len(parts) > 1 or not words):
        raise Refused(WEIGHED if words else "A walk begins with words: put them before --walk.")
    return Request(concepts=parts, text=prompt, words=words, **values), list(_notes(words, flags, parts))


def _joined(flags: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Merge flags and options. Options win, except that LoRAs of both are used."""
    joined = flags | options
    if options.get("loras") and flags.get("loras"):
        joined["loras"] = merged([*flags["loras"], *options["loras"]])
    return joined


def _read_options(options: Mapping[str, object], models: Sequence[str]) -> dict[str, Any]:
    names = {FIELDS.get(name, name): name for name in OURS if name != "iw"}
    given = {FIELDS.get(name, name): value for name, value in options.items() if not _absent(value)}
    for field in given:
        if field not in names:
            raise Refused(f"There is no option {shortened(field, 40)}.", 400)
    return {field: read(names[field], value, models) for field, value in given.items()}


def _absent(value: object) -> bool:
    return value in (None, "", (), []) or value is False


def _notes(words: str, flags: tuple[Given, ...], parts: tuple[Concept, ...]) -> Iterator[str]:
    ignored = [given.written for given in flags if given.name in THEIRS]
    if ignored:
        yield f"Taken, but without effect here: {shortened(', '.join(dict.fromkeys(ignored)), 200)}."
    names = [given.name for given in flags if given.name in OURS and given.name != "lora"]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"--{name} is given more than once: the last one counts."
    for part in parts:
        if not part.weight:
            yield f"“{shortened(part.text, 40)}” has the weight 0: it is left out."
    if len(parts) == 1 and parts[0].weight != 1:
        yield "Weights are relative to each other: a single one changes nothing."
    if "walk" in names:
        yield from (f"In a walk, --{name} changes nothing." for name in ("count", "chaos", "mix") if name in names)
    elif "frames" in names:
        yield "--frames needs --walk: alone it changes nothing."
    if "://" in words:
        yield "An address in the prompt is read as words: pictures at it are not looked at."
