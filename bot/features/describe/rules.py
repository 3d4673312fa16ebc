"""Image-to-prompt: word lists, how a prompt is built from them, and how texts are scored. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.contract import ModelProfile

ANIMALS = """
dog, cat, fox, wolf, bear, panda, koala, tiger, lion, horse, cow, pig, sheep, goat, ram, monkey, gorilla,
orangutan, elephant, mammoth, giraffe, zebra, rhinoceros, hippopotamus, camel, kangaroo, deer, rabbit,
hamster, mouse, rat, chipmunk, beaver, hedgehog, bat, sloth, otter, skunk, badger, raccoon, llama, bison, ox,
unicorn, dragon, sauropod, t-rex, crocodile, turtle, snake, lizard, frog, whale, dolphin, shark, octopus,
fish, seal, crab, lobster, shrimp, squid, jellyfish, coral, snail, butterfly, bug, bee, ant, beetle, cricket,
spider, scorpion, mosquito, fly, worm, bird, owl, eagle, duck, swan, flamingo, peacock, parrot, penguin,
rooster, chicken, turkey, dodo, dove, goose, moose, donkey
"""
FOOD = """
apple, red apple, green apple, pear, peach, orange, lemon, banana, pineapple, mango, watermelon, melon, grapes,
strawberry, cherries, blueberries, tomato, kiwi, coconut, avocado, aubergine, eggplant, potato, carrot, corn,
broccoli, garlic, onion, mushroom, peanuts, chestnut, bread, croissant, pretzel, bagel, pancakes, waffle,
cheese, hamburger, pizza, hot dog, sandwich, taco, burrito, egg, salad, popcorn, sushi, dumpling, cookie, cake,
cupcake, pie, chocolate, candy, lollipop, honey, ice cream, doughnut, coffee, tea, wine, beer
"""
NATURE = """
flower, rose, tulip, sunflower, tree, cactus, leaf, herb, seedling, mountain, volcano, island, ocean, wave,
fire, water, rainbow, cloud, sun, moon, star, snowflake, snowman, lightning, umbrella, comet, earth, planet
"""
OBJECTS = """
house, castle, church, tent, bridge, fountain, clock, watch, lamp, light bulb, candle, book, newspaper,
pencil, pen, scissors, key, lock, hammer, axe, sword, shield, wrench, screwdriver, bomb, bell, drum,
guitar, violin, trumpet, piano, saxophone, microphone, camera, television, computer, phone, keyboard, printer,
battery, magnet, telescope, microscope, pill, syringe, crown, ring, gem, hat, glasses, shirt, dress, jeans,
shoe, boot, glove, backpack, handbag, ball, football, basketball, baseball, tennis, trophy, medal, dice,
puzzle, balloon, gift, teddy bear, kite, robot, rocket, anchor, chair, couch, bed, door, toilet, shower,
bathtub, soap, sponge, broom, basket, envelope, package, map, flag, heart, skull, ghost, alien
"""
VEHICLES = """
car, taxi, bus, truck, tractor, bicycle, motorcycle, scooter, train, tram, ship, sailboat, canoe, airplane,
helicopter, parachute, ambulance, fire engine, police car
"""
PEOPLE = """
baby, boy, girl, man, woman, person, eye, ear, nose, mouth, hand, foot, face, astronaut, mermaid, vampire,
zombie, clown
"""
HUES = "red, orange, yellow, green, blue, purple, pink, brown, black, white, grey, cyan, teal"

MEDIA = """
photo, oil painting, watercolor, pencil drawing, ink drawing, cartoon, anime, comic, pixel art, 3d render, sculpture,
black and white photo, children's drawing, logo, collage, engraving, pastel drawing, stained glass
"""
PLACES = """
on white background, on black background, in a forest, on a beach, in the snow, in a city street, on a table,
in a room, in the mountains, under water, in the sky, in a garden, in a desert, in a field, by a lake, in space
"""
LIGHTS = """
at night, at sunset, in sunlight, in fog, in the rain, in candlelight, in neon light, in soft light, close-up,
seen from above, from far away
"""
MORE_SUBJECTS = """
old man, old woman, child, couple, crowd, family, portrait of a man, portrait of a woman, knight, soldier, dancer,
street, city, skyline, village, building, skyscraper, ruin, room, kitchen, bedroom, garden, park, forest, field,
meadow, desert, beach, lake, river, waterfall, road, harbor, night sky, galaxy, landscape, statue, abstract pattern,
text on a page, food on a plate, bowl of fruit, bouquet of flowers, glass of wine, cup of coffee, spaceship
"""
# of the embedded model: a model that is no larger was trained from it
EMBEDDED_SIDE = 64
EMBEDDED_TOKENS = 24


def _split_list(text: str) -> tuple[str, ...]:
    return tuple(" ".join(word.split()) for word in text.split(","))


@dataclass(frozen=True)
class Vocabulary:
    """`subjects` are what a picture may show. Additions, at most one of each slot, are texts with `{}` for the prompt
    so far.

    `scenes` come first, since they are most of the picture and can stand alone; then `slots` of the subject.
    """

    subjects: tuple[str, ...]
    scenes: tuple[tuple[str, ...], ...]
    slots: tuple[tuple[str, ...], ...]

    @property
    def addition_count(self) -> int:
        """The number of texts in all slots."""
        return sum(map(len, (*self.scenes, *self.slots)))


COMMON_SUBJECTS = _split_list(",".join((ANIMALS, FOOD, NATURE, OBJECTS, VEHICLES, PEOPLE)))
COLOUR_TEMPLATES = tuple(f"{hue} {{}}" for hue in _split_list(HUES))
EMBEDDED_VOCABULARY = Vocabulary(
    COMMON_SUBJECTS,
    (
        tuple(f"{{}}, {hue} background" for hue in _split_list(HUES)),
        ("{}, 3d render", "{}, flat design", "{}, soft shading"),
    ),
    (COLOUR_TEMPLATES,),
)
GENERAL_VOCABULARY = Vocabulary(
    (*COMMON_SUBJECTS, *_split_list(MORE_SUBJECTS)),
    (tuple(f"{{}}, {medium}" for medium in _split_list(MEDIA)),),
    (
        tuple(f"{{}}, {place}" for place in _split_list(PLACES)),
        COLOUR_TEMPLATES,
        tuple(f"{{}}, {light}" for light in _split_list(LIGHTS)),
    ),
)


def build_prompt(subject: str, additions: Sequence[str]) -> str:
    """Build a prompt: the subject, perhaps empty, with each addition around it."""
    for addition in additions:
        subject = addition.format(subject).strip(" ,")
    return subject


def choose_vocabulary(model_profile: ModelProfile) -> Vocabulary:
    """Return the vocabulary for a model."""
    is_small = model_profile.size <= EMBEDDED_SIDE and model_profile.tokens <= EMBEDDED_TOKENS
    return EMBEDDED_VOCABULARY if is_small else GENERAL_VOCABULARY


EMPTY_TEXT = ""  # a prompt without words
MIN_STANDARD_ERRORS = 2.0  # standard errors by which a text must be better than another to replace it
MIN_GAIN = 0.002  # and by at least this share of the error


class PromptScores:
    """The errors of one image."""

    def __init__(self) -> None:
        self._errors: dict[str, dict[int, float]] = {}

    def add(self, texts: Sequence[str], first_draw: int, errors: Sequence[Sequence[float]]) -> None:
        """Add the errors of each text at the draws from `first_draw` on."""
        for text, text_errors in zip(texts, errors, strict=True):
            self._errors.setdefault(text, {}).update(enumerate(text_errors, first_draw))

    @property
    def text_count(self) -> int:
        """The number of texts with words."""
        return len(self._errors.keys() - {EMPTY_TEXT})

    def missing_texts(self, texts: Iterable[str], draws: range) -> list[str]:
        """Return the texts without a score at some of these draws, each once; the empty text too."""
        required_texts = dict.fromkeys((EMPTY_TEXT, *texts))
        return [text for text in required_texts if not self._errors.get(text, {}).keys() >= set(draws)]

    def error_reduction(self, text: str, draws: range) -> float:
        """Return the share by which the error is lower than without words, over these draws."""
        return 1.0 - statistics.fmean(self._error_share(text, draw) for draw in draws)

    def best_texts(self, texts: Iterable[str], draws: range, count: int) -> list[str]:
        """Return the best of these texts over these draws, in order; of equal ones the earlier first."""
        return sorted(dict.fromkeys(texts), key=lambda text: -self.error_reduction(text, draws))[:count]

    def is_clearly_better(self, text: str, other_text: str, draws: range) -> bool:
        """Return whether a text beats another by more than chance and than `MIN_GAIN`, over two draws at least."""
        differences = [self._error_share(other_text, draw) - self._error_share(text, draw) for draw in draws]
        standard_error = statistics.stdev(differences) / math.sqrt(len(differences))
        return statistics.fmean(differences) > max(MIN_GAIN, MIN_STANDARD_ERRORS * standard_error)

    def _error_share(self, text: str, draw: int) -> float:
        baseline = self._errors[EMPTY_TEXT][draw]
        return self._errors[text][draw] / baseline if baseline > 0 else 1.0
