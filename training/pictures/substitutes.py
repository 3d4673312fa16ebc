"""Finds the substitutes of nouns that no drawing is called: the label of the nearest drawing. Pure.

Some are chosen by hand, for everyday nouns. WordNet would often lead these astray: its *kitten* is no cat.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from engine.prompt.style_guide import list_forms
from training.pictures.captions import Description, list_usual_words
from training.pictures.related_words import PEOPLE, find_related_words, list_phrases
from training.pictures.wordnet import WordNet

ANIMALS = 3  # emojibase's group of animals and nature
# Looks, materials and the like, which prompts name beside a thing.
NEVER_SUBSTITUTED = frozenset({"cyberpunk", "lineup", "masterpiece", "vintage", "watercolor", "watercolour"})
# Topics whose words have a drawing that may stand for them. Parts of the body and acts would give offence.
TOPIC_TEXT = (
    "animal artifact communication food location object person phenomenon plant possession shape substance time"
)
SUBSTITUTED_TOPICS = frozenset(TOPIC_TEXT.split())
_OFFENSIVE = re.compile(r"offensive|slur|disparag|derogat|obscene|vulgar|insult")  # in a meaning's explanation
# Beginnings of words that no cheerful drawing should stand for.
_DELICATE = re.compile(
    r"\b(?:abort|bastard|bawdy|birth control|bordello|brassiere|brothel|burka|burqa|condom|contracept|crucifix|deity|"
    r"drug|embryo|fo?etus|god|gypsy|harem|intrauterine|jewfish|marijuana|negro|noose|nude|opium|prostitut|rape|sex|"
    r"slave|squaw|stripper|suicide|tampon|tortur|whore|yarmulke)"
)
ALWAYS_NOUNS = frozenset({"animal", "plant"})  # topics whose words are seldom modifiers: "a dalmatian"


def find_substitutes(
    descriptions: dict[str, tuple[Description, int]], wordnet: WordNet, everyday_words: Iterable[str]
) -> dict[str, str]:
    """Map each noun that is in no label and no tag to the label of the nearest drawing, which a network knows well.

    These are also the related words that captions have, of which a network sees each too seldom, and the held-out ones.
    `everyday_words` have only the substitutes that were chosen for them, and no form of a known name has one.
    """
    names = {name for description, _ in descriptions.values() for name in (description.label, *description.tags)}
    stems = {stem for name in names for stem in list_phrases(name)}
    usual_words = {word for name in list_usual_words() for word in name.split()}
    groups = {description.label: group for description, group in descriptions.values()}
    nearest = {
        word: name.label
        for word, name in find_related_words(descriptions.values(), wordnet).items()
        if may_be_substituted(word, groups[name.label], wordnet)
    }
    everyday_nouns = {form for word in everyday_words for form in list_forms(word)}
    substitutes = {word: label for word, label in nearest.items() if word not in everyday_nouns} | CHOSEN_SUBSTITUTES
    known = {form for name in names for plural in _list_plurals(name) for form in list_forms(plural)}
    return {
        word: _prefer_face(substitutes[word], groups)
        for word in sorted(substitutes)
        if list_phrases(word)[-1] not in stems and word not in known and usual_words.isdisjoint(word.split())
    }


def _list_plurals(name: str) -> tuple[str, ...]:
    """Return what a prompt may write for several of a thing; not each is a word."""
    return f"{name}s", f"{name}es", f"{name.removesuffix('y')}ies", f"{name.removesuffix('an')}en"


def _prefer_face(label: str, groups: Mapping[str, int]) -> str:
    """Return an animal's face where there is a drawing of it: it is simpler than the whole animal, and drawn better."""
    face = f"{label} face"
    return face if groups.get(face) == ANIMALS else label


def may_be_substituted(word: str, label_group: int, wordnet: WordNet) -> bool:
    """Tell whether a drawing of this group may stand for the word wherever a prompt has it.

    It is a noun there, means a thing or a being, and nobody is insulted: only people stand for people.
    """
    senses = [wordnet.synsets[sense] for sense in wordnet.senses[word]]
    topic = senses[0].topic
    is_modifier = word in wordnet.modifiers and topic not in ALWAYS_NOUNS
    is_fair = topic != "person" or label_group == PEOPLE
    is_offensive = any(_OFFENSIVE.search(sense.gloss) for sense in senses)
    is_noun = len(word) > 2 and word not in NEVER_SUBSTITUTED and not is_modifier
    is_delicate = is_offensive or _DELICATE.search(word) is not None
    return is_noun and topic in SUBSTITUTED_TOPICS and is_fair and not is_delicate


NOUNS_BY_LABEL = {
    "airplane": "bomber",
    "bear": "cub",
    "bed": "bedroom",
    "bird": "falcon, hawk, robin",
    "books": "bible, dictionary, magazine",
    "bug": "caterpillar",
    "butterfly": "moth",
    "car": "automobile",
    "castle": "chateau, dungeon, fortress",
    "cat": "kitten",
    "chair": "throne",
    "chocolate bar": "brownie",
    "church": "abbey, cathedral, monastery",
    "cigarette": "tobacco",
    "classical building": "courthouse",
    "coat": "cloak, sweater",
    "convenience store": "shop",
    "couch and lamp": "cushion, sofa",
    "cow": "calf, livestock",
    "cup with straw": "lemonade, smoothie",
    "cut of meat": "ham",
    "cyclone": "storm",
    "department store": "mall",
    "dog": "puppy",
    "door": "fence, wardrobe",
    "dragon": "griffin",
    "dress": "costume, gown, skirt",
    "evergreen tree": "cedar, oak, willow",
    "fog": "mist",
    "frog": "tadpole",
    "full moon": "moonlight",
    "hamster": "guinea pig",
    "herb": "grass, ivy, wreath",
    "horse": "centaur, colt, foal, mare, pony",
    "hotel": "inn",
    "house": "cottage, manor, mansion, treehouse, villa",
    "houses": "village, windmill",
    "hut": "barn, cabin, shed",
    "jar": "basin",
    "judge": "lawyer",
    "kimono": "robe",
    "ladder": "stairs",
    "luggage": "portfolio",
    "milky way": "galaxy",
    "motorcycle": "motorbike",
    "motorway": "alley, expressway, freeway",
    "mountain": "cliff, hill",
    "office building": "apartment, skyscraper",
    "ox": "cattle",
    "pig": "piglet",
    "police officer": "sheriff",
    "railway car": "carriage, wagon",
    "robot": "android, golem",
    "rocket": "missile, spaceship, starship",
    "scientist": "physician, surgeon",
    "sheaf of rice": "meadow",
    "shield": "armor",
    "ship": "destroyer, flagship, submarine",
    "singer": "guitarist, musician, pianist",
    "star": "starfish",
    "statue of liberty": "sculpture",
    "sun": "sunlight",
    "sunrise": "dawn",
    "test tube": "potion",
    "tokyo tower": "lighthouse",
    "trophy": "goblet",
    "tulip": "lily",
    "violin": "cello",
    "white flower": "daisy",
    "wolf": "werewolf",
}
CHOSEN_SUBSTITUTES = {noun: label for label, nouns in NOUNS_BY_LABEL.items() for noun in nouns.split(", ")}
