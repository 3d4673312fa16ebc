"""Substitutes that we chose by hand, for everyday nouns. WordNet would often lead these astray: its *kitten* is no cat.

Everyday words get no other substitute: most of them are also verbs, names or looks, such as *read*, *Tom*, *giant*.
"""

from __future__ import annotations

CHOSEN_SUBSTITUTES = {
    "abbey": "church", "alley": "motorway", "android": "robot", "apartment": "office building", "armor": "shield",
    "automobile": "car", "barn": "hut", "basin": "jar", "bedroom": "bed", "bible": "books", "bomber": "airplane",
    "brownie": "chocolate bar", "cabin": "hut", "calf": "cow", "carriage": "railway car", "caterpillar": "bug",
    "cathedral": "church", "cattle": "ox", "cedar": "evergreen tree", "cello": "violin", "centaur": "horse",
    "chateau": "castle", "cliff": "mountain", "cloak": "coat", "colt": "horse", "costume": "dress",
    "cottage": "house", "courthouse": "classical building", "cub": "bear", "cushion": "couch and lamp",
    "daisy": "white flower", "dawn": "sunrise", "destroyer": "ship", "dictionary": "books", "dungeon": "castle",
    "expressway": "motorway", "falcon": "bird", "fence": "door", "flagship": "ship", "foal": "horse",
    "fortress": "castle", "freeway": "motorway", "galaxy": "milky way", "goblet": "trophy", "golem": "robot",
    "gown": "dress", "grass": "herb", "griffin": "dragon", "guinea pig": "hamster", "guitarist": "singer",
    "ham": "cut of meat", "hawk": "bird", "hill": "mountain", "inn": "hotel", "ivy": "herb", "kitten": "cat",
    "lawyer": "judge", "lemonade": "cup with straw", "lighthouse": "tokyo tower", "lily": "tulip",
    "livestock": "cow", "magazine": "books", "mall": "department store", "manor": "house", "mansion": "house",
    "mare": "horse", "meadow": "sheaf of rice", "missile": "rocket", "mist": "fog", "monastery": "church",
    "moonlight": "full moon", "moth": "butterfly", "motorbike": "motorcycle", "musician": "singer",
    "oak": "evergreen tree", "physician": "scientist", "pianist": "singer", "piglet": "pig", "pony": "horse",
    "portfolio": "luggage", "potion": "test tube", "puppy": "dog", "robe": "kimono", "robin": "bird",
    "sculpture": "statue of liberty", "shed": "hut", "sheriff": "police officer",
    "shop": "convenience store", "skirt": "dress", "skyscraper": "office building", "smoothie": "cup with straw",
    "sofa": "couch and lamp", "spaceship": "rocket", "stairs": "ladder", "starfish": "star", "starship": "rocket",
    "storm": "cyclone", "submarine": "ship", "sunlight": "sun", "surgeon": "scientist", "sweater": "coat",
    "tadpole": "frog", "throne": "chair", "tobacco": "cigarette", "treehouse": "house", "villa": "house",
    "village": "houses", "wagon": "railway car", "wardrobe": "door", "werewolf": "wolf", "willow": "evergreen tree",
    "windmill": "houses", "wreath": "herb",
}  # fmt: skip
