"""The prompt grammar: `terrier, looking up --ar 16:9 --seed 7`, `a::2 b::-1`, `{x,y}`. Pure.

`concepts` cleans the text, expands braces and weights it; `flags` finds flags, and `flag_values` parses them.
`parsed_prompt` is the result; `capability_check` refuses what a model cannot do, and `remarks` notes what it does in
another way. Emphasis, as in `(word:1.2)`, stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bot.domain.errors import UserError
from bot.domain.texts import format_job_count, shorten
from bot.prompt.concepts import EMPTY_CONCEPT, MAX_JOBS, clean_prompt, expand_braces, parse_concepts
from bot.prompt.flag_aliases import expand_flag_aliases
from bot.prompt.flag_values import WEIGHTS_IN_WALK, parse_value
from bot.prompt.flags import IGNORED_FLAGS, OUR_FLAGS, split_flags
from bot.prompt.parsed_prompt import ParsedPrompt, build_recipe
from bot.prompt.part_flags import merge_loras
from bot.prompt.remarks import make_remarks
from engine.contract import MAX_COUNT, ModelProfile, estimate_cost

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from bot.prompt.flags import ParsedFlag
    from engine.contract import Concept

__all__ = ["ParseResult", "ParsedPrompt", "build_recipe", "make_remarks", "parse"]

FIELDS_BY_FLAG = {
    "no": "negative",
    "relax": "relaxed",
    "lora": "loras",
    "iw": "strength",
    "stop": "stop_at",
    "walk": "end_prompt",
    "control": "controls",
    "reference": "references",
    "vae": "autoencoder",
    "clip-skip": "clip_skip",
}
REPEATABLE_FLAGS = ("lora", "control", "reference")


@dataclass(frozen=True)
class ParseResult:
    """One parsed prompt per permutation, in order, and notes for the member."""

    prompts: tuple[ParsedPrompt, ...]
    notes: tuple[str, ...]


def parse(
    text: str,
    default_model: ModelProfile | None,
    *,
    models: Sequence[str] = (),
    options: Mapping[str, object] | None = None,
    allow_empty: bool = False,
    aliases: Mapping[str, str] | None = None,
) -> ParseResult:
    """Parse `text`. `default_model`: the model to use if the prompt names none; None while no worker is online.

    `options` are a front end's own fields, by the names of `ParsedPrompt` (`steps`, `ar` as "16:9" or a pair,
    `negative`, …): they win over flags; None, "" and False count as absent, but for `best`, which False declines.
    `allow_empty`: the prompt may be empty. `aliases`: the member's flag aliases, by name. Raises `UserError`: one
    sentence about the first mistake.
    """
    prompts = expand_braces(clean_prompt(text))
    notes = [f"The braces make {format_job_count(len(prompts))}."] if len(prompts) > 1 else []
    parsed_prompts: list[ParsedPrompt] = []
    for prompt, alias_notes in (expand_flag_aliases(prompt, aliases or {}) for prompt in prompts):
        notes += alias_notes
        parsed_prompt, prompt_notes = _parse_prompt(prompt, models, options or {}, allow_empty)
        parsed_prompts += [parsed_prompt] * parsed_prompt.repeat
        notes += prompt_notes
        if default_model is not None and parsed_prompt.model in (None, default_model.name):
            notes += make_remarks(parsed_prompt, default_model)
    if (job_count := sum(map(_count_jobs, parsed_prompts))) > MAX_JOBS:
        raise UserError(f"This makes {job_count} jobs; at most {MAX_JOBS} are taken at once.")
    return ParseResult(tuple(parsed_prompts), tuple(dict.fromkeys(notes)))


def _count_jobs(parsed_prompt: ParsedPrompt) -> int:
    return -(-parsed_prompt.frames // MAX_COUNT) if parsed_prompt.end_prompt else 1


def _parse_prompt(
    prompt: str, models: Sequence[str], options: Mapping[str, object], allow_empty: bool
) -> tuple[ParsedPrompt, list[str]]:
    words, flags = split_flags(prompt)
    flag_values: dict[str, object] = {flag.name: flag.value for flag in flags if flag.name in OUR_FLAGS}
    for name in REPEATABLE_FLAGS:
        if repeated_values := [flag.value for flag in flags if flag.name == name]:
            flag_values[name] = repeated_values
    values: dict[str, Any] = {
        FIELDS_BY_FLAG.get(name, name): parse_value(name, value, models) for name, value in flag_values.items()
    }
    values = _merge_values(values, _parse_options(options, models))
    if not words and values.get("negative"):
        raise UserError("This only says what not to draw: put what should be drawn before --no.")
    prompt_concepts = (EMPTY_CONCEPT,) if allow_empty and not words else parse_concepts(words)
    if values.get("end_prompt") and (len(prompt_concepts) > 1 or not words):
        raise UserError(WEIGHTS_IN_WALK if words else "A walk begins with words: put them before --walk.")
    return ParsedPrompt(concepts=prompt_concepts, text=prompt, words=words, **values), list(
        _make_notes(words, flags, prompt_concepts)
    )


def _merge_values(flags: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    """Merge flags and options. Options win, except that LoRAs of both are used."""
    merged_values = flags | options
    if options.get("loras") and flags.get("loras"):
        merged_values["loras"] = merge_loras([*flags["loras"], *options["loras"]])
    return merged_values


def _parse_options(options: Mapping[str, object], models: Sequence[str]) -> dict[str, Any]:
    names = {FIELDS_BY_FLAG.get(name, name): name for name in OUR_FLAGS if name != "iw"}
    option_values = {
        FIELDS_BY_FLAG.get(name, name): value for name, value in options.items() if not _is_absent(name, value)
    }
    for field in option_values:
        if field not in names:
            raise UserError(f"There is no option {shorten(field, 40)}.", 400)
    return {field: parse_value(names[field], value, models) for field, value in option_values.items()}


def _is_absent(name: str, value: object) -> bool:
    return value in (None, "", (), []) or (value is False and name != "best")  # False declines an inherited --best


def _make_notes(words: str, flags: tuple[ParsedFlag, ...], prompt_concepts: tuple[Concept, ...]) -> Iterator[str]:
    ignored_flags = [flag.text for flag in flags if flag.name in IGNORED_FLAGS]
    if ignored_flags:
        yield f"Accepted but ignored: {shorten(', '.join(dict.fromkeys(ignored_flags)), 200)}."
    names = [flag.name for flag in flags if flag.name in OUR_FLAGS and flag.name not in REPEATABLE_FLAGS]
    for name in dict.fromkeys(name for name in names if names.count(name) > 1):
        yield f"--{name} is given more than once: the last one counts."
    for concept in prompt_concepts:
        if not concept.weight:
            yield f"“{shorten(concept.text, 40)}” has the weight 0: it is left out."
    if len(prompt_concepts) == 1 and prompt_concepts[0].weight != 1:
        yield "Weights are relative to each other: a single one changes nothing."
    if "walk" in names:
        yield from (
            f"In a walk, --{name} changes nothing." for name in ("count", "best", "chaos", "mix") if name in names
        )
    elif "frames" in names:
        yield "--frames needs --walk: alone it changes nothing."
    if "://" in words:
        yield "A link inside the prompt is treated as text; only links at the beginning are init images."


SAMPLE_PROMPT = "a picture"


def estimate_default_cost(model_profile: ModelProfile) -> float | None:
    """Return the device-seconds of one picture; None for a model that cannot draw from words alone."""
    try:
        prompt = parse(SAMPLE_PROMPT, model_profile, options={"count": 1}).prompts[0]
        return estimate_cost(build_recipe(prompt, model_profile, seed=0), model_profile)
    except UserError:
        return None


def format_default_cost(model_profile: ModelProfile) -> str:
    """Return "about 12 s a picture"; empty where it is not known."""
    seconds = estimate_default_cost(model_profile)
    if seconds is None:
        return ""
    return f"about {seconds:.0f} s a picture" if seconds >= 10 else f"about {seconds:.1f} s a picture"
