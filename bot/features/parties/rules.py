"""How the words of a party become one prompt: whose phrases are in it, with which weights, and when it changes. Pure.

Each member has one phrase, the newest that they said, and one vote's worth in all, which is shared evenly by all that
they vote on. So neither many phrases nor many votes give a member more than another has. Phrases that nobody minds take
turns where there are more than the prompt has places for: those come first whose members have been served least.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from engine.contract import MAX_AMENDMENTS, MAX_CONCEPTS, MAX_STEPS, Concept

MIN_CHANGE_SECONDS = 3.0  # from one change of the words to the next
SPARE_AMENDMENTS = 4  # of a picture's changes: for other things than words
SAID_SHARE = 0.5  # of the positive weights of a prompt, for all that members say
MIN_WEIGHT_CHANGE = 0.02  # a smaller one is not worth a change
FADE_SHARE = 0.5  # of the steps until the next change: weights glide over them, and a new change finds them settled


@dataclass(frozen=True)
class Phrase:
    """What a member says in a party. `number` rises within the party. `text`: already clean."""

    number: int
    member: str
    member_name: str
    text: str


@dataclass(frozen=True)
class PartyTalk:
    """All that was said in a party. `votes`: by phrase number and member, 1 or -1.

    `served`: by member, how many changes of the words had a phrase of theirs.
    """

    phrases: tuple[Phrase, ...] = ()
    votes: Mapping[tuple[int, str], int] = field(default_factory=dict[tuple[int, str], int])
    served: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class WordsChange:
    """The words of a party from now on, and the members whose phrases are in them."""

    concepts: tuple[Concept, ...]
    phrases: tuple[Phrase, ...]


def list_live_phrases(talk: PartyTalk) -> list[Phrase]:
    """Return the newest phrase of each member, oldest first."""
    newest = {phrase.member: phrase for phrase in talk.phrases}
    return sorted(newest.values(), key=lambda phrase: phrase.number)


def collect_opinions(talk: PartyTalk) -> dict[tuple[int, str], int]:
    """Return what each member thinks of each live phrase, as `PartyTalk.votes` has it.

    Who says a phrase is for it, unless they vote against it.
    """
    opinions = {(phrase.number, phrase.member): 1 for phrase in list_live_phrases(talk)}
    numbers = {number for number, _ in opinions}
    return opinions | {key: value for key, value in talk.votes.items() if key[0] in numbers}


def score_phrases(talk: PartyTalk) -> dict[int, float]:
    """Return each live phrase's score, by number: a member's vote counts as one divided by all that they vote on."""
    opinions = collect_opinions(talk)
    counts = Counter(member for _, member in opinions)
    scores = dict.fromkeys((number for number, _ in opinions), 0.0)
    for (number, member), value in opinions.items():
        scores[number] += value / counts[member]
    return scores


def count_places(prompt: Sequence[Concept]) -> int:
    """Return for how many phrases a prompt has room: while one prompt fades into the next, both are drawn."""
    return max(1, (MAX_CONCEPTS - len(prompt)) // 2)


def choose_words(prompt: Sequence[Concept], talk: PartyTalk) -> WordsChange:
    """Return the words of the party as they should be now. `prompt`: what its owner asked for, which stays in them."""
    scores = score_phrases(talk)
    wanted = [phrase for phrase in list_live_phrases(talk) if scores[phrase.number] > 0]
    wanted.sort(key=lambda phrase: (talk.served.get(phrase.member, 0), -scores[phrase.number], phrase.number))
    chosen = sorted(wanted[: count_places(prompt)], key=lambda phrase: phrase.number)
    said = [(phrase.text, scores[phrase.number]) for phrase in chosen]
    return WordsChange(balance_weights(prompt, said), tuple(chosen))


def balance_weights(prompt: Sequence[Concept], said: Sequence[tuple[str, float]]) -> tuple[Concept, ...]:
    """Return prompt and phrases as concepts whose positive weights add up to 1; equal texts are one concept.

    The phrases share `SAID_SHARE` by their scores; the prompt's parts keep their weights among each other.
    """
    own = sum(concept.weight for concept in prompt if concept.weight > 0) or 1.0
    total = sum(score for _, score in said)
    own_share = 1.0 - SAID_SHARE if said else 1.0
    weights: dict[str, float] = {}
    for concept in prompt:
        weights[concept.text] = weights.get(concept.text, 0.0) + own_share * concept.weight / own
    for text, score in said:
        weights[text] = weights.get(text, 0.0) + SAID_SHARE * score / total
    return tuple(Concept(text, round(weight, 4)) for text, weight in weights.items() if weight)


def is_worth_a_change(old: Sequence[Concept], new: Sequence[Concept]) -> bool:
    """Return whether the new words differ from the old ones by more than a rounding."""
    old_weights, new_weights = ({concept.text: concept.weight for concept in each} for each in (old, new))
    texts: Collection[str] = {*old_weights, *new_weights}
    return any(abs(old_weights.get(text, 0.0) - new_weights.get(text, 0.0)) >= MIN_WEIGHT_CHANGE for text in texts)


def find_change_interval(seconds_left: float, changes_made: int) -> float:
    """Return the seconds from one change of the words to the next, so that the changes last as long as the party.

    Infinite once no more are possible.
    """
    changes_left = MAX_AMENDMENTS - SPARE_AMENDMENTS - changes_made
    return max(MIN_CHANGE_SECONDS, seconds_left / changes_left) if changes_left > 0 else math.inf


def find_pace(seconds_left: float, steps_left: int) -> float:
    """Return the seconds a step with which a picture lasts as long as its party; 0: as fast as it can.

    The steps are those of the chain, or those at which the network is evaluated.
    """
    return max(0.0, seconds_left / steps_left) if steps_left > 0 else 0.0


def find_fade_steps(interval: float, seconds_per_step: float) -> int:
    """Return over how many steps the words change. `interval`: seconds to the next change."""
    return int(min(MAX_STEPS, FADE_SHARE * interval / seconds_per_step)) if seconds_per_step > 0 else 0


@dataclass(frozen=True)
class PartyPhrase:
    """What a member says. `number` rises within the party. `votes_for` counts its member, too."""

    number: int
    text: str
    member_name: str
    votes_for: int
    votes_against: int


@dataclass(frozen=True)
class PartyBoard:
    """What is said in a party, and by whom.

    `ends_at`: in seconds since 1970; None until its picture develops. `phrases`: the newest of each member, in order.
    `members`: the names of all who take part, in the order in which they joined.
    """

    job: str
    ends_at: float | None
    is_open: bool
    phrases: tuple[PartyPhrase, ...]
    members: tuple[str, ...]
