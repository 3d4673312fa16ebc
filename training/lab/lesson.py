"""The lesson: runs every experiment with fixed prompts and pictures and writes one page with the results.

`lesson.md` describes the experiments. The run fills in the results, so the page is true of its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template

from PIL import Image, ImageDraw

from training.lab.context import ExperimentResult, LabContext, ensure_folder, translate_write_errors, write_film
from training.lab.experiments import (
    blend_pictures,
    draw_mix,
    draw_weight_steps,
    interpolate_prompts,
    show_forward_process,
    show_round_trip,
)
from training.lab.vocabulary import EmbedTexts, LabVocabulary, find_nearest_words
from training.lab.word_sums import parse_sum

TEMPLATE_FILE = Path(__file__).with_name("lesson.md")
TABLE_SUMS = ("king + woman - man", "royalty + woman - man", "sun + night - day", "fruit + yellow", "cat + wild + big")
MIX_SUM = "royalty + woman - man"
WEIGHT_STEPS_SUM = "cat face + 2*blue"
WALK_PROMPTS = ("sun, blue background", "full moon, black background")
FORWARD_PROMPT = "cat face, blue background"
WEBP_QUALITY = 82


def write_lesson(
    context: LabContext, embed_texts: EmbedTexts, words: Sequence[str], out: Path, name: str = "lesson"
) -> Path:
    """Write `NAME.md` into `out` and its pictures into `out/NAME`.

    Overwrites both; one machine writes the same bytes.
    """
    pictures = ensure_folder(out / name)
    results = _run_experiments(context)
    with translate_write_errors(pictures):
        chapters = {result.name: _write_chapter(result, pictures) for result in results}
        for title, picture in (("cat", draw_cat()), ("apple", draw_apple())):
            picture.save(pictures / f"{title}.png")
    settings = f"{context.steps} steps of DDIM, guidance {context.guidance:g}, seed {context.seed}"
    model = f"{context.family.name} {context.family.revision}"
    names = {"pictures": pictures.name, "sum": MIX_SUM, "amount_sum": WEIGHT_STEPS_SUM, "told": FORWARD_PROMPT}
    names |= {"a": WALK_PROMPTS[0], "b": WALK_PROMPTS[1], "settings": settings, "model": model}
    table = _nearest_words_table(embed_texts, words)
    text = Template(TEMPLATE_FILE.read_text("utf-8")).substitute(chapters, **names, nearest=table)
    page = out / f"{name}.md"
    with translate_write_errors(page):
        page.write_text(text, "utf-8")
    return page


def _run_experiments(context: LabContext) -> list[ExperimentResult]:
    """Run all experiments that have a picture, in the page's order."""
    seeds = (context.seed, context.seed + 1)
    return [
        draw_mix(context, parse_sum(MIX_SUM)),
        draw_weight_steps(context, parse_sum(WEIGHT_STEPS_SUM)),
        interpolate_prompts(context, *WALK_PROMPTS),
        replace(interpolate_prompts(context, *WALK_PROMPTS, seeds=seeds), name="noises", frames=()),
        show_round_trip(context, draw_cat()),
        blend_pictures(context, draw_apple(), draw_cat()),
        show_forward_process(context, draw_cat(), FORWARD_PROMPT),
    ]


def _write_chapter(result: ExperimentResult, pictures: Path) -> str:
    """Write a result's pictures and return the Markdown that shows them."""
    result.sheet.save(pictures / f"{result.name}.webp", quality=WEBP_QUALITY, method=6)
    lines = [f"![{result.summary}]({pictures.name}/{result.name}.webp)"]
    if result.frames:
        write_film(result.frames, pictures / f"{result.name}-film.webp")
        lines.append(f"![The same as a film]({pictures.name}/{result.name}-film.webp)")
    return "\n\n".join([*lines, f"*{result.summary}*"])


def _nearest_words_table(embed_texts: EmbedTexts, words: Sequence[str]) -> str:
    lines = ["| sum | nearest words, each with its cosine |", "|---|---|"]
    vocabulary = LabVocabulary.embed_words(embed_texts, words)
    for expression in TABLE_SUMS:
        matches = find_nearest_words(embed_texts, parse_sum(expression), vocabulary, 5)
        lines.append(f"| `{expression}` | {', '.join(f'{word} {cosine:.2f}' for word, cosine in matches)} |")
    return "\n".join(lines)


SIDE = 256
_OVERSAMPLING = 4  # drawn larger and scaled down, for smooth edges
_DARK_BROWN = (70, 44, 30)

Box = tuple[float, float, float, float]
Colour = tuple[int, int, int]


def draw_apple() -> Image.Image:
    """Draw a red apple with a leaf, on white."""
    canvas = _Canvas((255, 255, 255))
    canvas.ellipse((52, 82, 150, 220), (214, 40, 48))
    canvas.ellipse((106, 82, 204, 220), (214, 40, 48))
    canvas.ellipse((92, 110, 164, 216), (214, 40, 48))
    canvas.ellipse((72, 104, 100, 144), (246, 132, 128))
    canvas.line([(128, 96), (134, 50)], _DARK_BROWN, 9)
    canvas.polygon([(134, 70), (158, 42), (198, 46), (170, 74)], (70, 160, 62))
    return canvas.to_image()


def draw_cat() -> Image.Image:
    """Draw an orange cat's face, on pale blue."""
    canvas = _Canvas((190, 222, 246))
    for ear, inner_ear in (
        ([(54, 130), (60, 40), (122, 84)], [(68, 110), (70, 64), (104, 86)]),
        ([(202, 130), (196, 40), (134, 84)], [(188, 110), (186, 64), (152, 86)]),
    ):
        canvas.polygon(ear, (240, 160, 60))
        canvas.polygon(inner_ear, (250, 196, 170))
    canvas.ellipse((44, 72, 212, 222), (240, 160, 60))
    canvas.ellipse((92, 150, 164, 208), (255, 236, 206))
    for eye_x in (82, 146):
        canvas.ellipse((eye_x, 114, eye_x + 28, 148), (46, 42, 40))
        canvas.ellipse((eye_x + 6, 118, eye_x + 15, 128), (255, 255, 255))
    canvas.polygon([(118, 162), (138, 162), (128, 174)], (226, 110, 110))
    for mouth_x in (108, 148):
        canvas.line([(128, 174), (mouth_x, 188)], _DARK_BROWN, 4)
    return canvas.to_image()


class _Canvas:
    def __init__(self, paper: Colour) -> None:
        self._page = Image.new("RGB", (SIDE * _OVERSAMPLING, SIDE * _OVERSAMPLING), paper)
        self._draw = ImageDraw.Draw(self._page)

    def ellipse(self, box: Box, colour: Colour) -> None:
        self._draw.ellipse([value * _OVERSAMPLING for value in box], fill=colour)

    def polygon(self, corners: list[tuple[int, int]], colour: Colour) -> None:
        self._draw.polygon([(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in corners], fill=colour)

    def line(self, points: list[tuple[int, int]], colour: Colour, width: int) -> None:
        self._draw.line(
            [(x * _OVERSAMPLING, y * _OVERSAMPLING) for x, y in points], fill=colour, width=width * _OVERSAMPLING
        )

    def to_image(self) -> Image.Image:
        return self._page.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
