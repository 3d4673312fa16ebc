"""The prompt grammar: the meaning of each form, one sentence for each refusal, and no slow input."""

from __future__ import annotations

import string

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from bot.domain.errors import UserError
from bot.prompt import ParseResult, build_recipe, make_remarks, parse
from bot.prompt.concepts import MAX_JOBS, expand_braces
from bot.prompt.flags import IGNORED_FLAGS, OUR_FLAGS, prompt_title
from bot.prompt.parsed_prompt import fit_size
from engine.contract import ModelProfile, Recipe, decode, encode

WARM = ModelProfile(
    name="embedded",
    revision="1",
    dtype="bfloat16",
    size=64,
    multiple=8,
    max_pixels=128 * 128,
    tokens=24,
    steps=1000,
    sampler="ddpm",
    samplers=("ddpm", "ddim", "euler", "dpmpp_2m"),
    guidance=4.0,
    row_ms=3.0,
    encode_ms=5.0,
    decode_ms=5.0,
)
LARGE = msgspec.structs.replace(WARM, name="large", size=1024, multiple=64, max_pixels=1536 * 1024, tokens=77)

quick = settings(deadline=None, max_examples=150)
words = st.text(string.ascii_letters, min_size=1, max_size=12)
plain_prompts = st.lists(words, min_size=1, max_size=6).map(" ".join)


def parse_text(text: str, **options: object) -> ParseResult:
    return parse(text, WARM, models=["embedded", "large"], options=options)


def parse_single(text: str, **options: object):
    (request,) = parse_text(text, **options).prompts
    return request


def parse_or_refusal(text: str) -> ParseResult | UserError:
    try:
        return parse_text(text)
    except UserError as error:
        return error


def refusal(text: str, **options: object) -> str:
    with pytest.raises(UserError) as error:
        parse_text(text, **options)
    assert error.value.sentence.count("\n") == 0
    return error.value.sentence


def test_a_plain_prompt_is_one_concept_without_notes() -> None:
    parsed = parse_text("terrier, looking up, cute, white background")
    (request,) = parsed.prompts
    assert [(part.text, part.weight) for part in request.concepts] == [
        ("terrier, looking up, cute, white background", 1.0)
    ]
    assert parsed.notes == ()
    result = build_recipe(request, WARM, 7)
    assert (result.steps, result.sampler, result.seed, result.guidance, result.count) == (1000, "ddpm", 7, 4.0, 4)
    assert (result.width, result.height, result.dtype, result.model, result.revision) == (
        64,
        64,
        "bfloat16",
        "embedded",
        "1",
    )


def test_every_flag_is_read() -> None:
    request = parse_single(
        "red fox --steps 40 --seed 4294967295 --guidance 7.5 --ar 3:2 "
        "--no fog, text --model LARGE --sampler euler --count 2"
    )
    assert request.words == "red fox"
    assert (request.steps, request.seed, request.guidance, request.ar) == (40, 4294967295, 7.5, (3, 2))
    assert (request.negative, request.model, request.sampler, request.count) == ("fog, text", "large", "euler", 2)


def test_fast_is_thirty_steps_of_dpm_unless_flags_say_otherwise() -> None:
    fast_recipe = build_recipe(parse_single("fox --fast"), WARM, 0)
    assert (fast_recipe.steps, fast_recipe.sampler) == (30, "dpmpp_2m")
    custom_recipe = build_recipe(parse_single("fox --fast --steps 12 --sampler ddim"), WARM, 0)
    assert (custom_recipe.steps, custom_recipe.sampler) == (12, "ddim")


@pytest.mark.parametrize("dash", ["--", "—", "–", "––", "―", "-—"])
def test_any_kind_of_dash_begins_a_flag(dash: str) -> None:
    assert parse_single(f"red fox {dash}seed 7 {dash}ar 16:9").seed == 7


@pytest.mark.parametrize(
    "text", ["a dog -- looking up", "a dog — looking up", "mother--in-law", "1990–1995", "pages 5 –7", "well-known"]
)
def test_a_dash_in_prose_stays_prose(text: str) -> None:
    assert parse_single(text).words == text


def test_a_weight_follows_its_concept() -> None:
    request = parse_single("red apple:: blue::-0.5")
    assert [(part.text, part.weight) for part in request.concepts] == [("red apple", 1.0), ("blue", -0.5)]
    assert [part.weight for part in build_recipe(request, WARM, 0).concepts] == [1.0, -0.5]
    assert [part.weight for part in parse_single("hot::2 dog::.5 bun").concepts] == [2.0, 0.5, 1.0]
    assert [part.weight for part in parse_single("sky::2 sea::−1 --seed 1").concepts] == [
        2.0,
        -1.0,
    ]  # a typographic minus
    assert parse_single("space::2nd moon").concepts[1].text == "2nd moon"
    assert parse_single("cat::--ar 3:2").ar == (3, 2)


@quick
@given(st.lists(st.tuples(words, st.integers(1, 20)), min_size=1, max_size=8), st.integers(2, 5))
def test_only_the_ratio_of_weights_counts(parts: list[tuple[str, int]], factor: int) -> None:
    base_recipe = build_recipe(parse_single(" ".join(f"{text}::{weight}" for text, weight in parts)), WARM, 0)
    scaled_recipe = build_recipe(
        parse_single(" ".join(f"{text}::{weight * factor}" for text, weight in parts)), WARM, 0
    )
    assert [part.weight for part in base_recipe.concepts] == pytest.approx(
        [part.weight for part in scaled_recipe.concepts]
    )
    assert sum(part.weight for part in base_recipe.concepts) == pytest.approx(1.0)


@quick
@given(st.lists(st.tuples(words, st.integers(-100, 100)), min_size=1, max_size=8))
def test_weights_fit_the_contract_or_their_sum_is_refused(parts: list[tuple[str, int]]) -> None:
    text = " ".join(f"{text}::{weight}" for text, weight in parts)
    if sum(weight for _, weight in parts) <= 0:
        assert "add up to" in refusal(text)
        return
    result = build_recipe(parse_single(text), WARM, 0)
    assert len(result.concepts) == sum(1 for _, weight in parts if weight)
    assert decode(encode(result), Recipe) == result


def test_permutations_nest_and_escape() -> None:
    assert expand_braces("a {red, blue} cat") == ("a red cat", "a  blue cat")
    assert expand_braces("{a,b{c,d}}{x,y}") == ("ax", "ay", "bcx", "bcy", "bdx", "bdy")
    assert expand_braces(r"{a\,b,c} \{d\}") == ("a,b {d}", "c {d}")
    assert expand_braces("{,red} apple, pear") == (" apple, pear", "red apple, pear")
    parsed = parse_text("fox --steps {20, 40} {red,blue}")
    assert [(one.steps, one.words) for one in parsed.prompts] == [
        (20, "fox red"),
        (20, "fox blue"),
        (40, "fox red"),
        (40, "fox blue"),
    ]
    assert parsed.notes[0] == "The braces make 4 jobs."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{a,b,c,d} {e,f,g}", "12 jobs; at most 10"),
        ("{a,b}" * 300, "more than 1000 jobs; at most 10"),
        ("{" * 400 + "}" * 400, "8 deep"),
        ("a {b", "without its }"),
        ("a b}", "without its {"),
        ("", "empty"),
        (" \u200b\t\n ", "empty"),
        ("--seed 7", "empty"),
        ("--no fog", "only says what not to draw"),
        ("fog::-1", "add up to -1"),
        ("a::1 b::-1", "add up to 0"),
        ("::2 cat", "no words before ::2"),
        ("a::101", "within ±100"),
        ("a:: b:: c:: d:: e:: f:: g:: h:: i", "8 weighted parts; this one has 9"),
        ("x" * 2001, "2000 characters; this one has 2001"),
        ("fox --step 3", "no flag --step; the nearest is --steps"),
        ("fox --guidence 3", "the nearest is --guidance (1 to 30)"),
        ("fox —sede 3", "the nearest is --seed"),
        ("fox --stylizze 3", "the nearest is --stylize (without effect here)"),
        ("fox --ar16:9", "the nearest is --ar"),
        ("fox --model embeded", "no model embeded; the nearest is embedded"),
    ],
)
def test_refusals_say_what_is_wrong(text: str, message: str) -> None:
    assert message in refusal(text)


@pytest.mark.parametrize(
    ("flag", "invalid_value"),
    [
        ("steps", ["0", "1001", "4.5", "many", "", "-3", "9" * 30]),
        ("seed", ["-1", "4294967296", "", "1e3"]),
        ("guidance", ["0.5", "31", "nan", "inf", "1e1", ""]),
        ("ar", ["16", "0:1", "1:0", "9:1", "1:9", "a:b", "16:9:4", ""]),
        ("sampler", ["plms", ""]),
        ("count", ["0", "5", "two", ""]),
        ("no", [""]),
        ("model", ["", "../secret"]),
    ],
)
def test_a_value_out_of_range_names_flag_value_and_range(flag: str, invalid_value: list[str]) -> None:
    for value in invalid_value:
        sentence = refusal(f"fox --{flag} {value}")
        assert f"--{flag}" in sentence
        assert value[:20] in sentence
        assert OUR_FLAGS[flag].value_range in sentence


def test_midjourney_flags_are_accepted_ignored_and_named() -> None:
    parsed = parse_text("a red fox --v 6.1 --stylize 750 --weird 3 --niji 5 --sref https://x.y/a.png 12 --seed 7 --hd")
    (request,) = parsed.prompts
    assert (request.words, request.seed) == ("a red fox", 7)
    (note,) = parsed.notes
    assert "Accepted but ignored: --v 6.1, --stylize 750, --weird 3, --niji 5, --sref" in note
    with_more_flags = parse_text(
        "fox --personalize ab12 cd34 --zoom 1.5 --mode relax --stylise 80 --motion low --exp 10 --ow 20 --raw cub"
    )
    assert with_more_flags.prompts[0].words == "fox cub"
    assert (
        "--personalize ab12 cd34, --zoom 1.5, --mode relax, --stylise 80, --motion low, --exp 10"
        in with_more_flags.notes[0]
    )
    assert parse_single("fox --niji cub").words == "fox cub"  # not a number, so not its value


@pytest.mark.parametrize("name", sorted(IGNORED_FLAGS))
def test_every_midjourney_flag_may_come_last_without_a_value(name: str) -> None:
    assert parse_single(f"red fox --{name}").words == "red fox"


def test_the_last_of_a_repeated_flag_counts_and_is_noted() -> None:
    parsed = parse_text("fox --seed 1 --seed 2")
    assert parsed.prompts[0].seed == 2
    assert parsed.notes == ("--seed is given more than once: the last one counts.",)


def test_an_option_wins_over_a_flag() -> None:
    request = parse_single(
        "fox --steps 40 --no fog", steps=20, ar=(3, 2), guidance=2.5, negative="rain", seed=None, fast=True
    )
    assert (request.steps, request.ar, request.guidance) == (20, (3, 2), 2.5)
    assert (request.negative, request.fast) == ("rain", True)
    assert "--count 9" in refusal("fox", count=9)
    assert "--steps True" in refusal("fox", steps=True)
    assert "no option shoes" in refusal("fox", shoes=1)


def test_broken_characters_are_repaired_before_parsing() -> None:
    assert parse_single("caf\u00c3\u00a9 \u202eau\u200b lait\x1b[31m\ud800").words.startswith("café au lait")
    assert parse_single("a\ncat\u2028on\ta mat").words == "a cat on a mat"
    assert parse_single("family 👨\u200d👩\u200d👧").words == "family 👨\u200d👩\u200d👧"


def test_notes_name_the_limits_of_a_model() -> None:
    slow_profile = msgspec.structs.replace(WARM, steps=400)
    (note,) = make_remarks(parse_single("fox"), slow_profile)
    assert note == "400 steps on this machine; --steps 1000 runs all steps."
    assert (
        make_remarks(parse_single("fox --steps 9"), slow_profile)
        == make_remarks(parse_single("fox --fast"), slow_profile)
        == ()
    )
    (note,) = parse_text("fox --ar 3:2").notes
    assert "trained on squares of 64 px" in note
    assert make_remarks(parse_single("fox --ar 3:2"), LARGE) == ()
    (note,) = parse_text(" ".join(f"word{n}" for n in range(40))).notes
    assert "about 24 tokens" in note
    assert "near “word13 word14 word15 …”" in note
    assert make_remarks(parse_single(" ".join(["word"] * 40)), LARGE) == ()


def test_without_a_worker_any_valid_model_name_is_accepted() -> None:
    parsed = parse("fox --model someday-2.1", None)
    assert parsed.prompts[0].model == "someday-2.1"


@quick
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from([WARM, LARGE]))
def test_sizes_fit_the_model(width: int, height: int, profile: ModelProfile) -> None:
    if max(width, height) > 4 * min(width, height):
        return
    result = fit_size((width, height), profile)
    assert all(side % profile.multiple == 0 and 16 <= side <= 4096 for side in result)
    assert result[0] * result[1] <= profile.max_pixels
    assert 0.5 <= result[0] * result[1] / profile.size**2 <= 2
    assert (
        result[::-1] == fit_size((height, width), profile)
        or abs(result[0] * result[1] - profile.size**2) < profile.size**2 / 2
    )
    assert 0.6 <= (result[0] / result[1]) / (width / height) <= 1.6


pieces = st.sampled_from(
    ["{", "}", ",", "\\", "::", "::2", "::-1", "--", "—", "--no ", " --ar ", " --seed ", "7", ":", " ", "fox", "\u200b"]
)


@pytest.mark.slow
@quick
@given(st.one_of(st.text(max_size=300), st.lists(pieces, max_size=60).map("".join)))
@example("{}")
@example("a::0")
@example("-" * 50)
def test_anything_parses_or_is_refused_with_one_sentence(text: str) -> None:
    parsed = parse_or_refusal(text)
    if isinstance(parsed, UserError):
        assert 0 < len(parsed.sentence) <= 500
        assert parsed.status == 422
        assert parsed.sentence.isprintable()
        return
    assert 1 <= len(parsed.prompts) <= MAX_JOBS
    for request in parsed.prompts:
        result = build_recipe(request, WARM, 5)
        assert decode(encode(result), Recipe) == result  # every parsed request fits the contract
    assert all(0 < len(note) <= 500 for note in parsed.notes)
    assert parse_text(text) == parsed


@quick
@given(plain_prompts)
def test_a_prompt_without_grammar_is_kept_unchanged(text: str) -> None:
    request = parse_single(text)
    assert request.words == request.text == request.concepts[0].text == text


HOSTILE = ["::", "--", "{", "\\", "{a,", " --a", "-—", "a::", "&#", "Ã", "0", "::-.", "--no ", "--seed 1 ", "\u0301"]


@pytest.mark.timeout(10)
@pytest.mark.parametrize("fragment", [*HOSTILE, "{,,,,}", "{a,b}", " \u200b", "::1", "-" * 500 + " "])
def test_no_prompt_of_the_allowed_length_hangs(fragment: str) -> None:
    text = (fragment * 2000)[:2000]
    for prompt in (text, text[:-1] + "x", "fox " + text[:1996]):
        outcome = parse_or_refusal(prompt)
        assert isinstance(outcome, UserError) or len(outcome.prompts) <= MAX_JOBS


def test_a_title_is_the_prompt_without_its_flags() -> None:
    assert prompt_title("fox, looking up --ar 3:2 --seed 7 --v 6") == "fox, looking up"
    assert prompt_title("fox --no fog, rain --steps 9") == "fox (no fog, rain)"
    assert prompt_title("red::2 fox::-1") == "red::2 fox::-1"
    assert prompt_title("fox --unheard-of 3") == "fox --unheard-of 3"
    assert prompt_title("--seed 7") == "--seed 7"
