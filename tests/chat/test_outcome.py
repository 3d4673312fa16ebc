"""Where a final card goes, decided by the store: whatever fails, somebody hears of it, and nobody twice."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.chat import notices
from bot.chat.post import outcome
from bot.chat.post.outcome import Wishes
from bot.chat.presenter import CONTENT, Card
from bot.states import State
from bot.views import Delivery, Place, Role, View
from engine.job import Concept, Recipe

RECIPE = Recipe(
    concepts=(Concept(text="apple"),), model="embedded", sampler="ddpm", steps=20, seed=7, guidance=3.0, width=64,
    height=64, dtype="float32",
)  # fmt: skip
GUILD = {"guild": "1", "channel": "2", "user": "3"}


def make_view(state: State = "finished", seconds: float = 10.0, *, private: bool = False) -> View:
    return View(
        id="01ARZ3NDEKTSV4RRFFQ69G5FAV", state=state, prompt="apple", recipe=RECIPE, member_id="discord:3",
        member_name="alice", guild="discord:1", created=100.0, started=101.0, finished=100.0 + seconds, seconds=1.0,
        ms_per_step=1.0, ahead=None, eta=None, reason="", step=20, of=20, pictures=(), ladders=(), parent=None,
        action="imagine", private=private,
    )  # fmt: skip


def make_answer(**known: object) -> dict[Role, Delivery]:
    return {"answer": replace(Delivery("answer", Place("discord", dict(GUILD)), "9"), **known)}  # pyright: ignore


@pytest.mark.parametrize(
    ("view", "wishes", "known", "further"),
    [
        (make_view(), Wishes(), make_answer(), []),
        (make_view(seconds=60), Wishes(), make_answer(), ["notice"]),
        (make_view("failed", 90), Wishes(), make_answer(), ["notice"]),
        (make_view("cancelled", 90), Wishes(direct=True), make_answer(), []),
        (make_view(seconds=90), Wishes(ping=False), make_answer(), []),
        (make_view(seconds=90), Wishes(long=100), make_answer(), []),
        (make_view(), Wishes(direct=True), make_answer(), ["direct"]),
        (make_view(seconds=90), Wishes(direct=True), make_answer(), ["notice", "direct"]),
        (make_view("failed"), Wishes(direct=True), make_answer(), []),
        (make_view(private=True), Wishes(), make_answer(), []),
        (make_view(seconds=90, private=True), Wishes(), make_answer(), ["direct"]),
        (make_view(), Wishes(), make_answer(reason="Gone."), ["direct"]),
        (make_view(seconds=90), Wishes(), make_answer(reason="Gone."), ["direct"]),
        (make_view("cancelled"), Wishes(), make_answer(reason="Gone."), []),
        (make_view(), Wishes(ping=False), make_answer(reason="Never came.", message=""), ["notice"]),
        (make_view(private=True), Wishes(), make_answer(reason="Never came.", message=""), ["direct"]),
        (make_view(), Wishes(direct=True), make_answer(place=Place("discord", {"channel": "2", "guild": ""})), []),
    ],
)
def test_lacking_names_the_deliveries_that_a_job_still_needs(
    view: View, wishes: Wishes, known: dict[Role, Delivery], further: list[Role]
) -> None:
    assert outcome.lacking(view, known, wishes) == further


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(["finished", "failed", "cancelled"]), st.sampled_from([1.0, 90.0]), st.booleans(), st.booleans(),
    st.booleans(), st.sampled_from(["", "9"]), st.lists(st.booleans(), min_size=8, max_size=8), st.booleans(),
)  # fmt: skip
def test_with_any_failures_delivery_ends_and_uses_each_role_once(
    state: State, seconds: float, private: bool, ping: bool, direct: bool, message: str, works: list[bool], dm: bool
) -> None:
    view, wishes = make_view(state, seconds, private=private), Wishes(ping, direct)
    known = make_answer(message=message, place=Place("discord", {**GUILD, "guild": "" if dm else "1"}))
    luck = iter(works)
    for _ in range(12):
        for role in outcome.lacking(view, known, wishes):
            assert role not in known
            known[role] = Delivery(role, Place("discord", {}))
        role = outcome.due(known)
        if role is None:
            break
        if role == "answer" and (not message or not next(luck)):
            known[role] = replace(known[role], reason="Gone.")
        else:
            known[role] = replace(known[role], delivered=1.0, reason="" if role == "answer" or next(luck) else "Shut.")
    assert outcome.due(known) is None, "it comes to an end"
    if known["answer"].reason and state != "cancelled":
        assert len(known) > 1, "another destination was tried"
    if private:
        assert "notice" not in known, "nothing about it in the channel"


def test_final_cards_fit_and_do_no_harm() -> None:
    full = Card("\n".join(["x" * 99] * 20))
    view = replace(make_view(), prompt="@everyone `x`" * 100, member_name="@here")
    for card in (
        notices.notice(full, "3"),
        notices.elsewhere(full, "Its <#5> was deleted."),
        notices.linked(full, "https://a.b/c"),
        notices.collapsed(view, "https://discord.com/channels/1/2/3"),
    ):
        assert len(card.content) <= CONTENT
        assert "@everyone" not in card.content
        assert "@here" not in card.content
        assert "<#5>" not in card.content
    assert notices.notice(full, "3").content.startswith("<@3>\n")
    assert notices.elsewhere(full, "") is full
    assert notices.link({"guild": "", "channel": "2", "message": "3"}) == "https://discord.com/channels/@me/2/3"
    assert notices.link({"channel": "2"}) == ""


def test_a_collapsed_card_is_one_short_line() -> None:
    view = replace(make_view(), prompt="pear --seed 7", member_name="Alice")
    at = "https://discord.com/channels/1/2/3"
    assert notices.collapsed(view, at).content == f"✅ **pear** · Alice · [Done]({at})"
    assert notices.collapsed(replace(view, state="failed"), "").content == "❌ **pear** · Alice · It failed"
