"""Cards: each within Discord's limits, and nothing in it that a member could abuse."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import get_args

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.discord.cards import job_cards
from bot.discord.cards.job_cards import Card
from bot.domain.dto import AcceptedJob, JobAction, PictureRef
from bot.domain.steering import AmendmentState, AmendmentView
from engine.contract import Interpolation, Recipe, UpscaleTask
from shared.sample_views import JOB, NOW, PARENT, make_view


def make_ticket(**changes: object) -> AcceptedJob:
    accepted = AcceptedJob(
        job=JOB,
        jobs_ahead=2,
        eta=90.0,
        has_worker=True,
        notes=(),
        prompt="terrier",
        steps=1000,
        evaluations=100,
        sampler="ddpm",
        seed=7,
        count=4,
        cost=10.0,
    )
    return replace(accepted, **changes)


def make_amendment(number: int, text: str, name: str = "Bob", state: AmendmentState = "made") -> AmendmentView:
    step = 210 + number if state == "made" else None
    reason = text if state == "refused" else ""
    return AmendmentView(number, state, step, 1000, reason, "discord:2", name, text, NOW, "words")


def render_cards(prompt: str, name: str, note: str) -> list[Card]:
    view = make_view(prompt=prompt, member_name=name, notes=(note, note), reason=note)
    return [
        job_cards.render_accepted(make_ticket(prompt=prompt, notes=(note,)), name, NOW),
        job_cards.render_waiting(view, 3, 20.0, NOW),
        job_cards.render_loading(view, prompt[:64], 0.4),
        job_cards.render_progress(view, 3, 1000, 20.0, NOW),
        job_cards.render_progress(
            view,
            3,
            1000,
            20.0,
            NOW,
            is_steerable=True,
            amendments=[
                make_amendment(number, note, name, state) for number, state in enumerate(get_args(AmendmentState), 1)
            ],
        ),
        job_cards.render_ended(view),
        job_cards.render_ended(replace(view, state="failed")),
        job_cards.render_ended(replace(view, state="cancelled")),
        job_cards.note_too_large(job_cards.render_ended(view)),
        job_cards.note_missing(job_cards.render_ended(view)),
    ]


words = st.text(max_size=2000) | st.text(alphabet="@everyone<>&#`*_~|\\[]()/:t123 \n\u200b\u202e", max_size=2000)


@settings(max_examples=100, deadline=None)
@given(words, words, words)
def test_every_card_fits_and_text_from_members_does_no_harm(prompt: str, name: str, note: str) -> None:
    for card in render_cards(prompt, name[:100], note):
        assert 0 < len(card.content) <= job_cards.MAX_CONTENT
        assert len(card.alt) <= job_cards.MAX_ALT
        assert "@everyone" not in card.content
        assert "@here" not in card.content
        assert not re.search(r"(?<!\\)<(?!t:\d+:R>)", card.content), "only our own timestamps have angle brackets"
        ids = [button.custom_id for row in card.rows for button in row]
        assert len(ids) == len(set(ids))
        assert all(len(each) <= 100 for each in ids)
        assert len(card.rows) <= 5
        assert all(len(row) <= 5 for row in card.rows)


def test_the_first_answer_names_the_queue_place_and_the_eta() -> None:
    card = job_cards.render_accepted(make_ticket(), "Alice", NOW)
    assert "2 jobs ahead of it" in card.content
    assert f"<t:{round(NOW + 90)}:R>" in card.content
    assert [button.custom_id for row in card.rows for button in row] == [f"cancel:{JOB}"]


def test_the_first_answer_says_that_no_worker_is_online() -> None:
    card = job_cards.render_accepted(make_ticket(has_worker=False, eta=None), "Alice", NOW)
    assert "No worker is online" in card.content
    assert "starts when one comes" in card.content


def test_a_running_job_shows_percent_and_a_live_timestamp() -> None:
    card = job_cards.render_progress(make_view(state="running"), 420, 1000, 33.0, NOW)
    assert "42 %" in card.content
    assert "step 420 of 1000" in card.content
    assert f"<t:{round(NOW + 33)}:R>" in card.content


def test_a_finished_job_shows_its_recipe() -> None:
    card = job_cards.render_ended(make_view())
    assert "seed 7" in card.content
    assert card.alt == "terrier, looking up"


def test_a_part_of_an_interpolation_without_pictures_points_to_the_film() -> None:
    view = make_view(state="failed", reason="No memory left.")
    assert isinstance(view.task, Recipe)
    part = replace(view, task=msgspec.structs.replace(view.task, interpolation=Interpolation("a cat", 8, 12)))
    for state in ("failed", "cancelled"):
        assert "`/film kind: interpolation` shows them" in job_cards.render_ended(replace(part, state=state)).content
    assert "/film" not in job_cards.render_ended(view).content


def test_a_title_has_no_flags_and_a_hint_appears_once() -> None:
    notes = ("20 steps on this machine; --steps 1000 runs all steps.", "The braces make 2 jobs.")
    prompt = "terrier --v 6 --seed 7"
    first = job_cards.render_accepted(make_ticket(prompt=prompt, notes=notes), "Alice", NOW).content
    assert "runs all steps" in first
    view = make_view(prompt=prompt, notes=notes)
    for card in (first, job_cards.render_waiting(view, 1, 2.0, NOW).content, job_cards.render_ended(view).content):
        assert card.startswith("**terrier** · Alice\n")
        assert "2 jobs" in card
    later_views = (
        job_cards.render_waiting(view, 1, 2.0, NOW),
        job_cards.render_progress(view, 1, 9, 2.0, NOW),
        job_cards.render_ended(view),
    )
    assert not any("runs all steps" in card.content for card in later_views)
    assert "seed 7" in job_cards.render_ended(view).content


def test_a_card_says_where_its_job_comes_from() -> None:
    endings: dict[JobAction, str] = {
        "imagine": "· Alice",
        "reroll": "· Alice · another seed",
        "vary": "· Alice · variation of 3",
        "remix": "· Alice · remixed",
        "reproduce": "· Alice · made once more",
        "upscale": "· Alice · picture 3",
    }
    for action, title in endings.items():
        head = job_cards.render_ended(make_view(action=action, parent_image=(PARENT, 2))).content.split("\n")[0]
        assert head.endswith(title)


def test_an_upscale_names_its_method() -> None:
    view = make_view(
        task=UpscaleTask(source="0" * 64),
        action="upscale",
        parent_image=(PARENT, 2),
        pictures=(PictureRef(0, "0" * 64, 256, 256),),
    )
    card = job_cards.render_ended(view)
    assert "nlarged ×4" in card.content
    assert "by Lanczos" in card.content
    super_resolved = job_cards.render_ended(replace(view, task=UpscaleTask(source="0" * 64, method="gan")))
    assert "by our super-resolver" in super_resolved.content


def test_upscaled_finals_say_so_beside_the_size_of_their_recipe() -> None:
    pictures = tuple(PictureRef(index, "0" * 64, 256, 256) for index in range(4))
    assert "256×256, drawn at 64×64" in job_cards.render_ended(make_view(pictures=pictures)).content
    assert "enlarged" not in job_cards.render_ended(make_view()).content


def test_the_queue_gives_reasons_and_never_overflows() -> None:
    assert "starts at once" in job_cards.render_queue([], NOW)
    running_view = make_view(state="running", step=500, eta=10.0)
    waiting_view = make_view(
        state="queued", jobs_ahead=1, eta=50.0, wait_reason="Bob has had less of the machine today"
    )
    text = job_cards.render_queue([running_view, waiting_view], NOW)
    assert "50 %" in text
    assert "Bob has had less" in text
    assert f"<t:{round(NOW + 50)}:R>" in text
    long_queue_card = job_cards.render_queue([replace(waiting_view, prompt="*" * 500, wait_reason="_" * 500)] * 40, NOW)
    assert len(long_queue_card) <= job_cards.MAX_CONTENT
    assert re.search(r"… and \d+ jobs more\.$", long_queue_card)


def test_a_refusal_quotes_the_member_without_harm() -> None:
    content = job_cards.render_refusal("There is no --weird; did you mean @everyone?")
    assert "@everyone" not in content
    assert len(job_cards.render_refusal("*" * 5000)) <= job_cards.MAX_CONTENT


def test_a_waiting_card_shows_which_model_loads_and_how_far() -> None:
    card = job_cards.render_loading(make_view(), "sd-1.5", 0.404)
    assert card.content.splitlines()[1] == "⏳ loading sd-1.5, 40 %"
    card = job_cards.render_loading(make_view(), "sd15", 0.6, 2 * 10**9)
    assert card.content.splitlines()[1] == "⏳ loading sd15, 1.2 of 2.0 GB"
    sentence = "A worker is starting: loading sd15, 1.2 of 2.0 GB."
    card = job_cards.render_waiting(replace(make_view(), has_worker=False, startup_notice=sentence), 0, None, 0.0)
    assert card.content.splitlines()[1] == f"⏳ {sentence}"
    assert [button.kind for row in card.rows for button in row] == ["cancel"]


def test_a_developing_picture_shows_the_newest_words_and_who_said_them() -> None:
    amendments = [make_amendment(number, f"words {number}") for number in range(1, 6)]
    amendments.append(make_amendment(6, "**blue** @here", "_Ann_", "waiting"))
    card = job_cards.render_progress(make_view(state="running"), 250, 1000, 9.0, NOW, amendments=amendments)
    said = [line for line in card.content.splitlines() if line.startswith("💬")]
    assert said == [
        "💬 **Bob**: words 4 · from step 214",
        "💬 **Bob**: words 5 · from step 215",
        "💬 **\\_Ann\\_**: \\*\\*blue\\*\\* @\u200bhere · soon",
    ]
    assert [button.kind for row in card.rows for button in row] == ["cancel"]
