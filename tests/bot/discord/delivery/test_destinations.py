"""The store decides where a final card goes. After any failure the member still gets it, and gets it once."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.discord.cards import job_cards
from bot.discord.cards.job_cards import MAX_CONTENT, Card
from bot.discord.delivery import tracked_messages
from bot.discord.delivery.tracked_messages import NotifyPrefs
from bot.domain.dto import Delivery, DeliveryRole, Destination, JobView
from bot.domain.job_states import JobState
from engine.contract import Concept, Recipe

RECIPE = Recipe(
    concepts=(Concept(text="apple"),),
    model="embedded",
    sampler="ddpm",
    steps=20,
    seed=7,
    guidance=3.0,
    width=64,
    height=64,
    dtype="float32",
)
GUILD = {"guild": "1", "channel": "2", "user": "3"}


def make_view(state: JobState = "finished", seconds: float = 10.0, *, private: bool = False) -> JobView:
    return JobView(
        id="01ARZ3NDEKTSV4RRFFQ69G5FAV",
        state=state,
        prompt="apple",
        task=RECIPE,
        member_id="discord:3",
        member_name="alice",
        guild="discord:1",
        created=100.0,
        started=101.0,
        finished=100.0 + seconds,
        seconds=1.0,
        ms_per_step=1.0,
        jobs_ahead=None,
        eta=None,
        reason="",
        step=20,
        total_steps=20,
        pictures=(),
        ladder_images=(),
        parent_image=None,
        action="imagine",
        is_private=private,
    )


def make_answer(**fields: object) -> dict[DeliveryRole, Delivery]:
    return {"answer": replace(Delivery("answer", Destination("discord", dict(GUILD)), "9"), **fields)}


@pytest.mark.parametrize(
    ("view", "prefs", "deliveries", "expected_roles"),
    [
        (make_view(), NotifyPrefs(), make_answer(), []),
        (make_view(seconds=60), NotifyPrefs(), make_answer(), ["notice"]),
        (make_view("failed", 90), NotifyPrefs(), make_answer(), ["notice"]),
        (make_view("cancelled", 90), NotifyPrefs(direct_message=True), make_answer(), []),
        (make_view(seconds=90), NotifyPrefs(ping=False), make_answer(), []),
        (make_view(seconds=90), NotifyPrefs(long_seconds=100), make_answer(), []),
        (make_view(), NotifyPrefs(direct_message=True), make_answer(), ["direct"]),
        (make_view(seconds=90), NotifyPrefs(direct_message=True), make_answer(), ["notice", "direct"]),
        (make_view("failed"), NotifyPrefs(direct_message=True), make_answer(), []),
        (make_view(private=True), NotifyPrefs(), make_answer(), []),
        (make_view(seconds=90, private=True), NotifyPrefs(), make_answer(), ["direct"]),
        (make_view(), NotifyPrefs(), make_answer(reason="Gone."), ["direct"]),
        (make_view(seconds=90), NotifyPrefs(), make_answer(reason="Gone."), ["direct"]),
        (make_view("cancelled"), NotifyPrefs(), make_answer(reason="Gone."), []),
        (make_view(), NotifyPrefs(ping=False), make_answer(reason="Never came.", message=""), ["notice"]),
        (make_view(private=True), NotifyPrefs(), make_answer(reason="Never came.", message=""), ["direct"]),
        (
            make_view(),
            NotifyPrefs(direct_message=True),
            make_answer(destination=Destination("discord", {"channel": "2", "guild": ""})),
            [],
        ),
    ],
)
def test_lacking_names_the_deliveries_that_a_job_still_needs(
    view: JobView, prefs: NotifyPrefs, deliveries: dict[DeliveryRole, Delivery], expected_roles: list[DeliveryRole]
) -> None:
    assert tracked_messages.missing_roles(view, deliveries, prefs) == expected_roles


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["finished", "failed", "cancelled"]),
    st.sampled_from([1.0, 90.0]),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "9"]),
    st.lists(st.booleans(), min_size=8, max_size=8),
    st.booleans(),
)
def test_with_any_failures_delivery_ends_and_uses_each_role_once(
    state: JobState,
    seconds: float,
    private: bool,
    ping: bool,
    direct: bool,
    message: str,
    sends_succeed: list[bool],
    dm: bool,
) -> None:
    view = make_view(state, seconds, private=private)
    prefs = NotifyPrefs(ping, direct)
    deliveries = make_answer(message=message, destination=Destination("discord", {**GUILD, "guild": "" if dm else "1"}))
    send_outcomes = iter(sends_succeed)
    for _ in range(12):
        for role in tracked_messages.missing_roles(view, deliveries, prefs):
            assert role not in deliveries
            deliveries[role] = Delivery(role, Destination("discord", {}))
        role = tracked_messages.next_role(deliveries)
        if role is None:
            break
        if role == "answer" and (not message or not next(send_outcomes)):
            deliveries[role] = replace(deliveries[role], reason="Gone.")
        else:
            deliveries[role] = replace(
                deliveries[role], delivered_at=1.0, reason="" if role == "answer" or next(send_outcomes) else "Shut."
            )
    assert tracked_messages.next_role(deliveries) is None, "it comes to an end"
    if deliveries["answer"].reason and state != "cancelled":
        assert len(deliveries) > 1, "another destination was tried"
    if private:
        assert "notice" not in deliveries, "nothing about it in the channel"


def test_final_cards_fit_and_do_no_harm() -> None:
    full_card = Card("\n".join(["x" * 99] * 20))
    view = replace(make_view(), prompt="@everyone `x`" * 100, member_name="@here")
    for card in (
        job_cards.render_notice(full_card, "3"),
        job_cards.render_direct(full_card, "Its <#5> was deleted."),
        job_cards.with_full_size_link(full_card, "https://a.b/c"),
        job_cards.render_collapsed(view, "https://discord.com/channels/1/2/3"),
    ):
        assert len(card.content) <= MAX_CONTENT
        assert "@everyone" not in card.content
        assert "@here" not in card.content
        assert "<#5>" not in card.content
    assert job_cards.render_notice(full_card, "3").content.startswith("<@3>\n")
    assert job_cards.render_direct(full_card, "") is full_card
    assert (
        job_cards.message_link({"guild": "", "channel": "2", "message": "3"}) == "https://discord.com/channels/@me/2/3"
    )
    assert job_cards.message_link({"channel": "2"}) == ""


def test_a_collapsed_card_is_one_short_line() -> None:
    view = replace(make_view(), prompt="pear --seed 7", member_name="Alice")
    url = "https://discord.com/channels/1/2/3"
    assert job_cards.render_collapsed(view, url).content == f"✅ **pear** · Alice · [Done]({url})"
    assert job_cards.render_collapsed(replace(view, state="failed"), "").content == "❌ **pear** · Alice · It failed"
