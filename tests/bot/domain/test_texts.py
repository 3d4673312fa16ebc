"""Shared sentences. A member's text cannot ping, format, link or hide anything when the bot repeats it."""

from __future__ import annotations

import re
import unicodedata

import discord
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from bot.domain.texts import (
    clean_text,
    escape_discord,
    format_cancellation,
    format_cost,
    format_duration,
    format_footer,
    format_queue_place,
    format_startup,
    percent_done,
    progress_bar,
    shorten,
)
from engine.contract import Concept, ModelProgress, Recipe

quick = settings(deadline=None, max_examples=300)
SIGNS = ["**", "_", "~~", "||", "`", "[a](b)", "# ", "- ", "1. ", "> ", "\n", "\\", "\u200b", "\u202e", " fox ", "é"]
hostile = st.lists(
    st.sampled_from(
        [
            "@everyone",
            "@here",
            "<@1>",
            "<@&2>",
            "<#3>",
            "<t:1:R>",
            "</imagine:4>",
            "https://x.y/z",
            "discord.gg/a",
            *SIGNS,
        ]
    ),
    max_size=30,
).map("".join)


def remove_escapes(escaped: str) -> str:
    """Returns the text as a reader sees it, without escapes."""
    return re.sub(r"\\([^A-Za-z0-9\s])", r"\1", escaped).replace("@\u200b", "@")


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "1 s"), (0.4, "1 s"), (59.2, "1 min"), (80, "1 min 20 s"), (3599.5, "1 h"), (7300, "2 h 2 min")],
)
def test_durations_read_well(seconds: float, words: str) -> None:
    assert format_duration(seconds) == words


@quick
@given(st.floats(0, 1e9))
def test_a_duration_is_never_shorter_than_the_real_time(seconds: float) -> None:
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    parts = format_duration(seconds).split()
    assert sum(int(number) * units[unit] for number, unit in zip(parts[::2], parts[1::2], strict=True)) >= seconds


def test_queue_places_costs_and_progress_are_worded() -> None:
    assert format_queue_place(0, None) == "Next in line."
    assert format_queue_place(1, 80) == "1 job ahead of it, done in about 1 min 20 s."
    assert format_queue_place(3, None) == "3 jobs ahead of it."
    assert (
        format_queue_place(3, 10, has_worker=False, startup_notice="A worker is starting.") == "A worker is starting."
    )
    assert (
        format_queue_place(3, 10, startup_notice="A worker is starting.") == "3 jobs ahead of it, done in about 10 s."
    )
    assert (
        format_queue_place(3, 10, has_worker=False) == "No worker is online. The job waits, and starts when one comes."
    )
    assert format_cost(4, 119.2) == "4 jobs, about 2 min of device time in all."
    assert format_cost(1, 30.0) == "1 job, about 30 s of device time."
    assert (percent_done(999, 1000), percent_done(0, 0), percent_done(5, 4)) == (99, 0, 100)
    assert format_cancellation(0, 1000) == "Cancelled before it began: it costs you nothing."
    assert format_cancellation(7, 1000) == "Cancelled at step 7 of 1000: only these steps are charged."


def test_the_footer_has_all_that_is_needed_to_repeat_a_picture() -> None:
    recipe = Recipe(
        concepts=(Concept("fox"),),
        model="embedded",
        sampler="dpmpp_2m",
        steps=30,
        seed=7,
        guidance=4.0,
        width=64,
        height=48,
        dtype="float32",
    )
    assert format_footer(recipe, 2.2, 12.34) == (
        "30 steps of DPM++ 2M · seed 7 · guidance 4 · 64×48 · embedded · 3 s · 12.3 ms a step"
    )


@quick
@given(st.integers(0, 1000), st.integers(1, 1000), st.integers(1, 40))
def test_a_bar_keeps_its_width(step: int, total: int, width: int) -> None:
    assert len(progress_bar(step, total, width)) == width


@quick
@given(st.one_of(st.text(), hostile))
@example("e\u200dvil \u2800 \U000e0041")
@example("z\u0300\u0301\u0302\u0303\u0304\u0305\u0306a\u0488\u0489\u20dd\u20de\u0489l \u0301go")
@example(" \u0301")
def test_plain_text_hides_nothing(text: str) -> None:
    result = clean_text(text)
    assert clean_text(result) == result
    assert "\u200b" not in result
    result.encode()  # raises for a lone surrogate
    assert not re.search("[\u0300-\u036f\u0489\u20d0-\u20f0]{5}", result), "too many combining marks in a row"
    for character in result.replace("\u200c", "").replace("\u200d", ""):
        assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp")
    assert not re.search(r"[\x00-\x7f][\u200c\u200d]|[\u200c\u200d][\x00-\x7f]", result)


@quick
@given(st.one_of(st.text(), hostile))
@example("1. a list")
@example("- a list")
def test_a_quoted_prompt_has_no_markup_and_no_mention(text: str) -> None:
    safe = escape_discord(text, 4000)
    assert remove_escapes(safe) == remove_escapes(clean_text(text)) or "\\" in text or len(safe) >= 3999
    unescaped_text = re.sub(r"\\[^A-Za-z0-9\s]", "·", safe)  # what Discord would still interpret
    assert not re.search(r"@(everyone|here|[!&]?\d)|<[@#:t/a]|://|\.gg/|[*_~`|>\[\]#]", unescaped_text)
    assert not re.match(r"\s*(-|\d+[.)]) ", unescaped_text)
    assert "\n" not in safe


@quick
@given(hostile, st.integers(1, 60))
def test_a_cut_falls_between_escapes(text: str, limit: int) -> None:
    shortened = escape_discord(text, limit)
    assert len(shortened) <= limit
    body = shortened.removesuffix("…")
    assert (len(body) - len(body.rstrip("\\"))) % 2 == 0
    assert escape_discord(text, 100_000).startswith(body)
    assert len(shorten(text, limit)) <= limit


@quick
@given(hostile)
def test_discords_own_patterns_find_no_mention(text: str) -> None:
    safe = escape_discord(text)
    assert discord.utils.escape_mentions(safe) == safe


def test_a_starting_worker_says_what_it_does():
    assert format_startup(None) == ""
    assert format_startup(ModelProgress()) == "A worker is starting."
    load = ModelProgress(model="sd15", phase="load", done=0.6, size=2 * 10**9)
    assert format_startup(load) == "A worker is starting: loading sd15, 1.2 of 2.0 GB."
    assert format_startup(replace(load, size=0)) == "A worker is starting: loading sd15, 60 %."
    assert format_startup(replace(load, phase="measure")) == "A worker is starting: measuring sd15."
    assert format_startup(replace(load, phase="ready")) == "A worker is starting."
