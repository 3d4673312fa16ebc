"""The lesson: runs every experiment with fixed prompts and pictures and writes one page with the results.

`lesson.md` describes the experiments. The results are filled in from the run, so the page is true of its model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from string import Template

from engine.lab.arithmetic import mix, stairs
from engine.lab.autoencoder import blend, roundtrip
from engine.lab.forward import forward
from engine.lab.nearest import Embed, Known, nearest
from engine.lab.room import Room, Shown
from engine.lab.showing import film, folder, writing
from engine.lab.stills import apple, cat
from engine.lab.sums import read
from engine.lab.walk import walk

TEXT = Path(__file__).with_name("lesson.md")
SUMS = ("king + woman - man", "royalty + woman - man", "sun + night - day", "fruit + yellow", "cat + wild + big")
SUM, AMOUNT = "royalty + woman - man", "cat face + 2*blue"
WALK = ("sun, blue background", "full moon, black background")
TOLD = "cat face, blue background"
QUALITY = 82


def lesson(room: Room, embed: Embed, words: Sequence[str], out: Path, name: str = "lesson") -> Path:
    """Write `NAME.md` into `out` and its pictures into `out/NAME`.

    Overwrites both; one machine writes the same bytes.
    """
    pictures = folder(out / name)
    shown = _shown(room)
    with writing(pictures):
        chapters = {each.name: _kept(each, pictures) for each in shown}
        for title, still in (("cat", cat()), ("apple", apple())):
            still.save(pictures / f"{title}.png")
    settings = f"{room.steps} steps of DDIM, guidance {room.guidance:g}, seed {room.seed}"
    model = f"{room.family.name} {room.family.revision}"
    names = {"pictures": pictures.name, "sum": SUM, "amount_sum": AMOUNT, "a": WALK[0], "b": WALK[1], "told": TOLD}
    text = Template(TEXT.read_text("utf-8")).substitute(
        chapters, **names, nearest=_table(embed, words), settings=settings, model=model
    )
    page = out / f"{name}.md"
    with writing(page):
        page.write_text(text, "utf-8")
    return page


def _shown(room: Room) -> list[Shown]:
    """Run all experiments that have a picture, in the page's order."""
    seeds = (room.seed, room.seed + 1)
    return [
        mix(room, read(SUM)),
        stairs(room, read(AMOUNT)),
        walk(room, *WALK),
        replace(walk(room, *WALK, seeds=seeds), name="noises", frames=()),
        roundtrip(room, cat()),
        blend(room, apple(), cat()),
        forward(room, cat(), TOLD),
    ]


def _kept(shown: Shown, pictures: Path) -> str:
    """Write a result's pictures and return the Markdown that shows them."""
    shown.sheet.save(pictures / f"{shown.name}.webp", quality=QUALITY, method=6)
    lines = [f"![{shown.sentence}]({pictures.name}/{shown.name}.webp)"]
    if shown.frames:
        film(shown.frames, pictures / f"{shown.name}-film.webp")
        lines.append(f"![The same as a film]({pictures.name}/{shown.name}-film.webp)")
    return "\n\n".join([*lines, f"*{shown.sentence}*"])


def _table(embed: Embed, words: Sequence[str]) -> str:
    lines = ["| sum | nearest words, each with its cosine |", "|---|---|"]
    known = Known.of(embed, words)
    for each in SUMS:
        found = nearest(embed, read(each), known, 5)
        lines.append(f"| `{each}` | {', '.join(f'{word} {cosine:.2f}' for word, cosine in found)} |")
    return "\n".join(lines)
