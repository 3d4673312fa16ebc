"""Differences between models: samplers by many names, guidance intervals and LoRAs; also emphasis."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.domain.errors import UserError
from bot.domain.texts import drop_one_time_notes
from bot.jobs.model_catalog import DEFAULT_POOL, CatalogEntry
from bot.jobs.recipe import remix_recipe, renew_recipe, vary_recipe
from bot.prompt import build_recipe as to_recipe
from bot.prompt import make_remarks, parse
from bot.prompt.concepts import remove_emphasis
from bot.prompt.flags import OUR_FLAGS, find_sampler, prompt_title, split_flags
from bot.prompt.part_flags import RequestedLora
from engine.contract import PIPELINE_SAMPLERS, SAMPLER_TITLES, Lora, ModelProfile, Recipe, Sampler, decode, encode

SAMPLERS: tuple[Sampler, ...] = get_args(Sampler)
WARM = ModelProfile(
    name="large",
    revision="1",
    dtype="bfloat16",
    size=64,
    multiple=8,
    max_pixels=128 * 128,
    tokens=77,
    steps=1000,
    sampler="ddpm",
    guidance=4.0,
    row_ms=3.0,
    encode_ms=5.0,
    decode_ms=5.0,
    samplers=SAMPLERS,
    guidance_start=0.1,
    guidance_stop=0.9,
    loras=(Lora("Style-v2", 0.7, "abc"), Lora("detail", 1.0, "def"), Lora("x", 1, ""), Lora("y", 1)),
)
PLAIN = msgspec.structs.replace(WARM, name="plain", samplers=("ddpm", "ddim"), loras=())
QUICK = msgspec.structs.replace(
    WARM, name="quick", samplers=("lcm", "dpmpp_2m", "heun"), sampler="lcm", steps=4, guidance_kind="network"
)
quick = settings(deadline=None, max_examples=150)


def build_recipe(text: str, profile: ModelProfile = WARM, **options: object) -> Recipe:
    (request,) = parse(text, profile, options=options).prompts
    outcome = to_recipe(request, profile, 7)
    assert decode(encode(outcome), Recipe) == outcome
    return outcome


def refusal(text: str, profile: ModelProfile = WARM, **options: object) -> str:
    with pytest.raises(UserError) as error:
        build_recipe(text, profile, **options)
    assert len(error.value.sentence) <= 500
    return error.value.sentence


SAMPLERS_BY_NAME: dict[str, Sampler] = {
    "DPM++ 2M Karras": "dpmpp_2m_karras",
    "Euler a": "euler_ancestral",
    "dpm++ 2m sde": "dpmpp_2m_sde",
    "k_heun": "heun",
    "k_euler_a": "euler_ancestral",
    "DDIMScheduler": "ddim",
    "UniPC": "unipc",
    "uni_pc": "unipc",
    "DPM2": "kdpm2",
    "k_dpm_2": "kdpm2",
    "LCM": "lcm",
    "Euler": "euler",
    "sample_dpmpp_2m": "dpmpp_2m",
    "EulerAncestralDiscreteScheduler": "euler_ancestral",
    "DPM++ 3M": "dpmpp_3m",
    "native": "native",
    "KDPM2DiscreteScheduler": "kdpm2",
    "DPM++ 2M": "dpmpp_2m",
    "dpmpp-2m": "dpmpp_2m",
}


@pytest.mark.parametrize("typed_name", SAMPLERS_BY_NAME)
@pytest.mark.parametrize(
    "surroundings", ["--sampler {} --seed 3", "--seed 3 --sampler {}", "--sampler '{}', cute --seed 3"]
)
def test_a_sampler_is_known_by_every_common_name(typed_name: str, surroundings: str) -> None:
    request = parse(f"red fox {surroundings.format(typed_name)}", None).prompts[0]
    assert (request.sampler, request.seed) == (SAMPLERS_BY_NAME[typed_name], 3)
    assert request.words in ("red fox", "red fox , cute")
    assert parse("fox", None, options={"sampler": typed_name}).prompts[0].sampler == SAMPLERS_BY_NAME[typed_name]


def test_every_sampler_can_be_named_by_its_title() -> None:
    assert tuple(SAMPLER_TITLES) == SAMPLERS
    assert all(name in OUR_FLAGS["sampler"].value_range for name in SAMPLERS)
    titled_samplers: list[Sampler] = [name for name in SAMPLERS if name != "native"]
    assert [find_sampler(SAMPLER_TITLES[name]) for name in titled_samplers] == titled_samplers
    assert [find_sampler(name) for name in SAMPLERS] == list(SAMPLERS)


def test_the_sampler_flag_takes_only_a_name_from_the_words_after_it() -> None:
    assert split_flags("--sampler euler a red fox")[0] == "a red fox"
    assert split_flags("--sampler dpm++ 2m karras style fox")[0] == "style fox"
    assert split_flags('--sampler "euler" karras fox')[0] == "karras fox"
    for unknown_name in ("DPM++ 2M SDE Karras", "DPM2 a", "DPM++ 3M SDE", "LCM Karras", "plms"):  # no silent substitute
        assert f"--sampler {unknown_name} is not possible: it takes ddpm, ddim," in refusal(
            f"fox --sampler {unknown_name}"
        )


def test_an_unsupported_sampler_is_refused_with_the_supported_ones() -> None:
    assert refusal("fox --sampler heun", PLAIN) == "plain does not take the sampler heun: it takes ddpm and ddim."
    assert build_recipe("fox --sampler 'DPM++ 2M SDE'").sampler == "dpmpp_2m_sde"


def test_fast_keeps_the_models_own_sampler_where_it_has_no_fast_one() -> None:
    assert (build_recipe("fox --fast").sampler, build_recipe("fox --fast").steps) == ("dpmpp_2m", 30)
    assert (build_recipe("fox --fast", PLAIN).sampler, build_recipe("fox --fast", PLAIN).steps) == ("ddpm", 30)
    assert (build_recipe("fox --fast", QUICK).sampler, build_recipe("fox --fast", QUICK).steps) == ("lcm", 4)
    turbo_profile = msgspec.structs.replace(QUICK, sampler="euler", samplers=("euler", "dpmpp_2m"))
    assert (build_recipe("fox --fast", turbo_profile).sampler, build_recipe("fox --fast", turbo_profile).steps) == (
        "euler",
        4,
    )


def test_built_in_guidance_takes_a_scale_but_no_negative_prompt_or_interval() -> None:
    one = build_recipe("red fox::2 snow:: --guidance 8", QUICK)
    assert (one.guidance_kind, one.guidance, len(one.concepts)) == ("network", 8.0, 2)
    assert (one.guidance_start, one.guidance_stop) == (0.0, 1.0)
    assert refusal("fox --no fog", QUICK) == (
        "quick takes no negative prompt, since guidance is built into its network: leave out --no."
    )
    assert "it holds at every step: leave out --interval" in refusal("fox --interval 0.2-0.8", QUICK)
    assert build_recipe("fox --interval 0-1", QUICK).guidance_stop == 1.0


def test_the_guidance_interval_is_the_models_or_the_requested_one() -> None:
    assert (build_recipe("fox").guidance_start, build_recipe("fox").guidance_stop) == (0.1, 0.9)
    for typed_name in ("0.2-0.8", ".2-.8", "0.2–0.8", "0.2:0.8", "0.20-0.80"):
        assert (
            build_recipe(f"fox --interval {typed_name}").guidance_start,
            build_recipe(f"fox --interval {typed_name}").guidance_stop,
        ) == (0.2, 0.8)
    plain = build_recipe("fox --cfg-interval 0-1")
    assert (plain.guidance_start, plain.guidance_stop) == (0.0, 1.0)
    assert build_recipe("fox", interval=(0.25, 0.5)).guidance_start == 0.25
    for invalid_value in ("0.8-0.2", "0.5", "0-1.1", "1-2", "0.3-0.3", "a-b", "-0.1-0.5", "nan-1", ""):
        assert OUR_FLAGS["interval"].value_range in refusal(f"fox --interval {invalid_value}")


def test_loras_are_named_by_flag_tag_or_option() -> None:
    one = build_recipe("red fox, <lora:STYLE-V2:0.5>, cute --lora detail:-1.5 --lora x")
    assert [part.text for part in one.concepts] == ["red fox, cute"]
    assert one.loras == (Lora("Style-v2", 0.5, "abc"), Lora("detail", -1.5, "def"), Lora("x", 1.0, ""))
    assert build_recipe("fox --lora style-v2").loras == (Lora("Style-v2", 0.7, "abc"),)  # at its default weight
    assert build_recipe("fox <lora:x>", lora=["y:2", "detail.safetensors"]).loras == (
        Lora("x", 1, ""),
        Lora("y", 2.0, ""),
        Lora("detail", 1.0, "def"),
    )
    assert build_recipe("fox", lora="x:0.5, y").loras == (Lora("x", 0.5, ""), Lora("y", 1.0, ""))
    assert build_recipe("fox --lora x --lora X:2").loras == (Lora("x", 2.0, ""),)
    assert build_recipe("fox --lora x:0").loras == build_recipe("fox --lora none").loras == ()
    assert [one.loras[0].name for one in map(build_recipe, ("a <lora:x:1>", "a <lora:y:1>"))] == ["x", "y"]
    prompts = parse("a {<lora:x:1>,<lora:y:1>} cat", None).prompts
    assert [(one.words, one.loras) for one in prompts] == [
        ("a cat", (RequestedLora("x", 1.0),)),
        ("a cat", (RequestedLora("y", 1.0),)),
    ]
    assert prompt_title("red fox <lora:x:1> --lora y") == "red fox"


def test_an_unknown_lora_is_refused_with_a_hint() -> None:
    assert refusal("fox --lora stile") == "There is no LoRA stile for large; the nearest is Style-v2."
    assert refusal("fox <lora:x:1>", PLAIN) == (
        "There is no LoRA for plain: this bot's operator can put one, as .safetensors, into loras/ in the worker's "
        "data folder."
    )
    too_many_loras = " ".join(f"--lora l{n}" for n in range(5))
    assert refusal(f"fox {too_many_loras}") == "--lora may stand for 4 LoRAs at once; these are 5."
    for invalid_value in ("x:5", "x:-4.5", "x:nan", "x:", "../x", "a:1:2", ""):
        assert OUR_FLAGS["lora"].value_range in refusal(f"fox --lora {invalid_value}")
    assert "--lora a b:0.8 is not possible" in refusal("fox <lora:a b:0.8>")


@pytest.mark.parametrize("sampler", PIPELINE_SAMPLERS)
def test_a_whole_pipeline_refuses_what_it_lacks_and_notes_the_rest(sampler: Sampler) -> None:
    one = build_recipe(f"fox --sampler {sampler}")
    assert (one.guidance_start, one.guidance_stop) == (0.0, 1.0)  # the model's own guidance interval does not apply
    assert "reads one text: leave out the weights" in refusal(f"red:: fox:: --sampler {sampler}")
    assert "guides at every step: leave out --interval" in refusal(f"fox --interval 0.2-0.8 --sampler {sampler}")
    with pytest.raises(UserError, match="draws no variations"):
        vary_recipe(one, 0, 0.2, 9)
    (note,) = parse(f"fox --sampler {sampler}", WARM).notes
    assert note.endswith(
        ": the whole picture goes through the unmodified pipeline, so it cannot move to another worker."
    )
    assert drop_one_time_notes((note, "other")) == ("other",)


def remix(base: Recipe, text: str, profile: ModelProfile = WARM) -> Recipe:
    (request,) = parse(text, None).prompts
    return remix_recipe(base, request, profile)


def test_a_remix_keeps_what_its_prompt_does_not_change() -> None:
    base = build_recipe("fox --lora x --interval 0.3-0.5 --sampler euler")
    remix_of_base = remix(base, "wolf")
    assert (remix_of_base.loras, remix_of_base.guidance_start, remix_of_base.sampler) == (base.loras, 0.3, "euler")
    other = remix(base, "wolf <lora:y:2> --interval 0-1 --fast")
    assert (other.loras, other.guidance_stop, other.sampler, other.steps) == (
        (Lora("y", 2.0, ""),),
        1.0,
        "dpmpp_2m",
        30,
    )
    assert remix(base, "wolf --lora none").loras == ()
    assert remix(base, "wolf --sampler heun").guidance_stop == 1.0
    with pytest.raises(UserError, match="draws no variations"):
        remix(vary_recipe(base, 0, 0.2, 9), "wolf --sampler heun")
    with pytest.raises(UserError, match="takes ddpm and ddim"):
        remix(base, "wolf --sampler unipc", PLAIN)


def test_a_repeated_recipe_uses_the_current_loras_and_says_so() -> None:
    base = build_recipe("fox --lora style-v2:0.5 --sampler euler")
    assert renew_recipe(base, CatalogEntry(WARM, DEFAULT_POOL, True)) == (base, ())
    now = msgspec.structs.replace(WARM, loras=(Lora("Style-v2", 1.0, "new"),))
    renewed_again, notes = renew_recipe(base, CatalogEntry(now, DEFAULT_POOL, True))
    assert renewed_again.loras == (Lora("Style-v2", 0.5, "new"),)
    assert notes == ("Made with another version of the LoRA Style-v2: it will differ.",)
    for changed_profile in (PLAIN, msgspec.structs.replace(WARM, samplers=("ddpm",))):
        with pytest.raises(UserError):
            renew_recipe(base, CatalogEntry(changed_profile, DEFAULT_POOL, True))


@pytest.mark.parametrize(
    "text", ["(red:1.2) fox", "((red)) [fox]", "a (very (red:0.9) fox:1.3)", r"a fox \(animal\)", "(red,fox:.8)"]
)
def test_emphasis_stays_in_the_concepts_for_the_engine(text: str) -> None:
    assert [part.text for part in build_recipe(text).concepts] == [text]
    assert build_recipe(f"{text}:: snow::-0.5 --no (fog:1.2)").concepts[0].text == text
    assert build_recipe(f"{text} --no (fog:1.2)").negative == "(fog:1.2)"


def test_emphasis_works_with_braces_and_is_left_out_of_titles() -> None:
    parsed = parse("({red,blue}:1.2) [fox]::2 sea", WARM)
    assert [one.concepts[0].text for one in parsed.prompts] == ["(red:1.2) [fox]", "(blue:1.2) [fox]"]
    assert prompt_title("a (red:1.2) [fox] --no ((fog)) --seed 7") == "a red fox (no fog)"
    assert remove_emphasis(r"g(o:1.3)re \(plain\) at 10:30") == "gore (plain) at 10:30"


@quick
@given(st.text("ab ()[]:\\1.2", max_size=40))
def test_bare_text_has_no_emphasis_left(text: str) -> None:
    assert not set("()[]") & set(remove_emphasis(text.replace("\\", "")))
    assert remove_emphasis("fox" + text.translate(dict.fromkeys(map(ord, "()[]\\")))).startswith("fox")


def test_a_long_prompt_is_measured_without_its_emphasis() -> None:
    words = " ".join(f"(word{n}:1.2)" for n in range(40))
    assert make_remarks(parse(words, None).prompts[0], WARM) == ()
    assert make_remarks(parse(words + words, None).prompts[0], WARM) != ()


def test_few_steps_get_no_note_for_a_model_or_sampler_made_for_them() -> None:
    (request,) = parse("fox", None).prompts
    assert make_remarks(request, QUICK) == ()
    slow_profile = msgspec.structs.replace(WARM, steps=40)
    assert make_remarks(replace(request, sampler="ddpm"), slow_profile) != ()
    assert make_remarks(replace(request, sampler="dpmpp_2m_karras"), slow_profile) == ()


PIECES = [
    "--sampler ",
    "--lora ",
    "<lora:",
    ">",
    ":",
    "x",
    "0.5",
    "--interval ",
    "euler a",
    " ",
    "-",
    "(",
    ")",
    "::",
    ",",
    "karras",
    '"',
]


@quick
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_any_text_becomes_a_valid_recipe_or_one_sentence(text: str) -> None:
    try:
        outcome: Recipe | UserError = build_recipe("fox " + text)
    except UserError as error:
        outcome = error
    if isinstance(outcome, UserError):
        sentence = outcome.sentence
        assert 0 < len(sentence) <= 500
        assert sentence.isprintable()
