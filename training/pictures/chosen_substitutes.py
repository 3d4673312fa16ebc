"""Substitutes for everyday nouns that WordNet leads astray: its *kitten* is a young mammal, and no cat."""

from __future__ import annotations

CHOSEN_SUBSTITUTES = {
    "alley": "motorway", "apartment": "office building", "barn": "hut", "bedroom": "bed", "brownie": "chocolate bar",
    "cabin": "hut", "calf": "cow", "caterpillar": "bug", "centaur": "horse", "cliff": "mountain", "cottage": "house",
    "cub": "bear", "cushion": "couch and lamp", "dungeon": "castle", "foal": "horse", "fortress": "castle",
    "galaxy": "milky way", "goblet": "trophy", "golem": "robot", "griffin": "dragon", "guinea pig": "hamster",
    "hill": "mountain", "kitten": "cat", "lemonade": "cup with straw", "lighthouse": "tokyo tower", "mansion": "house",
    "meadow": "sheaf of rice", "moonlight": "full moon", "motorbike": "motorcycle", "piglet": "pig", "pony": "horse",
    "potion": "test tube", "puppy": "dog", "shed": "hut", "skyscraper": "office building",
    "smoothie": "cup with straw", "sofa": "couch and lamp", "spaceship": "rocket", "starfish": "star",
    "starship": "rocket", "sweater": "coat", "tadpole": "frog", "treehouse": "house", "village": "houses",
    "wardrobe": "door", "werewolf": "wolf", "windmill": "houses", "wreath": "herb",
}  # fmt: skip
