"""Image-to-prompt: suggests a prompt for an image. It scores a list of words by how well the model denoises the image
with each (Li et al. 2023, "Your Diffusion Model is Secretly a Zero-Shot Classifier"); no vision model is needed.

The search goes from coarse to fine: the setting (background, medium); then the subject, with few noise draws for all
and more for the best; then further details, slot by slot. At the end it keeps a word only if that clearly improves the
score. The members' searches take turns, request by request. Members are charged what their search ran, as for a job.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.domain.feature import PromptSuggester, RunningFeature, SideWork
from bot.domain.texts import format_duration, shorten
from bot.features.describe.rules import EMPTY_TEXT, PromptScores, Vocabulary, build_prompt, choose_vocabulary
from bot.jobs.costs import WorkCharges, WorkMeter
from bot.jobs.init_images import InitImageLoader, RemoteFile
from bot.jobs.model_catalog import ModelCatalog
from bot.jobs.quota import check_action, check_allowed
from bot.pictures.image_codec import crop_square
from bot.pictures.uploads.upload_decoder import DecodedImage
from bot.policy.rules import EffectiveRules
from engine.bus import NoWorkerAnswers
from engine.contract import MAX_CANDIDATES, DescribeRequest, ModelProfile

if TYPE_CHECKING:
    from bot.app.wiring import App

MAX_MEMBERS = 16  # members with a search
TIMEOUT_SECONDS = 240.0  # timeout of one search, beside which no later one is admitted that would exceed it
MAX_COST = 120.0  # device-seconds that one request may need
MAX_REQUEST_MS = 10_000.0  # of one request, by calibration
MAX_PROMPTS = 4
# (how many of the best subjects, noise draws) for each round; None: all subjects.
ROUNDS = ((None, 2), (24, 6), (8, 16))
# noise draws for slots, and for the final choice
SLOT_DRAWS = range(6)
FINAL_DRAWS = range(16)

ALREADY_RUNNING = "A picture of yours is being described just now: wait until that is done."
QUEUE_FULL = "Others are having pictures described just now: try again in about {}."
CANCELLED = "Cancelled: only what ran was charged."
DESCRIPTION_CANCELLED = "The description of your picture is cancelled: only what ran is charged."
TOO_SLOW = "With {model} this would take about {time} on the workers that are online: ask for a smaller model."
TIMED_OUT = "The workers are too busy to describe a picture just now: try again later."
EXPLANATION = (
    "Of {tried} candidate texts, these let {model} denoise the image best. Only listed words can be suggested: no "
    "captioning model is used."
)
NO_WORDS_HELP = (
    "None of {tried} candidate texts lets {model} denoise this image better than an empty prompt. Only listed words "
    "can be suggested: no captioning model is used."
)

RequestScores = Callable[[DescribeRequest], Awaitable[Sequence[Sequence[float]]]]
LoadImage = Callable[[Member, bytes | RemoteFile], Awaitable[DecodedImage]]
ChargeWork = Callable[[Member, float], AbstractAsyncContextManager[WorkMeter]]  # member, estimated device-seconds


@dataclass(frozen=True)
class ScoredPrompt:
    """A prompt, and the share by which it reduces the noise error compared to an empty prompt."""

    prompt: str
    error_reduction: float


@dataclass(frozen=True)
class PromptSuggestions:
    """Up to four prompts, best first; none if no words helped. `tried_texts`: how many texts were scored."""

    model: str
    tried_texts: int
    prompts: tuple[ScoredPrompt, ...]
    notes: tuple[str, ...] = ()

    @property
    def sentence(self) -> str:
        """The sentence that explains the result."""
        return (EXPLANATION if self.prompts else NO_WORDS_HELP).format(tried=self.tried_texts, model=self.model)


@dataclass
class _Search:
    """A member's search. `seconds`: its estimate, alone on a worker. `deadline`: on the loop's clock."""

    seconds: float
    timeout: asyncio.Timeout
    deadline: float
    meter: WorkMeter = field(default_factory=WorkMeter)
    is_cancelled: bool = False

    @property
    def remaining_seconds(self) -> float:
        return max(0.0, self.seconds - self.meter.seconds)


class ImageToPrompt(PromptSuggester, SideWork):
    """Suggests prompts for members' images. `request_scores` raises `NoWorkerAnswers` or ConnectionError."""

    def __init__(
        self,
        request_scores: RequestScores,
        load_image: LoadImage,
        catalog: ModelCatalog,
        effective_rules: Callable[[Member], Awaitable[EffectiveRules]],
        charge_work: ChargeWork,
    ) -> None:
        self._request_scores = request_scores
        self._load_image = load_image
        self._catalog = catalog
        self._effective_rules = effective_rules
        self._charge_work = charge_work
        # in order of arrival
        self._turn_lock = asyncio.Lock()
        self._waiting_members = dict[str, _Search]()

    async def suggest_prompts(
        self, image: bytes | RemoteFile, member: Member, model_name: str | None = None
    ) -> PromptSuggestions:
        """Suggest prompts for an image file or one at Discord; stores nothing of it. Raises `UserError`."""
        model_profile = self._find_model(model_name)
        seconds = await self._check_allowed(member, model_profile)
        timeout = asyncio.timeout(TIMEOUT_SECONDS)
        deadline = asyncio.get_running_loop().time() + TIMEOUT_SECONDS
        with self._reserve_place(member.id, _Search(seconds, timeout, deadline)) as search:
            try:
                async with timeout, self._charge_work(member, seconds) as search.meter:
                    decoded_image = await self._load_image(member, image)
                    thumbnail = await asyncio.to_thread(crop_square, decoded_image.png, model_profile.size)
                    prompt_search = PromptSearch(
                        self._request_scores, model_profile, thumbnail, search.meter, self._turn_lock
                    )
                    return PromptSuggestions(
                        model_profile.name,
                        *await prompt_search.find_prompts(choose_vocabulary(model_profile)),
                        decoded_image.notes,
                    )
            except TimeoutError as error:
                raise UserError(CANCELLED if search.is_cancelled else TIMED_OUT, 429) from error
            except (NoWorkerAnswers, ConnectionError) as error:
                raise UserError(shorten(str(error), 300)) from error

    async def list_prompts(self, picture: bytes, member: Member, model: str) -> list[str]:
        return [suggestion.prompt for suggestion in (await self.suggest_prompts(picture, member, model)).prompts]

    def cancel(self, member: str) -> str:
        search = self._waiting_members.get(member)
        if search is None or search.timeout.expired():
            return ""
        search.is_cancelled = True
        search.timeout.reschedule(asyncio.get_running_loop().time())
        return DESCRIPTION_CANCELLED

    def _find_model(self, name: str | None) -> ModelProfile:
        try:
            return self._catalog.find_entry(name or None).profile
        except KeyError as error:
            raise UserError(f"There is no model called {shorten(str(name), 64)} here.") from error

    async def _check_allowed(self, member: Member, model_profile: ModelProfile) -> float:
        """Return the estimated device-seconds. Raise `UserError` if the rules forbid it, or if it takes too long."""
        rules = await self._effective_rules(member)
        check_action(rules, "describe")
        check_allowed(rules, "models", model_profile.name)
        if (seconds := estimate_cost(model_profile, choose_vocabulary(model_profile))) > MAX_COST:
            raise UserError(TOO_SLOW.format(model=model_profile.name, time=format_duration(seconds)))
        return seconds

    @contextmanager
    def _reserve_place(self, member: str, search: _Search) -> Generator[_Search]:
        """Occupy a place, one for each member. Refuse a search beside which an earlier one would time out."""
        if member in self._waiting_members:
            raise UserError(ALREADY_RUNNING, 429)
        earlier = list(self._waiting_members.values())
        now = asyncio.get_running_loop().time()
        waiting_seconds = sum(other.remaining_seconds for other in earlier)
        first_deadline = min((other.deadline for other in earlier), default=math.inf)
        if len(earlier) >= MAX_MEMBERS or now + waiting_seconds + search.seconds > first_deadline:
            raise UserError(QUEUE_FULL.format(format_duration(waiting_seconds)), 429)
        self._waiting_members[member] = search
        try:
            yield search
        finally:
            del self._waiting_members[member]


def estimate_cost(model_profile: ModelProfile, words_to_score: Vocabulary) -> float:
    """Return the device-seconds by calibration: rows of the network, and texts to encode."""
    rows = 0
    earlier_draws = 0
    for candidates, draws in ROUNDS:
        rows += (candidates or len(words_to_score.subjects)) * (draws - earlier_draws)
        earlier_draws = draws
    parts = len(words_to_score.scenes) + len(words_to_score.slots)
    rows += words_to_score.addition_count * len(SLOT_DRAWS) + (2 * parts + MAX_PROMPTS) * len(FINAL_DRAWS)
    return (
        rows * model_profile.row_ms
        + (len(words_to_score.subjects) + words_to_score.addition_count) * model_profile.encode_ms
    ) / 1000.0


class PromptSearch:
    """The search for one image (a small PNG) with one model. `meter` counts the device-seconds, by calibration.

    `turn_lock`: its holder's request is with the workers; searches that share one take turns.
    """

    def __init__(
        self,
        request_scores: RequestScores,
        model_profile: ModelProfile,
        thumbnail: bytes,
        meter: WorkMeter | None = None,
        turn_lock: asyncio.Lock | None = None,
    ) -> None:
        self._request_scores = request_scores
        self._model_profile = model_profile
        self._thumbnail = thumbnail
        self._tally = PromptScores()
        self._meter = meter or WorkMeter()
        self._turn_lock = turn_lock or asyncio.Lock()

    async def find_prompts(self, known_words: Vocabulary) -> tuple[int, tuple[ScoredPrompt, ...]]:
        """Return how many texts were tried, and the prompts that beat an empty prompt, best first."""
        chosen_words: list[str] = []
        for slot in known_words.scenes:
            chosen_words += await self._choose_slot_word(EMPTY_TEXT, chosen_words, slot)
        subjects = await self._find_subjects(known_words.subjects, chosen_words)
        for slot in known_words.slots:
            chosen_words += await self._choose_slot_word(subjects[0], chosen_words, slot)
        chosen_words = await self._drop_needless_words(subjects[0], chosen_words)
        prompts = [build_prompt(subject, chosen_words) for subject in subjects]
        await self._score_texts(prompts, FINAL_DRAWS)
        best = [
            ScoredPrompt(text, self._tally.error_reduction(text, FINAL_DRAWS))
            for text in self._tally.best_texts(prompts, FINAL_DRAWS, MAX_PROMPTS)
        ]
        return self._tally.text_count, tuple(
            scored_prompt for scored_prompt in best if scored_prompt.error_reduction > 0
        )

    async def _find_subjects(self, candidates: Sequence[str], settings: Sequence[str]) -> list[str]:
        """Return the best subjects after several rounds."""
        remaining_texts = {build_prompt(subject, settings): subject for subject in candidates}
        earlier_draws = 0
        for limit, draws in ROUNDS:
            await self._score_texts(list(remaining_texts)[:limit], range(earlier_draws, draws))
            best_texts = self._tally.best_texts(
                list(remaining_texts)[:limit], range(draws), limit or len(remaining_texts)
            )
            remaining_texts = {text: remaining_texts[text] for text in best_texts}
            earlier_draws = draws
        return list(remaining_texts.values())[:MAX_PROMPTS]

    async def _choose_slot_word(self, subject: str, chosen_words: Sequence[str], slot: Sequence[str]) -> list[str]:
        """Return the word of a slot that fits best with `chosen_words`, or nothing if `chosen_words` alone fits better.

        If `chosen_words` is empty, it always chooses a word: the models know hardly any picture without a setting. With
        the right setting in the text, the search can tell subjects apart.
        """
        texts: dict[str, list[str]] = {build_prompt(subject, [*chosen_words, word]): [word] for word in slot}
        if without_word := build_prompt(subject, chosen_words):
            texts[without_word] = []
        await self._score_texts(texts, SLOT_DRAWS)
        (best,) = self._tally.best_texts(texts, SLOT_DRAWS, 1)
        return texts[best]

    async def _drop_needless_words(self, subject: str, chosen_words: Sequence[str]) -> list[str]:
        """Drop the words that do not clearly improve the score, checking the last one first."""
        words = list(chosen_words)
        for word in reversed(chosen_words):
            remaining_words = [other_word for other_word in words if other_word is not word]
            full_text = build_prompt(subject, words)
            reduced_text = build_prompt(subject, remaining_words)
            await self._score_texts([full_text, reduced_text], FINAL_DRAWS)
            words = words if self._tally.is_clearly_better(full_text, reduced_text, FINAL_DRAWS) else remaining_words
        return words

    async def _score_texts(self, texts: Iterable[str], draws: range) -> None:
        """Score each text with these noise draws, skipping scores that are known."""
        unscored_texts = self._tally.missing_texts(texts, draws)
        batch_size = _batch_size(self._model_profile, len(draws))
        for start in range(0, len(unscored_texts), batch_size):
            batch = unscored_texts[start : start + batch_size]
            request = DescribeRequest(
                model=self._model_profile.name,
                revision=self._model_profile.revision,
                picture=self._thumbnail,
                texts=tuple(batch),
                first=draws.start,
                draws=len(draws),
            )
            self._tally.add(batch, draws.start, await self._request_metered(request))

    async def _request_metered(self, request: DescribeRequest) -> Sequence[Sequence[float]]:
        """Count the request as it goes out: a worker finishes it, also where nobody waits for it any more."""
        profile = self._model_profile
        texts = len(request.texts)
        seconds = texts * (request.draws * profile.row_ms + profile.encode_ms) / 1000.0
        async with self._turn_lock:
            self._meter.seconds += seconds
            try:
                return await self._request_scores(request)
            except (NoWorkerAnswers, ConnectionError):
                self._meter.seconds -= seconds
                raise


def _batch_size(model_profile: ModelProfile, draws: int) -> int:
    """Return how many texts a request has, so that it does not occupy a worker for long."""
    return max(
        1, min(MAX_CANDIDATES, int(MAX_REQUEST_MS / (draws * model_profile.row_ms + model_profile.encode_ms + 1e-3)))
    )


@asynccontextmanager
async def open_service(app: App) -> AsyncGenerator[RunningFeature]:
    """Open the suggestions over the workers' models."""
    core = app.core
    services = app.services
    charges = WorkCharges(core.store, limits=core.settings.limits, clock=core.clock)
    yield RunningFeature(
        ImageToPrompt(
            core.bus.describe,
            services.get(InitImageLoader).load_upload,
            services.catalog,
            services.rule_admin.effective_rules,
            charges.charge,
        )
    )
