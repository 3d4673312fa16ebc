"""Words that mean a drawing: WordNet's rows are read, near meanings are found, one in five is held out."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import pytest

from engine.models.judge import read_labels
from engine.process.model_settings import SUBSTITUTES_FILE, WEIGHTS_FOLDER, SubstitutesFile
from engine.prompt.style_guide import replace_nouns
from training.pictures import related_words
from training.pictures.artwork import add_related_words, find_held_out_lemmas
from training.pictures.captions import Appearance, clean_description, list_usual_words, make_caption
from training.pictures.related_words import (
    MAX_DISTANCE,
    find_meant_labels,
    find_related_words,
    group_by_label,
    is_held_out,
)
from training.pictures.substitutes import CHOSEN_SUBSTITUTES, find_substitutes, may_be_substituted
from training.pictures.wordnet import WordNet, read_wordnet

ANIMAL = 5
FOOD = 13
PERSON = 18
ARTIFACT = 6
# id, topic, words (as they are written), ids of wider meanings, explanation
MEANINGS = (
    ("00000001", 3, "entity", "", "that which is perceived"),
    ("00000002", 5, "animal", "00000001", "a living organism"),
    ("00000003", 5, "vertebrate", "00000002", "with a backbone"),
    ("00000004", 5, "mammal", "00000003", "warm blood"),
    ("00000005", 5, "placental", "00000004", "with a placenta"),
    ("00000006", 5, "carnivore", "00000005", "eats meat"),
    ("00000007", 5, "canine canid", "00000006", "of the family of dogs"),
    ("00000008", 5, "dog domestic_dog Canis_familiaris", "00000007", "a pet that barks"),
    ("00000009", 5, "terrier", "00000008", "a small dog"),
    ("00000010", 5, "wolf", "00000007", "a wild animal"),
    ("00000011", 18, "dog cad", "00000001", "someone who is morally reprehensible"),
    ("00000012", 18, "philosopher", "00000001", "a specialist in philosophy"),
)
COMMON_WORDS = ("wolf", "terrier")
SENSE_COUNTS = (  # of each sense: its key, and how often texts have it
    "dog%1:05:00:: 00000008 1 42",
    "dog%4:02:00:: 00000099 1 2",
    "cad%1:18:00:: 00000011 1 0",
    "cad%3:00:00:: 00000098 1 0",
    "domestic_dog%1:05:00:: 00000008 1 1",
)
DRAWINGS = [
    (clean_description("dog face", ["pet", "animal"]), 3),
    (clean_description("guide dog", ["blind"]), 3),
    (clean_description("up arrow", ["dog"]), 8),
]


def write_archive(folder: Path, meanings: Sequence[tuple[str, int, str, str, str]] = MEANINGS) -> Path:
    """Writes the three files of the package as WordNet writes them: a licence, then a row for each meaning or word."""
    hyponyms = {name: [row[0] for row in meanings if row[3] == name] for name, *_ in meanings}
    rows = ["  1 This software and database is being provided to you"]
    senses = dict[str, list[str]]()
    for name, topic, words, wider, gloss in meanings:
        spellings = words.split()
        pointers = [("@", wider)] * bool(wider) + [("~", other) for other in hyponyms[name]]
        forms = " ".join(f"{word} 0" for word in spellings)
        rows.append(
            f"{name} {topic:02} n {len(spellings):02x} {forms} {len(pointers):03} "
            + "".join(f"{symbol} {other} n 0000 " for symbol, other in pointers)
            + f"| {gloss}  "
        )
        for word in spellings:
            senses.setdefault(word.lower(), []).append(name)
    index = [
        f"{word} n {len(ids)} 2 @ ~ {len(ids)} {int(word in COMMON_WORDS)} {' '.join(ids)}  "
        for word, ids in senses.items()
    ]
    archive = folder / "wordnet.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for file_name, lines in (("data.noun", rows), ("index.noun", index), ("index.sense", SENSE_COUNTS)):
            content = "\n".join([*lines, ""]).encode()
            member = tarfile.TarInfo(f"package/dict/{file_name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return archive


@pytest.fixture
def wordnet(tmp_path: Path) -> WordNet:
    return read_wordnet(write_archive(tmp_path))


def test_the_rows_of_wordnet_are_read(wordnet: WordNet) -> None:
    dog = wordnet.synsets["00000008"]
    assert (dog.topic, dog.hypernyms, dog.hyponyms) == ("animal", ("00000007",), ("00000009",))
    assert dog.words == ("dog", "domestic dog", "canis familiaris")
    assert (dog.proper_names, dog.gloss) == ({"canis familiaris"}, "a pet that barks")
    assert wordnet.senses["dog"] == ("00000008", "00000011")
    assert [wordnet.depths[name] for name in ("00000001", "00000008", "00000012")] == [0, 7, 1]


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "other.tgz", "w:gz"):
        pass
    with pytest.raises(ValueError, match=r"other.tgz does not hold WordNet's nouns"):
        read_wordnet(tmp_path / "other.tgz")


def test_each_word_means_the_nearest_drawing(wordnet: WordNet) -> None:
    names = find_related_words(DRAWINGS, wordnet)
    labels = {word: name.label for word, name in names.items()}
    assert labels == dict.fromkeys(("dog", "domestic dog", "terrier", "wolf", "canine", "canid"), "dog face")
    distances = [names[word].distance for word in ("dog", "terrier", "canine", "wolf")]
    assert distances == sorted(distances)
    assert distances[-1] <= MAX_DISTANCE


def test_people_proper_names_and_wide_words_mean_no_drawing_of_an_animal(wordnet: WordNet) -> None:
    assert {"cad", "philosopher", "canis familiaris", "animal", "entity"}.isdisjoint(
        find_related_words(DRAWINGS, wordnet)
    )


def test_the_words_of_a_label_begin_with_the_nearest(wordnet: WordNet) -> None:
    (words,) = group_by_label(find_related_words(DRAWINGS, wordnet)).values()
    assert words == ("dog", "terrier", "domestic dog", "canid", "canine", "wolf")


def test_common_and_single_words_come_before_others_that_are_as_near(wordnet: WordNet) -> None:
    assert wordnet.common_words == set(COMMON_WORDS)
    (words,) = group_by_label(find_related_words(DRAWINGS, wordnet), wordnet.common_words).values()
    assert words.index("terrier") < words.index("domestic dog")
    assert words.index("wolf") < words.index("canid")


def test_a_face_has_the_words_of_its_animal(wordnet: WordNet) -> None:
    drawings = [(clean_description(label, []), 3) for label in ("dog", "dog face")]
    (dog, _), (face, _) = add_related_words(dict(zip("ab", drawings, strict=True)), wordnet).values()
    assert set(dog.related_words) <= set(face.related_words)
    assert len(dog.related_words) > 1


def test_synonyms_are_held_out_together(wordnet: WordNet) -> None:
    assert is_held_out("canine", wordnet) == is_held_out("canid", wordnet)
    assert not is_held_out("unknown", wordnet)


def test_captions_use_related_words_and_never_a_held_out_one(wordnet: WordNet) -> None:
    descriptions = add_related_words({str(number): drawing for number, drawing in enumerate(DRAWINGS)}, wordnet)
    dog, _ = descriptions["0"]
    held_out = {word for word in ("domestic dog", "terrier", "wolf", "canid") if is_held_out(word, wordnet)}
    assert set(dog.related_words) == {"dog", "domestic dog", "terrier", "wolf", "canid"} - held_out
    rng = np.random.default_rng(1)
    look = Appearance("", "flat design", "", "white")
    captions = [make_caption(dog, 3, look, rng) for _ in range(500)]
    assert all(any(word in caption for caption in captions) for word in dog.related_words)
    assert not any(word in caption for caption in captions for word in (*held_out, "canine"))
    assert descriptions["2"][0].related_words == ()


def test_a_held_out_lemma_belongs_to_all_labels_of_the_nearest_meaning(wordnet: WordNet) -> None:
    assert is_held_out("wolf", wordnet)
    assert find_meant_labels(DRAWINGS, wordnet) == {"wolf": {"dog face", "guide dog"}}


def test_a_wide_lemma_belongs_to_the_labels_of_its_kinds(wordnet: WordNet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(related_words, "is_held_out", lambda word, _: word in ("canine", "cad", "canis familiaris"))
    drawings = [*DRAWINGS, (clean_description("wolf", []), 3)]
    assert find_meant_labels(drawings, wordnet) == {"canine": {"dog face", "guide dog", "wolf"}}


@pytest.mark.parametrize("tag", ["wolf", "grey wolfs"])
def test_a_lemma_that_a_caption_has_is_not_held_out(wordnet: WordNet, tag: str) -> None:
    descriptions = {str(number): drawing for number, drawing in enumerate(DRAWINGS)}
    assert find_held_out_lemmas(descriptions, wordnet) == {"wolf": {"dog face", "guide dog"}}
    descriptions["3"] = (clean_description("up button", [tag]), 8)
    assert find_held_out_lemmas(descriptions, wordnet) == {}


def test_words_that_are_as_often_adjectives_are_known(wordnet: WordNet) -> None:
    assert wordnet.modifiers == {"cad"}, "dog is seldom an adverb"


def test_a_label_with_a_preposition_is_named_by_what_stands_before_it() -> None:
    label = clean_description("umbrella on ground", [])
    names = [name for name, _ in related_words._list_names(label, 5)]
    assert names == ["umbrella on ground", "umbrella"]


@pytest.mark.parametrize(
    ("word", "group", "may_be"),
    [
        ("terrier", 3, True),
        ("dog", 3, True),
        ("cad", 3, False),
        ("philosopher", 1, True),
        ("philosopher", 3, False),
        ("domestic dog", 3, True),
    ],
)
def test_only_people_stand_for_people_and_no_modifier_is_replaced(
    wordnet: WordNet, word: str, group: int, may_be: bool
) -> None:
    assert may_be_substituted(word, group, wordnet) is may_be


def test_an_offensive_word_gets_no_substitute(tmp_path: Path) -> None:
    rows = [*MEANINGS, ("00000013", 5, "cur", "00000008", "a dog; as a name for people it is offensive")]
    wordnet = read_wordnet(write_archive(tmp_path, rows))
    assert find_related_words(DRAWINGS, wordnet)["cur"].label == "dog face"
    assert not may_be_substituted("cur", 3, wordnet)


def test_substitutes_leave_labels_tags_and_usual_words_alone(wordnet: WordNet) -> None:
    descriptions = {str(number): drawing for number, drawing in enumerate(DRAWINGS)}
    substitutes = find_substitutes(descriptions, wordnet, ())
    near = {word: label for word, label in substitutes.items() if word not in CHOSEN_SUBSTITUTES}
    assert near == dict.fromkeys(("domestic dog", "terrier", "wolf", "canid", "canine"), "dog face")
    descriptions["3"] = (clean_description("grey wolf", ["terrier"]), 3)
    assert {"wolf", "terrier"}.isdisjoint(find_substitutes(descriptions, wordnet, ()))


def test_everyday_words_have_only_substitutes_that_were_chosen(wordnet: WordNet) -> None:
    substitutes = find_substitutes({"0": DRAWINGS[0]}, wordnet, ["wolves", "terriers", "kitten"])
    assert ("terrier" in substitutes, substitutes["kitten"]) == (False, "cat")


def test_no_form_of_a_known_name_is_replaced(tmp_path: Path) -> None:
    """*cookies* would be found as several of the *cooky*."""
    rows = [*MEANINGS, ("00000013", 5, "cooky", "00000008", "a kind of dog")]
    wordnet = read_wordnet(write_archive(tmp_path, rows))
    drawing = (clean_description("cookie", []), 4)
    assert "cooky" in find_substitutes({"0": DRAWINGS[0]}, wordnet, ())
    assert "cooky" not in find_substitutes({"0": DRAWINGS[0], "1": drawing}, wordnet, ())


def test_a_name_with_a_usual_word_in_it_keeps_that_word(tmp_path: Path) -> None:
    """A *green terrier* would lose its colour, which the network can draw."""
    rows = [*MEANINGS, ("00000013", 5, "green_terrier rough_terrier", "00000009", "a kind of terrier")]
    substitutes = find_substitutes({"0": DRAWINGS[0]}, read_wordnet(write_archive(tmp_path, rows)), ())
    assert ("rough terrier" in substitutes, "green terrier" in substitutes) == (True, False)


def test_the_chosen_substitutes_are_labels_of_the_embedded_model() -> None:
    file = msgspec.json.decode((WEIGHTS_FOLDER / SUBSTITUTES_FILE).read_bytes(), type=SubstitutesFile)
    labels = set(read_labels(WEIGHTS_FOLDER / "judge"))
    assert set(file.nouns.values()) <= labels
    assert {word: file.nouns[word] for word in ("kitten", "terrier", "capybara")} == {
        "kitten": "cat face",
        "terrier": "dog face",
        "capybara": "mouse face",
    }
    assert labels.isdisjoint(file.nouns)
    names = {*list_usual_words(), *labels, *json.loads((WEIGHTS_FOLDER / "words.json").read_text())["words"]}
    forms = {form for name in names for form in (name, f"{name}s", f"{name}es", f"{name.removesuffix('y')}ies")}
    assert [form for form in forms if replace_nouns(form, file.nouns) != form] == []
    delicate = ("rape", "gypsy", "god", "gods", "noose", "condom", "fetus", "slave market", "burqa", "yarmulke")
    assert set(delicate).isdisjoint(file.nouns)
