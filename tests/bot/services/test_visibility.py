"""A job is public again only if today's word filter lets all its texts pass, with one budget and on its own thread."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any, cast

import pytest
from msgspec.structs import replace

from bot.domain.dto import JobView, Member
from bot.jobs.word_filter import MAX_REQUESTS, WordFilter
from bot.policy.limits import Limits
from bot.policy.rules import EffectiveRules
from bot.services.moderation.visibility import can_publish
from bot.store import Store
from engine.contract import Concept
from shared.sample_views import make_recipe, make_view

pytestmark = pytest.mark.asyncio
ALICE = Member("discord:1", "Alice", "discord:2")
TANGLED_WORDS = tuple(
    format(number * 2_654_435_761 % 2**60, "060b").replace("0", "i").replace("1", "l") for number in range(500)
)


def make_filter(thread: Executor) -> WordFilter:
    return WordFilter(cast(Store, None), thread, limits=Limits())


async def can_show(view: JobView, **rules: tuple[str, ...]) -> bool:
    with ThreadPoolExecutor(1) as thread:
        return await can_publish(view, ALICE, EffectiveRules(**cast(Any, rules)), make_filter(thread))


async def test_a_forbidden_word_in_any_text_of_the_job_hides_it() -> None:
    view = make_view(task=replace(make_recipe(), negative="gore"))
    assert await can_show(view, words=("pear",))
    for word in ("looking", "terrier", "gore"):
        assert not await can_show(view, words=(word,)), word
    assert not await can_show(view, patterns=("go+re",))


async def test_all_texts_of_a_job_share_one_budget() -> None:
    text = "1" * 35
    assert await can_show(make_view(prompt=text), words=TANGLED_WORDS)
    view = make_view(prompt=text, task=replace(make_recipe(), concepts=(Concept("1" * 34),)))
    assert not await can_show(view, words=TANGLED_WORDS)


async def test_the_filters_thread_matches_and_takes_only_a_few_requests_of_a_member() -> None:
    class StuckThread(Executor):
        submitted = 0

        def submit(self, *_: Any, **__: Any) -> Future[Any]:
            self.submitted += 1
            return Future()

    thread = StuckThread()
    word_filter = make_filter(thread)
    rules = EffectiveRules(words=("pear",))
    view = make_view()
    tasks = [asyncio.ensure_future(can_publish(view, ALICE, rules, word_filter)) for _ in range(MAX_REQUESTS + 1)]
    done, pending = await asyncio.wait(tasks, timeout=0.1)
    assert (thread.submitted, len(pending)) == (MAX_REQUESTS, MAX_REQUESTS)
    assert [task.result() for task in done] == [False]
    for task in pending:
        task.cancel()
