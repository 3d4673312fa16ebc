"""The lesson: runs every experiment with fixed prompts and pictures and writes one page with the results.

`lesson.md` describes the experiments. The run fills in the results, so the page is true of its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template

from training.lab.autoencoder import blend_pictures, show_round_trip
from training.lab.context import ExperimentResult, LabContext
from training.lab.forward_process import show_forward_process
from training.lab.interpolation import interpolate_prompts
from training.lab.output import ensure_folder, translate_write_errors, write_film
from training.lab.sample_pictures import draw_apple, draw_cat
from training.lab.vocabulary import EmbedTexts, LabVocabulary, find_nearest_words
from training.lab.word_arithmetic import draw_mix, draw_weight_steps
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
    names = {
        "pictures": pictures.name,
        "sum": MIX_SUM,
        "amount_sum": WEIGHT_STEPS_SUM,
        "a": WALK_PROMPTS[0],
        "b": WALK_PROMPTS[1],
        "told": FORWARD_PROMPT,
    }
    text = Template(TEMPLATE_FILE.read_text("utf-8")).substitute(
        chapters, **names, nearest=_nearest_words_table(embed_texts, words), settings=settings, model=model
    )
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
