"""The evaluation's prompts, and the contact sheets of the model card: 64 captioned prompts with one seed.

The prompts are not chosen by hand. The mixed sheet has every held-out word once, in the templates' order. Then labels
drawn evenly by the seed: half of them with a background other than white, a quarter with a hue (unless the label names
a colour), a quarter with a style. The other sheets show labels alone, held-out lemmas of WordNet, and sentences as
people write them.
"""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from training.pictures.artwork import ARTWORK_PACKAGES
from training.pictures.captions import COLOURS
from training.pictures.variants import BACKGROUND_COLOURS, HUE_DEGREES

PROMPT_COUNT = 64
# pixels
COLUMNS = 8
CELL_SIDE = 192
CAPTION_HEIGHT = 34
FONT_SIZE = 12
MAX_BYTES = 1_000_000
QUALITIES = (90, 80, 70, 60, 50)


def choose_words(words: Collection[str], seed: int, count: int = PROMPT_COUNT) -> list[str]:
    """Choose labels or lemmas evenly, each on white; the same for the same words and seed."""
    chosen = np.random.default_rng([seed, 8]).choice(sorted(words), min(count, len(words)), replace=False)
    return [f"{word}, white background" for word in chosen]


def choose_mixed_prompts(labels: Sequence[str], seed: int, count: int = PROMPT_COUNT) -> list[str]:
    """Choose the prompts of the mixed sheet; the same for the same labels and seed."""
    rng = np.random.default_rng([seed, 6])
    templates = itertools.cycle(PROMPT_TEMPLATES)
    word_prompts = [template.format(word=word) for word, template in zip(ACCEPTED_LABELS, templates, strict=False)]
    sheet_labels = rng.choice(labels, max(0, count - len(word_prompts)), replace=count > len(labels))
    return [*word_prompts, *(_random_prompt(str(label), rng) for label in sheet_labels)][:count]


def _random_prompt(label: str, rng: np.random.Generator) -> str:
    background = str(rng.choice([subject for subject in BACKGROUND_COLOURS if subject != "white"]))
    hue = str(rng.choice(list(HUE_DEGREES)))
    style = str(rng.choice([package.style for package in ARTWORK_PACKAGES]))
    has_background = rng.random() < 0.5
    has_hue = rng.random() < 0.25
    has_style = rng.random() < 0.25
    subject = f"{hue} {label}" if has_hue and COLOURS.isdisjoint(label.split()) else label
    background_text = f"{background if has_background else 'white'} background"
    return ", ".join([subject, *([style] if has_style else []), background_text])


def draw_sheet(pictures: Sequence[Image.Image], captions: Sequence[str]) -> Image.Image:
    """Draw all pictures in reading order, eight a line, each above its caption."""
    row_count = -(-len(pictures) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * CELL_SIDE, row_count * (CELL_SIDE + CAPTION_HEIGHT)), "white")
    pen = ImageDraw.Draw(page)
    font = ImageFont.load_default(FONT_SIZE)
    for index, (picture, caption) in enumerate(zip(pictures, captions, strict=True)):
        left = index % COLUMNS * CELL_SIDE
        top = index // COLUMNS * (CELL_SIDE + CAPTION_HEIGHT)
        thumbnail = picture.convert("RGB").resize((CELL_SIDE - 4, CELL_SIDE - 4), Image.Resampling.LANCZOS)
        page.paste(thumbnail, (left + 2, top + 2))
        wrapped_caption = "\n".join(textwrap.wrap(caption, CELL_SIDE // 7, max_lines=2, placeholder=" …"))
        place = (left + CELL_SIDE / 2, top + CELL_SIDE)
        pen.multiline_text(place, wrapped_caption, fill="black", font=font, anchor="ma", align="center")
    return page


def check_file_name(path: Path) -> None:
    """Raise ValueError for a file that is no WebP."""
    if path.suffix.lower() != ".webp":
        raise ValueError("A sheet is a file that ends in .webp.")


def write_sheet(page: Image.Image, path: Path) -> None:
    """Write WebP of at most 1 MB. Raises ValueError for another suffix or a too large sheet."""
    check_file_name(path)
    for quality in QUALITIES:
        file = io.BytesIO()
        page.save(file, "WEBP", quality=quality, method=4)
        if file.tell() <= MAX_BYTES:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(file.getvalue())
            return
    raise ValueError(f"The sheet does not fit into {MAX_BYTES / 1e6:g} MB.")


DOGS = ("dog", "dog face", "guide dog", "service dog", "poodle")
CAT_TEXT = (
    "cat; cat face; black cat; cat with tears of joy; cat with wry smile; crying cat; grinning cat; "
    "grinning cat with smiling eyes; kissing cat; pouting cat; smiling cat with heart-eyes; weary cat"
)
CAR_TEXT = (
    "car; oncoming car; taxi; oncoming taxi; police car; oncoming police car; racing car; sport utility vehicle; "
    "pickup truck"
)
CATS = tuple(CAT_TEXT.split("; "))
CARS = tuple(CAR_TEXT.split("; "))
BOATS = ("ship", "passenger ship", "sailboat", "motor boat", "speedboat", "ferry", "canoe")
ACCEPTED_LABELS = {
    "puppy": DOGS,
    "hound": DOGS,
    "canine": (*DOGS, "wolf", "fox"),
    "kitten": CATS,
    "feline": (*CATS, "lion", "tiger", "tiger face", "leopard"),
    "automobile": CARS,
    "vessel": BOATS,
}
PROMPT_TEMPLATES = (
    "{word}",
    "{word}, white background",
    "{word}, looking up, cute, white background",
    "a {word}, 3d render",
)
SENTENCE_TEXT = (
    "a happy dog with its tongue out; a sleepy cat on a cushion; an astronaut floating in space; "
    "a wizard with a long white beard; the last slice of pizza; a cup of coffee in the morning; "
    "a robot that wants to be friends; a haunted house at night; a very angry chicken; my birthday cake with candles; "
    "an old pirate ship; a dragon breathing fire; a small red car; a lighthouse by the sea; a cosy cabin in the snow; "
    "a bowl of ramen noodles; a knight's sword; a golden crown with jewels; a bee on a flower; a tired student; "
    "a rainy day; a magic potion; a treasure map; a spooky skeleton; a juicy burger with fries; "
    "a princess with red hair; a whale under water; a penguin in winter; a bunch of grapes, purple; a broken heart; "
    "fireworks over the city; a vintage camera; an electric guitar; a bicycle, side view; a train in the mountains; "
    "a slice of watermelon; a cactus in a pot; an owl in the moonlight; a detective looking for clues; "
    "a chef cooking dinner; a monkey eating a banana; a green frog, smiling; a snowman with a hat; a football player; "
    "a rocket flying to the moon; a teddy bear, cute, 3d render; a blue butterfly, flat design; "
    "a strawberry with a face; a mushroom in the forest; a goldfish in a bowl; a huge wave; a volcano erupting; "
    "a desert island with a palm tree; a shooting star; a laptop on a desk; a pair of sunglasses; a red umbrella; "
    "a love letter; a trophy for the winner; a baby sleeping; an alien from another planet; a unicorn on a rainbow; "
    "a vampire laughing; santa claus, white background"
)
FREE_SENTENCES = tuple(SENTENCE_TEXT.split("; "))
