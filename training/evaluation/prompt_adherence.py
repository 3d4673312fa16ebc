"""Checks of prompt adherence: backgrounds, hues on unseen pairs, labels, unseen words and lemmas, over guidance.

`find_labels_of_style` finds the labels that a model draws well in a style.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import cast

import numpy as np
import torch

from benchmarks.report.figure_row import FigureRow
from engine.contract import FULL_INTERVAL, add_style, has_style
from engine.models.judge import LabelJudge
from training.evaluation import goals
from training.evaluation.context import EvaluationContext
from training.evaluation.goals import GUIDANCE_INTERVALS, GUIDANCE_SCALES, Goal, goals_at_scale, goals_in_interval
from training.evaluation.measures import (
    best_places,
    name_subject_hue,
    nearest_background,
    percent_of_hits,
    retrieval_at,
    retrieval_of_any_at,
)
from training.evaluation.prompt_sheet import ACCEPTED_LABELS, PROMPT_TEMPLATES
from training.pictures.captions import HELD_OUT_PAIRS
from training.pictures.variants import BACKGROUND_COLOURS, render_posed_rescaled

LISTED_MISSES = 3  # of the worst, in a note


def check_backgrounds(context: EvaluationContext) -> list[FigureRow]:
    """Draw every named background on some labels; the border's colour decides."""
    colours = [colour for colour in BACKGROUND_COLOURS for _ in range(context.sizes.per_colour)]
    labels = context.choose_labels(len(colours), 2)
    prompts = [f"{label}, {colour} background" for label, colour in zip(labels, colours, strict=True)]
    pictures = context.sampler.sample_pictures(prompts, range(len(prompts)))
    pairs = list(zip(map(nearest_background, pictures), colours, strict=True))
    misses = [f"{colour} as {found}" for found, colour in pairs if found != colour]
    hits = [found == colour for found, colour in pairs]
    note = f"{len(hits)} pictures, {len(BACKGROUND_COLOURS)} colours{_list_misses(misses)}"
    return [goals.BACKGROUNDS.make_row(percent_of_hits(hits), note)]


def check_hues(context: EvaluationContext) -> list[FigureRow]:
    """Draw the colour–object pairs that are in no caption, from many seeds."""
    pairs = [pair for pair in sorted(HELD_OUT_PAIRS) for _ in range(context.sizes.per_pair)]
    prompts = [f"{hue} {thing}, white background" for hue, thing in pairs]
    found_hues = map(name_subject_hue, context.sampler.sample_pictures(prompts, range(len(prompts))))
    found_pairs = list(zip(found_hues, pairs, strict=True))
    misses = [f"{' '.join(pair)} as {found or 'no hue'}" for found, pair in found_pairs if found != pair[0]]
    hits = [found == hue for found, (hue, _) in found_pairs]
    note = f"{len(hits)} pictures of {len(HELD_OUT_PAIRS)} pairs{_list_misses(misses)}"
    return [goals.HUES.make_row(percent_of_hits(hits), note)]


def check_labels(context: EvaluationContext) -> list[FigureRow]:
    """Draw "LABEL, white background" and rank the judge's labels: is LABEL the first, or among the first five?"""
    label_sample = context.label_sample()
    label_count = len(context.judge.labels)
    at_1, at_5 = (retrieval_at(label_sample.output.scores, label_sample.targets, count) for count in (1, 5))
    note = f"{len(label_sample.labels)} of {label_count} labels asked for, ranked among all {label_count}"
    judge_note = (
        f"{label_count} labels, two renderings each that no training saw: on any background, small, close-up, re-hued"
    )
    return [
        goals.JUDGE_AT_1.make_row(context.judge_score(1)),
        goals.JUDGE_AT_5.make_row(context.judge_score(5), judge_note),
        *_judge_on_white_rows(context),
        goals.LABEL_AT_1.make_row(at_1, note),
        goals.LABEL_AT_5.make_row(at_5, note),
        _share_on_white_row(context, goals.LABEL_AT_1_SHARE, at_1, 1),
        _share_on_white_row(context, goals.LABEL_AT_5_SHARE, at_5, 5),
    ]


def _judge_on_white_rows(context: EvaluationContext) -> list[FigureRow]:
    """Score the judge on the drawings posed as prompts ask, in sizes that it was not trained on."""
    note = "two drawings of every label on white, each a little smaller and a little larger than in training"
    try:
        return [
            goals.JUDGE_ON_WHITE_AT_1.make_row(context.judge_score_on_white(1)),
            goals.JUDGE_ON_WHITE_AT_5.make_row(context.judge_score_on_white(5), note),
        ]
    except ValueError as error:
        return [goal.make_row(None, str(error)) for goal in (goals.JUDGE_ON_WHITE_AT_1, goals.JUDGE_ON_WHITE_AT_5)]


def _share_on_white_row(context: EvaluationContext, goal: Goal, score: float, count: int) -> FigureRow:
    """Compare with the judge's score on real pictures that are as easy as the model's prompts."""
    try:
        judge_score = context.judge_score_on_white(count)
    except ValueError as error:
        return goal.make_row(None, str(error))
    note = f"{score:.1f} % where the judge has {judge_score:.1f} % on real drawings on white"
    return goal.make_row(_percent_of_judge(score, judge_score), note)


def check_held_out_words(context: EvaluationContext) -> list[FigureRow]:
    """Draw words that are in no caption; a hit is a label of that meaning among the judge's first five."""
    repeats = range(context.sizes.per_word)
    word_templates = [(word, template) for word in ACCEPTED_LABELS for template in PROMPT_TEMPLATES for _ in repeats]
    prompts = [template.format(word=word) for word, template in word_templates]
    output = context.judge.judge_pictures(context.sampler.sample_pictures(prompts, range(len(prompts))))
    score = retrieval_of_any_at(output.scores, _accepted_labels(context, [word for word, _ in word_templates]), 5)
    judge_score = _judge_word_score(context)
    top_labels = cast(list[list[int]], output.top_labels(5).tolist())
    by_word = {word: list[bool]() for word in ACCEPTED_LABELS}
    for (word, _), top_row in zip(word_templates, top_labels, strict=True):
        by_word[word].append(not set(top_row).isdisjoint(_accepted_labels(context, [word])[0]))
    word_scores = ", ".join(f"{word} {percent_of_hits(hits):.0f}" for word, hits in by_word.items())
    share_note = f"where the judge has {judge_score:.1f} % on real drawings, on white"
    return [
        goals.WORDS.make_row(score, f"{len(word_templates)} pictures, in percent: {word_scores}"),
        goals.WORDS_SHARE.make_row(_percent_of_judge(score, judge_score), share_note),
    ]


def check_held_out_lemmas(context: EvaluationContext) -> list[FigureRow]:
    """Draw lemmas of WordNet that no caption had; a hit is a label of that meaning among the judge's first five."""
    numbers = context.label_numbers
    targets = {lemma: [numbers[label] for label in labels & numbers.keys()] for lemma, labels in context.lemmas.items()}
    known_lemmas = sorted(lemma for lemma, labels in targets.items() if labels)
    if not known_lemmas:
        raise ValueError("None of the held-out lemmas means a label of the judge.")
    count = min(context.sizes.lemma_count, len(known_lemmas))
    chosen = np.random.default_rng([context.seed, 6]).choice(known_lemmas, count, replace=False).tolist()
    pictures = context.sampler.sample_pictures([f"{lemma}, white background" for lemma in chosen], range(count))
    scores = context.judge.judge_pictures(pictures).scores
    places = best_places(scores, [targets[lemma] for lemma in chosen])
    misses = sorted((-place, lemma) for place, lemma in zip(places, chosen, strict=True) if place > 5)
    worst_misses = ", ".join(f"{lemma} (place {-place})" for place, lemma in misses[:LISTED_MISSES])
    note = f"{count} of {len(known_lemmas)} lemmas{f'; missed most: {worst_misses}' if misses else ''}"
    return [goals.LEMMAS.make_row(percent_of_hits([place <= 5 for place in places]), note)]


def _accepted_labels(context: EvaluationContext, words: Sequence[str]) -> list[list[int]]:
    numbers = context.label_numbers
    return [[numbers[label] for label in ACCEPTED_LABELS[word] if label in numbers] for word in words]


def _judge_word_score(context: EvaluationContext) -> float:
    """Measure the same on real drawings of each word's meaning, on white; each word counts equally."""
    scores: list[float] = []
    for word, accepted_labels in ACCEPTED_LABELS.items():
        drawings = [drawing for drawing in context.artwork if drawing.description.label in accepted_labels]
        if drawings:
            pictures = render_posed_rescaled(drawings)
            accepted = _accepted_labels(context, [word] * len(pictures))
            scores.append(retrieval_of_any_at(context.judge.judge_pictures(pictures).scores, accepted, 5))
    if not scores:
        raise ValueError("The artwork has no picture of what the held-out words mean.")
    return sum(scores) / len(scores)


def _percent_of_judge(score: float, judge_score: float) -> float:
    """Return `score` in percent of the judge's own score."""
    if judge_score <= 0:
        raise ValueError("The judge recognises nothing, not even real pictures: train it with `darkroom train judge`.")
    return 100 * score / judge_score


def _list_misses(misses: Sequence[str]) -> str:
    if not misses:
        return ""
    worst_misses = ", ".join(f"{miss} ({count})" for miss, count in Counter(misses).most_common(LISTED_MISSES))
    return f"; missed most: {worst_misses}"


def check_guidance(context: EvaluationContext) -> list[FigureRow]:
    """Return rows for the same labels, colours and seeds at every scale, then at the usual scale in every interval."""
    labels = context.choose_labels(context.sizes.guidance_prompts, 5)
    names = list(BACKGROUND_COLOURS)
    colours = [names[i % len(names)] for i in range(len(labels))]
    prompts = [f"{label}, {colour} background" for label, colour in zip(labels, colours, strict=True)]
    targets = torch.tensor([context.label_numbers[label] for label in labels])
    results: list[FigureRow] = []
    default_scale = context.sampler.family.guidance
    settings = [(goals_at_scale(scale), scale, FULL_INTERVAL) for scale in GUIDANCE_SCALES]
    settings += [(goals_in_interval(interval), default_scale, interval) for interval in GUIDANCE_INTERVALS]
    for (retrieval_goal, background_goal), scale, interval in settings:
        pictures = context.sampler.sample_pictures(prompts, range(len(prompts)), scale, interval)
        hits = [nearest_background(picture) == colour for picture, colour in zip(pictures, colours, strict=True)]
        retrieval = retrieval_at(context.judge.judge_pictures(pictures).scores, targets, 5)
        results.append(retrieval_goal.make_row(retrieval, f"{len(prompts)} pictures"))
        results.append(background_goal.make_row(percent_of_hits(hits)))
    return results


SEEDS = (1_000_000, 2_000_000)  # of each label, far from those of the evaluation
DrawPictures = Callable[[Sequence[str], Sequence[int]], np.ndarray]  # prompts and seeds → uint8 [n, h, w, 3]


def find_labels_of_style(draw_pictures: DrawPictures, judge: LabelJudge, style: str) -> frozenset[str]:
    """Return the labels whose picture in this style the judge puts first, with every seed of `SEEDS`."""
    # A prompt's subject ends at a comma, and a text that names a style ("pencil") gets no other.
    labels = [label for label in judge.labels if "," not in label and not has_style(label)]
    for first_seed in SEEDS:
        labels = _keep_recognised(draw_pictures, judge, labels, style, first_seed) if labels else []
    return frozenset(labels)


def _keep_recognised(
    draw_pictures: DrawPictures, judge: LabelJudge, labels: Sequence[str], style: str, first_seed: int
) -> list[str]:
    """Return the labels that are recognised; label `i` of the judge is drawn from seed `first_seed + i`."""
    numbers = [judge.labels.index(label) for label in labels]
    prompts = [add_style(f"{label}, white background", style) for label in labels]
    pictures = draw_pictures(prompts, [first_seed + number for number in numbers])
    places = best_places(judge.judge_pictures(pictures).scores, [[number] for number in numbers])
    return [label for label, place in zip(labels, places, strict=True) if place == 1]
