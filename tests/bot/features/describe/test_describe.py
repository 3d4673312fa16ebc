"""Image-to-prompt: the search through the word list, the answer, and the limit of requests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import groupby
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from msgspec.structs import replace as changed
from PIL import Image

from bot.domain.dto import Member
from bot.domain.errors import UserError
from bot.features.describe.rules import (
    EMBEDDED_VOCABULARY,
    EMPTY_TEXT,
    GENERAL_VOCABULARY,
    PromptScores,
    build_prompt,
    choose_vocabulary,
)
from bot.features.describe.service import (
    MAX_COST,
    MAX_MEMBERS,
    ImageToPrompt,
    PromptSearch,
    PromptSuggestions,
    ScoredPrompt,
    estimate_cost,
)
from bot.jobs.costs import WorkMeter
from bot.jobs.init_images import RemoteFile
from bot.jobs.model_catalog import SHIPPED_MODEL
from bot.pictures.image_codec import THUMBNAIL_SIDE, crop_square, png_size
from bot.pictures.uploads.upload_decoder import DecodedImage, UploadDecoder
from bot.policy.limits import Limits
from bot.policy.rules import Rule, resolve
from engine.bus import NoWorkerAnswers
from engine.contract import MAX_CANDIDATES, MAX_FRAME_BYTES, MAX_NOISINGS, DescribeRequest, ModelProfile
from shared.fake_describer import FakeDescriber
from shared.picture_files import encode_picture

ANN = Member("discord:1", "Ann", "discord:9")
BOB = Member("discord:2", "Bob", "discord:9")

CHARGED: list[tuple[str, float, float]] = []  # by each search: member, estimate, what it took


def make_noise(width: int = 80, height: int = 60) -> bytes:
    return encode_picture(Image.effect_noise((width, height), 100).convert("RGB"))


@pytest_asyncio.fixture
async def upload_decoder() -> AsyncIterator[UploadDecoder]:
    decoder = UploadDecoder()
    yield decoder
    await decoder.close()


def make_service(
    send_request: Any,
    upload_decoder: UploadDecoder,
    *,
    profile: ModelProfile = SHIPPED_MODEL,
    rules: tuple[Rule, ...] = (),
) -> ImageToPrompt:
    async def terms(member: Member) -> Any:
        return resolve(rules, member, Limits())

    models: Any = SimpleNamespace(
        find_entry=lambda name: SimpleNamespace(profile={None: profile, profile.name: profile}[name])
    )

    async def read(_member: Member, source: bytes | RemoteFile) -> DecodedImage:
        assert isinstance(source, bytes)
        return await upload_decoder.decode_picture(source)

    @asynccontextmanager
    async def charge(member: Member, estimate: float) -> AsyncIterator[WorkMeter]:
        meter = WorkMeter()
        try:
            yield meter
        finally:
            CHARGED.append((member.id, estimate, meter.seconds))

    return ImageToPrompt(send_request, read, models, terms, charge)


def rule(setting: str, value: Any) -> Rule:
    return Rule("guild", "", setting, value, guild="discord:9")


def test_the_embedded_model_knows_every_word_of_its_list() -> None:
    words = json.loads((Path(__file__).parents[4] / "engine/weights/words.json").read_text())["words"]
    assert set(EMBEDDED_VOCABULARY.subjects) <= set(words)
    for each in (EMBEDDED_VOCABULARY, GENERAL_VOCABULARY):
        assert len(set(each.subjects)) == len(each.subjects)
        assert all(one.count("{}") == 1 for slot in (*each.scenes, *each.slots) for one in slot)
    assert choose_vocabulary(SHIPPED_MODEL) is EMBEDDED_VOCABULARY
    assert choose_vocabulary(changed(SHIPPED_MODEL, size=512, tokens=75)) is GENERAL_VOCABULARY


def test_extra_words_surround_the_subject_or_stand_alone() -> None:
    extra_templates = ["{}, blue background", "red {}"]
    assert build_prompt("fox", extra_templates) == "red fox, blue background"
    assert build_prompt("", extra_templates[:1]) == "blue background"
    assert build_prompt("fox", []) == "fox"


def test_errors_are_relative_to_the_error_of_an_empty_prompt() -> None:
    tally = PromptScores()
    tally.add([EMPTY_TEXT, "fox", "cat"], 0, [[1.0, 10.0], [0.5, 5.0], [0.9, 11.0]])
    assert tally.error_reduction("fox", range(2)) == pytest.approx(0.5)
    assert tally.best_texts(["cat", "fox", "cat"], range(2), 5) == ["fox", "cat"]
    assert tally.is_clearly_better("fox", EMPTY_TEXT, range(2))
    assert not tally.is_clearly_better("cat", EMPTY_TEXT, range(2)), "better at one draw, worse at the other"
    assert tally.text_count == 2
    assert tally.missing_texts(["fox", "dog", "dog"], range(2)) == ["dog"]
    assert tally.missing_texts(["fox"], range(1, 3)) == [EMPTY_TEXT, "fox"]


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("fits", "expected_prompts"),
    [
        (("fox", "blue background"), "fox, blue background"),
        (("octopus", "purple octopus", "3d render"), "purple octopus, 3d render"),
        (("teddy bear",), "teddy bear"),
    ],
)
async def test_the_search_finds_words_from_coarse_to_fine(fits: tuple[str, ...], expected_prompts: str) -> None:
    describer = FakeDescriber(*fits)
    tried_texts, best_prompts = await PromptSearch(describer.errors, SHIPPED_MODEL, make_noise(64, 64)).find_prompts(
        EMBEDDED_VOCABULARY
    )
    assert best_prompts[0].prompt == expected_prompts
    assert (
        best_prompts[0].error_reduction
        == max(one.error_reduction for one in best_prompts)
        == pytest.approx(0.2 * len(fits))
    )
    texts = {text for request in describer.requests for text in request.texts} - {EMPTY_TEXT}
    assert tried_texts == len(texts)
    rows = sum(len(request.texts) * request.draws for request in describer.requests)
    assert rows * SHIPPED_MODEL.row_ms / 1000 <= 1.3 * estimate_cost(SHIPPED_MODEL, EMBEDDED_VOCABULARY) < MAX_COST
    assert all(len(request.texts) <= MAX_CANDIDATES and request.draws <= MAX_NOISINGS for request in describer.requests)


@pytest.mark.asyncio
async def test_no_words_are_suggested_if_none_help() -> None:
    _, best_prompts = await PromptSearch(FakeDescriber().errors, SHIPPED_MODEL, make_noise(64, 64)).find_prompts(
        EMBEDDED_VOCABULARY
    )
    assert best_prompts == ()
    sentence = PromptSuggestions("embedded", 341, best_prompts).sentence
    assert sentence.startswith("None of 341 candidate texts lets embedded denoise this image better")
    assert sentence.endswith("no captioning model is used.")
    assert PromptSuggestions("embedded", 341, (ScoredPrompt("fox", 0.5),)).sentence.startswith(
        "Of 341 candidate texts, these let embedded denoise the image best."
    )


@pytest.mark.asyncio
async def test_the_image_is_sent_small_and_square_and_the_answer_names_the_model(upload_decoder: UploadDecoder) -> None:
    describer = FakeDescriber("fox")
    suggestions = await make_service(describer.errors, upload_decoder).suggest_prompts(make_noise(300, 200), ANN)
    assert (suggestions.model, suggestions.prompts[0].prompt) == ("embedded", "fox")
    assert {png_size(one.picture) for one in describer.requests} == {(64, 64)}
    assert png_size(crop_square(make_noise(2000, 900), 1024)) == (THUMBNAIL_SIDE, THUMBNAIL_SIDE)
    assert len(crop_square(make_noise(600, 600), 1024)) <= MAX_FRAME_BYTES


@pytest.mark.asyncio
async def test_each_member_has_one_request_at_a_time_and_the_queue_is_short(upload_decoder: UploadDecoder) -> None:
    answer_gate = asyncio.Event()
    describer = FakeDescriber("fox")

    async def answer_when_open(request: DescribeRequest) -> Any:
        await answer_gate.wait()
        return await describer.errors(request)

    service = make_service(answer_when_open, upload_decoder)
    members = [Member(f"discord:{number}", "Ann", "discord:9") for number in range(MAX_MEMBERS)]
    tasks = [asyncio.create_task(service.suggest_prompts(make_noise(), one)) for one in members]
    await asyncio.sleep(0)
    while len(service._waiting_members) < MAX_MEMBERS:
        await asyncio.sleep(0.01)
    with pytest.raises(UserError, match="A picture of yours"):
        await service.suggest_prompts(make_noise(), members[0])
    with pytest.raises(UserError, match="Others are having") as error:
        await service.suggest_prompts(make_noise(), Member("discord:99", "Zoe", "discord:9"))
    assert error.value.status == 429
    answer_gate.set()
    assert [one.prompts[0].prompt for one in await asyncio.gather(*tasks)] == ["fox"] * MAX_MEMBERS
    assert (await service.suggest_prompts(make_noise(), members[0])).prompts[0].prompt == "fox"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("rules", "reason"),
    [
        ((rule("commands", ("imagine",)),), "You may not use describe here"),
        ((rule("models", ("sdxl",)),), "The model embedded is not allowed here"),
        ((rule("closed", "we pause"),), "we pause"),
        ((Rule("user", "discord:1", "blocked", True, guild="discord:9"),), "You are blocked"),
    ],
)
async def test_rules_hold_for_image_to_prompt(
    rules: tuple[Rule, ...], reason: str, upload_decoder: UploadDecoder
) -> None:
    describer = FakeDescriber("fox")
    with pytest.raises(UserError, match=reason):
        await make_service(describer.errors, upload_decoder, rules=rules).suggest_prompts(make_noise(), ANN)
    assert not describer.requests


@pytest.mark.asyncio
async def test_every_failure_is_a_sentence(upload_decoder: UploadDecoder) -> None:
    async def raise_no_worker(request: DescribeRequest) -> Any:
        raise NoWorkerAnswers("No worker that is online has embedded in memory: draw something with it first.")

    with pytest.raises(UserError, match="No worker that is online"):
        await make_service(raise_no_worker, upload_decoder).suggest_prompts(make_noise(), ANN)
    with pytest.raises(UserError, match="has a format that is not supported"):
        await make_service(raise_no_worker, upload_decoder).suggest_prompts(b"no picture at all", ANN)
    with pytest.raises(UserError, match="There is no model called sdxl"):
        await make_service(raise_no_worker, upload_decoder).suggest_prompts(make_noise(), ANN, "sdxl")
    slow_model = changed(SHIPPED_MODEL, row_ms=2000.0)
    with pytest.raises(UserError, match="would take about"):
        await make_service(raise_no_worker, upload_decoder, profile=slow_model).suggest_prompts(make_noise(), BOB)


@pytest.mark.asyncio
async def test_a_search_is_charged_what_it_ran(upload_decoder: UploadDecoder) -> None:
    CHARGED.clear()
    describer = FakeDescriber("fox")
    await make_service(describer.errors, upload_decoder).suggest_prompts(make_noise(), ANN)
    ran = sum(
        len(request.texts) * (request.draws * SHIPPED_MODEL.row_ms + SHIPPED_MODEL.encode_ms) / 1000
        for request in describer.requests
    )
    assert [(ANN.id, estimate_cost(SHIPPED_MODEL, EMBEDDED_VOCABULARY), pytest.approx(ran))] == CHARGED

    async def raise_no_worker(request: DescribeRequest) -> Any:
        raise NoWorkerAnswers("No worker that is online has embedded in memory: draw something with it first.")

    with pytest.raises(UserError, match="No worker"):
        await make_service(raise_no_worker, upload_decoder).suggest_prompts(make_noise(), ANN)
    assert CHARGED[1:] == [(ANN.id, estimate_cost(SHIPPED_MODEL, EMBEDDED_VOCABULARY), 0.0)]


@pytest.mark.asyncio
async def test_a_search_can_be_cancelled_and_frees_its_place(upload_decoder: UploadDecoder) -> None:
    CHARGED.clear()
    describer = FakeDescriber("fox")
    started = asyncio.Event()
    answer_gate = asyncio.Event()

    async def answer_when_open(request: DescribeRequest) -> Any:
        started.set()
        await answer_gate.wait()
        return await describer.errors(request)

    service = make_service(answer_when_open, upload_decoder)
    assert not service.cancel(ANN.id)
    task = asyncio.create_task(service.suggest_prompts(make_noise(), ANN))
    await started.wait()
    assert not service.cancel(BOB.id)
    assert service.cancel(ANN.id)
    with pytest.raises(UserError, match="Cancelled: only what ran was charged"):
        await task
    assert CHARGED[0][2] > 0, "the worker finishes the request that it has"
    answer_gate.set()
    assert (await service.suggest_prompts(make_noise(), ANN)).prompts


@pytest.mark.asyncio
async def test_the_line_is_no_longer_than_anybody_waits(upload_decoder: UploadDecoder) -> None:
    """Four members with a slow model held the line for minutes, and those behind them waited only to time out."""
    gate = asyncio.Event()

    async def wait(request: DescribeRequest) -> Any:
        await gate.wait()
        raise NoWorkerAnswers("gone")

    factor = 100.0 / estimate_cost(SHIPPED_MODEL, EMBEDDED_VOCABULARY)
    slow = changed(SHIPPED_MODEL, row_ms=SHIPPED_MODEL.row_ms * factor, encode_ms=SHIPPED_MODEL.encode_ms * factor)
    service = make_service(wait, upload_decoder, profile=slow)
    tasks = [asyncio.create_task(service.suggest_prompts(make_noise(), member)) for member in (ANN, BOB)]
    while len(service._waiting_members) < 2:
        await asyncio.sleep(0.01)
    with pytest.raises(
        UserError, match=r"Others are having pictures described just now: try again in about 3 min( \d+ s)?\."
    ):
        await service.suggest_prompts(make_noise(), Member("discord:3", "Cleo", "discord:9"))
    gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)


@pytest.mark.asyncio
async def test_searches_take_turns(upload_decoder: UploadDecoder) -> None:
    """A search that came second waited for the first to end."""
    describer = FakeDescriber("fox")
    pictures: list[bytes] = []

    async def answer(request: DescribeRequest) -> Any:
        while not pictures and not service._turn_lock._waiters:
            await asyncio.sleep(0.01)  # until the other search waits for its first turn
        pictures.append(request.picture)
        return await describer.errors(request)

    service = make_service(answer, upload_decoder)
    tasks = [
        asyncio.create_task(service.suggest_prompts(make_noise(side, side), member))
        for side, member in ((60, ANN), (61, BOB))
    ]
    await asyncio.gather(*tasks)
    turns = [picture for picture, _ in groupby(pictures)]
    assert len(set(turns)) == 2
    assert len(turns) > 10
