"""The forward process: a picture at growing levels of noise, and the network's estimate of x0 at each."""

from __future__ import annotations

from PIL import Image

from engine.lab.mixing import noised
from engine.lab.pictures import square
from engine.lab.room import Room, Shown, table
from engine.lab.sheet import Tile, sheet
from engine.sampling import estimate, level, timestep

LEVELS = 8


def forward(room: Room, picture: Image.Image, words: str = "") -> Shown:
    """Show eight noise levels; below each the estimate of x0, without a prompt and with it."""
    family = room.family
    clean, noise = family.encode_image(square(picture, family.size)), room.noise().to(room.family.device)
    plan = table(family, LEVELS)
    noisy_row, rows = [], {text: [] for text in dict.fromkeys(("", words))}
    for k in reversed(range(LEVELS)):
        alpha, sigma = level(plan, k)
        noisy = noised(clean, noise, alpha, sigma)
        noisy_row.append(Tile(family.decode(noisy), f"t = {timestep(plan, k)}: {alpha:.2f} x0 + {sigma:.2f} noise"))
        for text, row in rows.items():
            asked = room if text else room.unguided()
            latents = estimate(family, plan, k, asked.told(family.encode(text), noisy))
            row.append(Tile(family.decode(latents), f"told: {text}" if text else "told nothing"))
    sentence = (
        f"Above, the picture with more noise at each of {LEVELS} levels; below, the network's estimate of it at each: "
        "the general shape survives longest, and at the end the network has only the prompt."
    )
    levels = [{"t": timestep(plan, k), "alpha": level(plan, k)[0], "sigma": level(plan, k)[1]} for k in range(LEVELS)]
    figures = {"levels": levels[::-1], "words": words, "seed": room.seed}
    return Shown("forward", sheet("The forward process", [noisy_row, *rows.values()], tile=128), sentence, figures)
