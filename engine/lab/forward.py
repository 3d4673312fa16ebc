"""The forward process: a picture on its way into noise, and what the network makes out of every stage of it."""

from __future__ import annotations

from PIL import Image

from engine.lab.mixing import noised
from engine.lab.pictures import square
from engine.lab.room import Room, Shown, table
from engine.lab.sheet import Tile, sheet
from engine.sampling import estimate, level, timestep

LEVELS = 8


def forward(room: Room, picture: Image.Image, words: str = "") -> Shown:
    """Eight noise levels; below each the estimate of the finished picture, without words and with them."""
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
        f"Above, the picture drowns in noise over the {LEVELS} levels; below, what the network takes it to be at each: "
        "the general shape survives longest, and at the end only the words are left to go by."
    )
    levels = [{"t": timestep(plan, k), "alpha": level(plan, k)[0], "sigma": level(plan, k)[1]} for k in range(LEVELS)]
    figures = {"levels": levels[::-1], "words": words, "seed": room.seed}
    return Shown("forward", sheet("The forward process", [noisy_row, *rows.values()], tile=128), sentence, figures)
