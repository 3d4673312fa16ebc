"""The words of a party: fair between members whatever they do, within the prompt's room, and never too often."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.features.parties.rules import (
    MIN_CHANGE_SECONDS,
    SAID_SHARE,
    SPARE_AMENDMENTS,
    PartyTalk,
    Phrase,
    choose_words,
    count_places,
    find_change_interval,
    find_fade_steps,
    find_pace,
    is_worth_a_change,
    score_phrases,
)
from engine.contract import MAX_AMENDMENTS, MAX_CONCEPTS, Concept

PROMPT = (Concept("fox"),)
members = st.sampled_from([f"member {number}" for number in range(8)])
texts = st.sampled_from(["blue", "snow", "at night", "a hat", "fox"])
prompts = st.lists(
    st.builds(Concept, st.sampled_from(["fox", "field", "fog"]), st.sampled_from([0.5, 1.0, -0.5])),
    min_size=1,
    max_size=3,
    unique_by=lambda concept: concept.text,
).filter(lambda prompt: any(concept.weight > 0 for concept in prompt))


@st.composite
def talks(draw: st.DrawFn) -> PartyTalk:
    said = draw(st.lists(st.tuples(members, texts), max_size=20))
    phrases = tuple(Phrase(number, member, member, text) for number, (member, text) in enumerate(said, 1))
    numbers = st.integers(1, max(1, len(phrases)))
    votes = draw(st.dictionaries(st.tuples(numbers, members), st.sampled_from([1, -1]), max_size=20))
    return PartyTalk(phrases, votes, draw(st.dictionaries(members, st.integers(0, 9))))


def find_jain_index(shares: Sequence[float]) -> float:
    """1 for equal shares, 1/n where one has all (Jain, Chiu and Hawe 1984)."""
    return sum(shares) ** 2 / (len(shares) * sum(share * share for share in shares))


@settings(max_examples=80, deadline=None)
@given(prompts, talks())
def test_the_words_fit_the_prompt_and_its_positive_weights_add_up_to_one(
    prompt: list[Concept], talk: PartyTalk
) -> None:
    change = choose_words(prompt, talk)
    assert 1 <= len(change.concepts) <= len(prompt) + count_places(prompt)
    assert len(prompt) + 2 * count_places(prompt) <= MAX_CONCEPTS
    texts = [concept.text for concept in change.concepts]
    assert len(set(texts)) == len(texts)
    assert {concept.text for concept in prompt if concept.weight > 0} <= set(texts), "the owner's prompt stays"
    said = {phrase.text for phrase in change.phrases}
    positive = sum(concept.weight for concept in change.concepts if concept.weight > 0)
    if not said & {concept.text for concept in prompt}:
        assert positive == pytest.approx(1.0, abs=1e-3)
    members = [phrase.member for phrase in change.phrases]
    assert len(set(members)) == len(members), "one phrase of each member"
    assert not is_worth_a_change(change.concepts, choose_words(prompt, talk).concepts)


@settings(max_examples=60, deadline=None)
@given(talks())
def test_no_member_has_more_than_one_votes_worth(talk: PartyTalk) -> None:
    """Whatever one member votes, all scores together move by at most that one vote, for or against."""
    before = score_phrases(talk)
    for voter in {member for _, member in talk.votes}:
        others = {key: value for key, value in talk.votes.items() if key[1] != voter}
        after = score_phrases(PartyTalk(talk.phrases, others, talk.served))
        assert sum(abs(before[number] - after[number]) for number in before) <= 2.0 + 1e-9


def test_votes_change_the_weights_and_what_most_are_against_is_left_out() -> None:
    phrases = tuple(
        Phrase(number, member, member, text)
        for number, (member, text) in enumerate([("ann", "blue"), ("bob", "snow"), ("cid", "mud")], 1)
    )
    votes = {(1, "dan"): 1, (1, "eve"): 1, (3, "fay"): -1, (3, "gus"): -1}
    change = choose_words(PROMPT, PartyTalk(phrases, votes))
    assert change.concepts == (Concept("fox", 0.5), Concept("blue", 0.375), Concept("snow", 0.125))
    assert SAID_SHARE == 0.5
    newest = (*phrases, Phrase(4, "ann", "ann", "green"))
    assert [phrase.text for phrase in choose_words(PROMPT, PartyTalk(newest, votes)).phrases] == ["snow", "green"]
    assert choose_words(PROMPT, PartyTalk()).concepts == PROMPT


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("eager_share", [1.0, 10.0])
def test_fifty_members_who_ask_ten_times_a_second_are_served_alike(seed: int, eager_share: float) -> None:
    """For five minutes; ten of them ask `eager_share` times as often as the others, and vote for themselves."""
    rng = random.Random(seed)
    people = [f"member {number}" for number in range(50)]
    eagerness = [eager_share if number < 10 else 1.0 for number in range(50)]
    phrases = list[Phrase]()
    votes = dict[tuple[int, str], int]()
    served = Counter[str]()
    seconds = 300.0
    changed_at = 0.0
    changes = 0
    words = PROMPT
    for tick in range(int(seconds * 10)):
        now = tick / 10
        member = rng.choices(people, eagerness)[0]
        phrases.append(Phrase(len(phrases) + 1, member, member, f"word {rng.randrange(1000)}"))
        if rng.random() < 0.3:
            votes[rng.randrange(max(1, len(phrases) - 50), len(phrases) + 1), member] = rng.choice([1, 1, -1])
        if now - changed_at >= find_change_interval(seconds - now, changes):
            change = choose_words(PROMPT, PartyTalk(tuple(phrases), votes, served))
            if is_worth_a_change(words, change.concepts):
                words = change.concepts
                changed_at = now
                changes = changes + 1
                served.update(phrase.member for phrase in change.phrases)
    assert find_jain_index([served[member] for member in people]) >= 0.95
    assert 50 <= changes <= MAX_AMENDMENTS - SPARE_AMENDMENTS, "enough for the whole party, and not all used up early"
    assert len({phrase.member for phrase in phrases}) == 50


@given(st.floats(0, 3600), st.integers(0, MAX_AMENDMENTS), st.integers(0, 1000))
def test_changes_and_steps_last_the_whole_party(seconds_left: float, changes: int, steps_left: int) -> None:
    interval = find_change_interval(seconds_left, changes)
    pace = find_pace(seconds_left, steps_left)
    assert interval >= MIN_CHANGE_SECONDS
    assert seconds_left / interval <= max(0, MAX_AMENDMENTS - SPARE_AMENDMENTS - changes) + 1e-6
    assert steps_left == 0 or pace * steps_left == pytest.approx(seconds_left)
    assert find_fade_steps(interval, pace) * pace <= interval / 2 + 1e-6
