"""What a model and a sampler can do together: a recipe that needs more is refused with one sentence."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot.refused import Refused
from engine.job import ALL_ALONG, WHOLE_SAMPLERS

if TYPE_CHECKING:
    from engine.job import Recipe, Sampler, Warm


def interval(asked: tuple[float, float] | None, usual: tuple[float, float], sampler: Sampler, warm: Warm) -> tuple[
    float, float
]:  # fmt: skip
    """Return the guidance interval: the requested one, else the usual one if sampler and model allow a choice."""
    if asked is not None:
        return asked
    return ALL_ALONG if sampler in WHOLE_SAMPLERS or warm.guides == "network" else usual


def check_possible(made: Recipe, warm: Warm) -> None:
    """Raise `Refused` if the model or the sampler cannot do what the recipe needs."""
    if made.sampler not in warm.samplers:
        raise Refused(f"{warm.name} does not take the sampler {made.sampler}: it takes {listed(warm.samplers)}.")
    if warm.guides == "network":
        _check_built_in(made)
    check_sampler(made)
    if made.mixed and any(part.weight <= 0 for part in made.concepts):
        raise Refused("With --mix every weight must be above 0: a mixed prompt cannot steer away from a part.")


def _check_built_in(made: Recipe) -> None:
    """Refuse a second row: a network that takes guidance as a number has none to steer away from."""
    if made.negative:
        raise Refused(
            f"{made.model} takes no negative prompt, since guidance is built into its network: leave out --no."
        )
    if made.interval != ALL_ALONG:
        raise Refused(
            f"{made.model} has guidance built into its network, so it holds at every step: leave out --interval."
        )


def check_sampler(made: Recipe) -> None:
    """Raise `Refused` if the unmodified pipeline lacks what the recipe needs."""
    if made.sampler not in WHOLE_SAMPLERS:
        return
    whole = f"The sampler {made.sampler} is the unmodified pipeline"
    if len(made.concepts) > 1:
        raise Refused(f"{whole}, which reads one text: leave out the weights (::), or take another sampler.")
    if made.lineage:
        raise Refused(f"{whole}, which draws no variations: roll again, or ask for another sampler.")
    if made.interval != ALL_ALONG:
        raise Refused(f"{whole}, which guides at every step: leave out --interval, or take another sampler.")
    if made.start is not None:
        raise Refused(f"{whole}, which begins with noise alone: take another sampler, such as ddim.")
    beyond = ((made.tile, "--tile"), (made.until < 1, "--stop"), (made.walk is not None, "--walk"))
    for asked, flag in beyond:
        if asked:
            raise Refused(f"{whole}, which cannot do {flag}: leave it out, or take another sampler.")


def listed(samplers: tuple[Sampler, ...]) -> str:
    """Join names: "ddpm, ddim and euler"."""
    return f"{', '.join(samplers[:-1])} and {samplers[-1]}" if len(samplers) > 1 else "".join(samplers)
