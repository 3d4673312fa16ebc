"""Recognises models distilled to few steps without guidance, by the customary words in their names."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from engine.contract import Sampler

LCM_STEPS = 8
DISTILLED_STEPS = 4
_DISTILLED_NAME = re.compile(r"(^|[^a-z])(turbo|lightning|hyper|lcm|schnell|dmd2?)([^a-z]|$)", re.IGNORECASE)


def choose_guidance(name: str, family_default: float) -> float:
    """Return the default guidance: 1, which is none, for a distilled model, else `family_default`."""
    return 1.0 if _DISTILLED_NAME.search(name) else family_default


def find_few_step_sampling(
    name: str, scheduler_config: Mapping[str, Any], samplers: Sequence[Sampler]
) -> tuple[int, Sampler] | None:
    """Return steps and sampler of a model made for few steps; None for others."""
    match = _DISTILLED_NAME.search(name)
    is_lcm = scheduler_config.get("_class_name") == "LCMScheduler" or (match and match[2].lower() == "lcm")
    if is_lcm and "lcm" in samplers:
        return LCM_STEPS, "lcm"
    return (DISTILLED_STEPS, "euler") if match and "euler" in samplers else None
