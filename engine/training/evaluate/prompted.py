"""Checks of prompt adherence: backgrounds, hues on unseen pairs, labels, and unseen words."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from engine.bench.row import Row
from engine.training.evaluate import goals
from engine.training.evaluate.measures import among, background_of, retrieval, share, subject_hue
from engine.training.evaluate.posed import posed_again
from engine.training.evaluate.scene import Scene
from engine.training.evaluate.words import ACCEPTED, TEMPLATES
from engine.training.pictures.captions import HELD_OUT_PAIRS
from engine.training.pictures.variants import BACKGROUNDS

SAID = 3  # of the worst, in a note


def backgrounds(scene: Scene) -> list[Row]:
    """Draw every named background on some labels; the border's colour decides."""
    colours = [colour for colour in BACKGROUNDS for _ in range(scene.sizes.per_colour)]
    labels = scene.sample(len(colours), 2)
    prompts = [f"{label}, {colour} background" for label, colour in zip(labels, colours, strict=True)]
    seen = [background_of(picture) for picture in scene.painter.pictures(prompts, range(len(prompts)))]
    hits = [one == colour for one, colour in zip(seen, colours, strict=True)]
    missed = [f"{colour} as {one}" for one, colour in zip(seen, colours, strict=True) if one != colour]
    note = f"{len(hits)} pictures, {len(BACKGROUNDS)} colours{_most(missed)}"
    return [goals.BACKGROUNDS.row(share(hits), note)]


def hues(scene: Scene) -> list[Row]:
    """Draw the colour–object pairs that are in no caption, from many seeds."""
    pairs = [pair for pair in sorted(HELD_OUT_PAIRS) for _ in range(scene.sizes.per_pair)]
    prompts = [f"{hue} {thing}, white background" for hue, thing in pairs]
    seen = [subject_hue(picture) for picture in scene.painter.pictures(prompts, range(len(prompts)))]
    missed = [f"{' '.join(pair)} as {one or 'no hue'}" for one, pair in zip(seen, pairs, strict=True) if one != pair[0]]
    hits = [one == hue for one, (hue, _) in zip(seen, pairs, strict=True)]
    return [goals.HUES.row(share(hits), f"{len(hits)} pictures of {len(HELD_OUT_PAIRS)} pairs{_most(missed)}")]


def labels(scene: Scene) -> list[Row]:
    """Draw "LABEL, white background" and rank the judge's labels: is LABEL the first, or among the first five?"""
    drawn, known = scene.drawn(), len(scene.judge.labels)
    at_1, at_5 = (retrieval(drawn.seen.scores, drawn.wanted, count) for count in (1, 5))
    note = f"{len(drawn.labels)} of {known} labels asked for, ranked among all {known}"
    any_way = f"{known} labels, two renderings each that no training saw: on any background, small, close-up, re-hued"
    return [
        goals.OWN_AT_1.row(scene.own_score(1)),
        goals.OWN_AT_5.row(scene.own_score(5), any_way),
        *_posed(scene),
        goals.AT_1.row(at_1, note),
        goals.AT_5.row(at_5, note),
        _share_on_white(scene, at_5),
    ]


def _posed(scene: Scene) -> list[Row]:
    """Score the judge on the drawings posed as prompts ask, in sizes that it was not trained on."""
    note = "two drawings of every label on white, each a little smaller and a little larger than in training"
    try:
        return [goals.POSED_AT_1.row(scene.own_score_posed(1)), goals.POSED_AT_5.row(scene.own_score_posed(5), note)]
    except ValueError as error:
        return [goal.row(None, str(error)) for goal in (goals.POSED_AT_1, goals.POSED_AT_5)]


def _share_on_white(scene: Scene, at_5: float) -> Row:
    """Compare with the judge's score on real pictures that are as easy as the model's prompts."""
    try:
        own = scene.own_score_posed(5)
    except ValueError as error:
        return goals.AT_5_SHARE.row(None, str(error))
    return goals.AT_5_SHARE.row(
        _relative(at_5, own), f"{at_5:.1f} % where the judge has {own:.1f} % on real drawings on white"
    )


def held_out_words(scene: Scene) -> list[Row]:
    """Draw words that are in no caption; a hit is a label of that meaning among the judge's first five."""
    asked = [(word, form) for word in ACCEPTED for form in TEMPLATES for _ in range(scene.sizes.per_word)]
    prompts = [form.format(word=word) for word, form in asked]
    seen = scene.judge.look(scene.painter.pictures(prompts, range(len(prompts))))
    figure, own = among(seen.scores, _accepted(scene, [word for word, _ in asked]), 5), _own_words(scene)
    best = seen.top(5).tolist()
    by_word = {word: [] for word in ACCEPTED}
    for (word, _), row in zip(asked, best, strict=True):
        by_word[word].append(not set(row).isdisjoint(_accepted(scene, [word])[0]))
    each = ", ".join(f"{word} {share(hits):.0f}" for word, hits in by_word.items())
    return [
        goals.WORDS.row(figure, f"{len(asked)} pictures, in percent: {each}"),
        goals.WORDS_SHARE.row(_relative(figure, own), f"where the judge has {own:.1f} % on real drawings, on white"),
    ]


def _accepted(scene: Scene, words: Sequence[str]) -> list[list[int]]:
    return [[scene.places[label] for label in ACCEPTED[word] if label in scene.places] for word in words]


def _own_words(scene: Scene) -> float:
    """Measure the same on real drawings of each word's meaning, on white; each word counts equally."""
    found: list[float] = []
    for word, accepted in ACCEPTED.items():
        drawings = [art for art in scene.artwork if art.words.label in accepted]
        if drawings:
            pictures = posed_again(drawings)
            found.append(among(scene.judge.look(pictures).scores, _accepted(scene, [word] * len(pictures)), 5))
    if not found:
        raise ValueError("The artwork has no picture of what the held-out words mean.")
    return sum(found) / len(found)


def _relative(figure: float, own: float) -> float:
    """Return `figure` in percent of the judge's own score."""
    if own <= 0:
        raise ValueError("The judge recognises nothing, not even real pictures: train it with `darkroom train judge`.")
    return 100 * figure / own


def _most(missed: Sequence[str]) -> str:
    if not missed:
        return ""
    said = ", ".join(f"{what} ({times})" for what, times in Counter(missed).most_common(SAID))
    return f"; missed most: {said}"
