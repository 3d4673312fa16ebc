"""What one picture costs with a model's defaults, in device-seconds. Pure."""

from __future__ import annotations

from bot.domain.errors import UserError
from bot.prompt import parse
from bot.prompt.parsed_prompt import build_recipe
from engine.contract import ModelProfile, estimate_cost

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
