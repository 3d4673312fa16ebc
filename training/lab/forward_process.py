"""The forward process: a picture at growing levels of noise, and the network's estimate of x0 at each."""

from __future__ import annotations

from PIL import Image

from training.diffusion.latent_sampling import noise_level, predict_x0, timestep
from training.lab.contact_sheet import Tile, draw_sheet
from training.lab.context import ExperimentResult, LabContext, make_ddim_plan
from training.lab.pictures import crop_square
from training.lab.tensor_math import add_noise

LEVEL_COUNT = 8


def show_forward_process(context: LabContext, picture: Image.Image, prompt: str = "") -> ExperimentResult:
    """Show eight noise levels; below each the estimate of x0, without a prompt and with it."""
    family = context.family
    clean = family.encode_image(crop_square(picture, family.size))
    noise = context.initial_noise().to(context.family.device)
    plan = make_ddim_plan(family, LEVEL_COUNT)
    noisy_row = list[Tile]()
    rows = {text: list[Tile]() for text in dict.fromkeys(("", prompt))}
    for k in reversed(range(LEVEL_COUNT)):
        alpha, sigma = noise_level(plan, k)
        noisy = add_noise(clean, noise, alpha, sigma)
        noisy_row.append(Tile(family.decode(noisy), f"t = {timestep(plan, k)}: {alpha:.2f} x0 + {sigma:.2f} noise"))
        for text, row in rows.items():
            prompt_context = context if text else context.without_guidance()
            latents = predict_x0(family, plan, k, prompt_context.make_drawing(family.encode_text(text), noisy))
            row.append(Tile(family.decode(latents), f"told: {text}" if text else "told nothing"))
    summary = (
        f"Above, the picture with more noise at each of {LEVEL_COUNT} levels; below, the network's estimate of it at "
        "each: "
        "the general shape survives longest, and at the end the network has only the prompt."
    )
    levels = [
        {"t": timestep(plan, k), "alpha": noise_level(plan, k)[0], "sigma": noise_level(plan, k)[1]}
        for k in range(LEVEL_COUNT)
    ]
    figures = {"levels": levels[::-1], "words": prompt, "seed": context.seed}
    return ExperimentResult(
        "forward", draw_sheet("The forward process", [noisy_row, *rows.values()], tile_side=128), summary, figures
    )
