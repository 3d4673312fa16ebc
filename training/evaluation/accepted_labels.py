"""The labels of the artwork that count as a hit for each held-out word."""

from __future__ import annotations

DOGS = ("dog", "dog face", "guide dog", "service dog", "poodle")
CATS = (
    "cat",
    "cat face",
    "black cat",
    "cat with tears of joy",
    "cat with wry smile",
    "crying cat",
    "grinning cat",
    "grinning cat with smiling eyes",
    "kissing cat",
    "pouting cat",
    "smiling cat with heart-eyes",
    "weary cat",
)
CARS = (
    "car",
    "oncoming car",
    "taxi",
    "oncoming taxi",
    "police car",
    "oncoming police car",
    "racing car",
    "sport utility vehicle",
    "pickup truck",
)
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
