"""Notes before a job runs: what its model does with the request in another way than a member may think. Pure."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from bot.domain.texts import ALL_STEPS_ENDING, WHOLE_PIPELINE_ENDING, shorten
from bot.prompt.concepts import remove_emphasis
from bot.prompt.model_parts import list_unknown_embeddings
from bot.prompt.parsed_prompt import FAST_STEPS, FULL_CHAIN_SAMPLERS, ParsedPrompt, choose_sampling, expand_turbo
from engine.contract import (
    DRAFT_EVALUATIONS,
    MAX_STEPS,
    PIPELINE_SAMPLERS,
    SAMPLER_TITLES,
    TURBO_GUIDANCE,
    TURBO_SAMPLER,
    ModelProfile,
    find_turbo,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

TOKENS_PER_WORD = 1.3  # of English, for a word-piece tokenizer; only the engine knows the true number

_TOKEN = re.compile(r"\w+|[^\w\s]")


def make_remarks(parsed_prompt: ParsedPrompt, model_profile: ModelProfile) -> tuple[str, ...]:
    """Return notes before the job runs: the unmodified pipeline, reduced steps, weak shapes, text that is not read."""
    remarks = list(make_turbo_remarks(parsed_prompt, model_profile))
    parsed_prompt = expand_turbo(parsed_prompt, model_profile)
    sampler, steps = choose_sampling(parsed_prompt, model_profile)
    if sampler in PIPELINE_SAMPLERS:
        remarks.append(f"{SAMPLER_TITLES[sampler]}: {WHOLE_PIPELINE_ENDING}")
    if (
        parsed_prompt.steps is None
        and not parsed_prompt.fast
        and sampler in FULL_CHAIN_SAMPLERS
        and model_profile.steps < MAX_STEPS
    ):
        remarks.append(f"{model_profile.steps} steps on this machine; --steps {MAX_STEPS} {ALL_STEPS_ENDING}")
    remarks.append(_evaluations_note(parsed_prompt, steps))
    if parsed_prompt.ar and parsed_prompt.ar[0] != parsed_prompt.ar[1] and model_profile.size <= 64:
        remarks.append(
            f"{model_profile.name} was trained on squares of {model_profile.size} px: other shapes come out weaker."
        )
    if parsed_prompt.tile and model_profile.size <= 64:
        remarks.append(f"{model_profile.name} draws single things in the middle: as tiles they come out blurred.")
    remarks += (
        _truncation_note(remove_emphasis(concept.text), model_profile, "prompt") for concept in parsed_prompt.concepts
    )
    remarks.append(_truncation_note(remove_emphasis(parsed_prompt.negative), model_profile, "--no text"))
    remarks += (
        f"{model_profile.name} has no textual inversion {shorten(name, 40)}: <{shorten(name, 40)}> is read as words."
        for name in list_unknown_embeddings(parsed_prompt.read_texts, model_profile)
    )
    return tuple(remark for remark in remarks if remark)


def make_turbo_remarks(parsed_prompt: ParsedPrompt, model_profile: ModelProfile) -> Iterator[str]:
    """Yield notes on --turbo for this model, which may lack it, and on flags that do not suit it."""
    if not parsed_prompt.turbo:
        return
    if find_turbo(model_profile) is None:
        yield (
            f"{model_profile.name} has no turbo, so --turbo is ignored; --fast takes "
            f"{min(FAST_STEPS, model_profile.steps)} steps."
        )
        return
    guidance = parsed_prompt.guidance or TURBO_GUIDANCE
    if parsed_prompt.sampler not in (None, TURBO_SAMPLER) or guidance > TURBO_GUIDANCE:
        yield f"--turbo is made for the sampler {TURBO_SAMPLER} without guidance: others make its pictures worse."
    if parsed_prompt.fast:
        yield "Beside --turbo, --fast changes nothing."
    if guidance == TURBO_GUIDANCE and all(concept.weight >= 0 for concept in parsed_prompt.concepts):
        flags = {"no": parsed_prompt.negative, "interval": parsed_prompt.interval, "chaos": parsed_prompt.chaos}
        yield from (f"--turbo draws without guidance, so --{name} changes nothing." for name in flags if flags[name])


def _evaluations_note(parsed_prompt: ParsedPrompt, steps: int) -> str:
    """Return a note where a number of evaluations changes nothing; "" elsewhere."""
    if (parsed_prompt.evaluations or 0) >= steps:
        return f"Of {steps} steps each has an evaluation, so --evaluations changes nothing."
    if parsed_prompt.draft and parsed_prompt.evaluations is not None:
        return "Beside --evaluations, --draft changes nothing."
    if parsed_prompt.draft and steps <= DRAFT_EVALUATIONS:
        return f"--draft changes nothing: {steps} steps are a draft already."
    return ""


def _truncation_note(text: str, model_profile: ModelProfile, part_name: str) -> str:
    """Return a note on where the model probably stops reading; "" if it reads all. Two tokens mark the ends."""
    token_count = 0.0
    for token in _TOKEN.finditer(text):
        token_count += TOKENS_PER_WORD if token[0][0].isalnum() else 1.0
        if token_count > model_profile.tokens - 2:
            return (
                f"{model_profile.name} reads about {model_profile.tokens} tokens, and this {part_name} is likely "
                "longer: "
                f"it may stop near “{_words_before(text, token.start())}”."
            )
    return ""


def _words_before(text: str, position: int) -> str:
    last_words = text[:position].split()[-3:]
    return " ".join(last_words)[-60:] + " …"
