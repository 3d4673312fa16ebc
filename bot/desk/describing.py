"""Image-to-prompt: suggests a prompt for an image. It scores a list of words by how well the model denoises the image
with each (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier"); no vision model is needed.

The search goes from coarse to fine: the setting (background, medium); then the subject, with few noise draws for all
and more for the best; then further details, slot by slot. At the end a word is kept only if it clearly improves the
score. One image at a time, and a short queue before it; nothing is charged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from bot.desk.bringing import Remote
from bot.desk.gate import check_action, check_model, check_open
from bot.images.intake import Brought
from bot.images.square import square
from bot.models import Models
from bot.prompt.tally import NOTHING, Tally
from bot.prompt.vocabulary import Vocabulary, filled, vocabulary
from bot.refused import Refused
from bot.rules import Terms
from bot.sentences import duration, shortened
from bot.views import Member
from engine.bus import NobodyAnswers
from engine.job import MAX_CANDIDATES, DescribeRequest, Warm

LINE = 4  # members with a request that runs or waits
SECONDS = 240.0  # timeout of one request, its wait included
AT_MOST = 120.0  # device-seconds that one may need
REQUEST_MS = 10_000.0  # of one request, by calibration
PROMPTS = 4
# (how many of the best subjects, noise draws) for each round; None: all subjects.
ROUNDS = ((None, 2), (24, 6), (8, 16))
LOOKED, FINE = range(6), range(16)  # noise draws for slots, and for the final choice

YOURS = "A picture of yours is being described just now: wait until that is done."
FULL = "Others are having pictures described just now: try again in a moment."
LONG = "With {model} this would take about {time} on the workers that are online: ask for a smaller model."
LATE = "The workers are too busy to describe a picture just now: try again later."
HOW = (
    "These are the words, out of {tried} that were tried, under which {model} predicts this picture's noise best. It "
    "knows only those words; it does not see as a person does."
)
NONE = (
    "Under none of the {tried} words that were tried does {model} predict this picture's noise better than without "
    "words. It knows only those words; it does not see as a person does."
)

Ask = Callable[[DescribeRequest], Awaitable[Sequence[Sequence[float]]]]
Read = Callable[[Member, bytes | Remote], Awaitable[Brought]]


@dataclass(frozen=True)
class Worded:
    """A prompt, and the share by which it reduces the noise error compared to an empty prompt."""

    prompt: str
    gain: float


@dataclass(frozen=True)
class Described:
    """Up to four prompts, best first; none if no words helped. `tried`: how many texts were scored."""

    model: str
    tried: int
    words: tuple[Worded, ...]
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The sentence that explains the result."""
        return (HOW if self.words else NONE).format(tried=self.tried, model=self.model)


class Describing:
    """Suggests prompts for members' images. `ask` raises `NobodyAnswers` or ConnectionError."""

    def __init__(
        self, ask: Ask, read: Read, models: Models, terms: Callable[[Member], Awaitable[Terms]]
    ) -> None:  # fmt: skip
        self._ask, self._read, self._models, self._terms = ask, read, models, terms
        self._turn, self._members = asyncio.Lock(), set[str]()

    async def describe(self, piece: bytes | Remote, member: Member, model: str | None = None) -> Described:
        """Suggest prompts for an image file or one at Discord; stores nothing of it. Raises `Refused`."""
        warm = self._warm(model)
        await self._check(member, warm)
        with self._place(member.id):
            try:
                async with asyncio.timeout(SECONDS):
                    brought = await self._read(member, piece)
                    picture = await asyncio.to_thread(square, brought.png, warm.size)
                    async with self._turn:
                        search = Search(self._ask, warm, picture)
                        return Described(warm.name, *await search.found(vocabulary(warm)), brought.notes)
            except TimeoutError as error:
                raise Refused(LATE, 429) from error
            except (NobodyAnswers, ConnectionError) as error:
                raise Refused(shortened(str(error), 300)) from error

    def _warm(self, name: str | None) -> Warm:
        try:
            return self._models.profile(name or None).warm
        except KeyError as error:
            raise Refused(f"There is no model called {shortened(str(name), 64)} here.") from error

    async def _check(self, member: Member, warm: Warm) -> None:
        """Raise `Refused` if the rules forbid it, or if it would take too long."""
        terms = await self._terms(member)
        check_open(terms)
        check_action(terms, "describe")
        check_model(terms, warm.name)
        if (seconds := cost(warm, vocabulary(warm))) > AT_MOST:
            raise Refused(LONG.format(model=warm.name, time=duration(seconds)))

    @contextmanager
    def _place(self, member: str) -> Iterator[None]:
        """Occupy one of the few places in the queue, one for each member."""
        if member in self._members:
            raise Refused(YOURS, 429)
        if len(self._members) >= LINE:
            raise Refused(FULL, 429)
        self._members.add(member)
        try:
            yield
        finally:
            self._members.discard(member)


def cost(warm: Warm, words: Vocabulary) -> float:
    """Return the device-seconds by calibration: rows of the network, and texts to encode."""
    rows, before = 0, 0
    for most, draws in ROUNDS:
        rows += (most or len(words.subjects)) * (draws - before)
        before = draws
    parts = len(words.settings) + len(words.slots)
    rows += words.besides * len(LOOKED) + (2 * parts + PROMPTS) * len(FINE)
    return (rows * warm.row_ms + (len(words.subjects) + words.besides) * warm.encode_ms) / 1000.0


class Search:
    """The search for one image (a small PNG) with one model."""

    def __init__(self, ask: Ask, warm: Warm, picture: bytes) -> None:
        self._ask, self._warm, self._picture, self._tally = ask, warm, picture, Tally()

    async def found(self, words: Vocabulary) -> tuple[int, tuple[Worded, ...]]:
        """Return how many texts were tried, and the prompts that beat an empty prompt, best first."""
        said: list[str] = []
        for slot in words.settings:
            said += await self._fitting(NOTHING, said, slot)
        subjects = await self._subjects(words.subjects, said)
        for slot in words.slots:
            said += await self._fitting(subjects[0], said, slot)
        said = await self._needed(subjects[0], said)
        prompts = [filled(subject, said) for subject in subjects]
        await self._try(prompts, FINE)
        best = [Worded(text, self._tally.gain(text, FINE)) for text in self._tally.best(prompts, FINE, PROMPTS)]
        return self._tally.tried, tuple(one for one in best if one.gain > 0)

    async def _subjects(self, every: Sequence[str], settings: Sequence[str]) -> list[str]:
        """Return the best subjects after several rounds."""
        left, before = {filled(one, settings): one for one in every}, 0
        for most, draws in ROUNDS:
            await self._try(list(left)[:most], range(before, draws))
            ordered = self._tally.best(list(left)[:most], range(draws), most or len(left))
            left, before = {text: left[text] for text in ordered}, draws
        return list(left.values())[:PROMPTS]

    async def _fitting(self, subject: str, said: Sequence[str], slot: Sequence[str]) -> list[str]:
        """Return the word of a slot that fits best with `said`, or nothing if `said` alone fits better.

        If `said` is empty, a word is always chosen: the models know hardly any picture that is only a setting, and with
        the right setting in their text the subjects can be told apart.
        """
        texts: dict[str, list[str]] = {filled(subject, [*said, one]): [one] for one in slot}
        if alone := filled(subject, said):
            texts[alone] = []
        await self._try(texts, LOOKED)
        (best,) = self._tally.best(texts, LOOKED, 1)
        return texts[best]

    async def _needed(self, subject: str, said: Sequence[str]) -> list[str]:
        """Drop the words that do not clearly improve the score, checking the last one first."""
        kept = list(said)
        for one in reversed(said):
            without = [other for other in kept if other is not one]
            long, short = filled(subject, kept), filled(subject, without)
            await self._try([long, short], FINE)
            kept = kept if self._tally.clearly(long, short, FINE) else without
        return kept

    async def _try(self, texts: Iterable[str], draws: range) -> None:
        """Score each text with these noise draws, skipping scores that are known."""
        wanted, most = self._tally.missing(texts, draws), _at_once(self._warm, len(draws))
        for at in range(0, len(wanted), most):
            part = wanted[at : at + most]
            request = DescribeRequest(
                model=self._warm.name, revision=self._warm.revision, picture=self._picture, texts=tuple(part),
                first=draws.start, draws=len(draws),
            )  # fmt: skip
            self._tally.add(part, draws.start, await self._ask(request))


def _at_once(warm: Warm, draws: int) -> int:
    """Return how many texts a request has, so that it does not occupy a worker for long."""
    return max(1, min(MAX_CANDIDATES, int(REQUEST_MS / (draws * warm.row_ms + warm.encode_ms + 1e-3))))
