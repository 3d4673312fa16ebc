"""Interpolation from one prompt to another, and with two seeds from one noise to another."""

from __future__ import annotations

from engine.lab.mixing import walked
from engine.lab.room import Room, Shown
from engine.lab.sheet import Tile, sheet
from engine.noise import slerp
from engine.sampling import Drawing, initial
from engine.unfit import Unfit

ACROSS = 6
SEEDS = 2**32  # the bot's range of seeds


def walk(room: Room, a: str, b: str, frames: int = 12, seeds: tuple[int, int] | None = None) -> Shown:
    """Draw `frames` pictures in equal steps from `a` to `b`. Raises `Unfit` for seeds out of range."""
    if any(not 0 <= each < SEEDS for each in seeds or ()):
        raise Unfit(f"A seed is a number from 0 to {SEEDS - 1}.", "member")
    shares = [number / (frames - 1) for number in range(frames)]
    pictures = room.develop([_point(room, a, b, share, seeds) for share in shares])
    tiles = [Tile(picture, f"{share:.0%}") for picture, share in zip(pictures, shares, strict=True)]
    rows = [tiles[at : at + ACROSS] for at in range(0, frames, ACROSS)]
    sentence = (
        f"The conditioning moves from “{a}” to “{b}” while "
        + ("the noise moves on an arc from one seed to the other" if seeds else "the noise stays the same")
        + "; the frames in between belong to no prompt that can be typed."
    )
    figures = {"from": a, "to": b, "shares": [round(share, 4) for share in shares], "seeds": list(seeds or [room.seed])}
    return Shown("walk", sheet(f"{a} → {b}", rows, tile=160), sentence, figures, [*pictures, *pictures[-2:0:-1]])


def _point(room: Room, a: str, b: str, share: float, seeds: tuple[int, int] | None) -> Drawing:
    start = room.noise()
    if seeds:
        start = slerp(initial(room.family, seeds[0]), initial(room.family, seeds[1]), share)
    return room.told(walked(room.family.encode(a), room.family.encode(b), share), start)
