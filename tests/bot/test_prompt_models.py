"""What models differ in: samplers by many names, guidance for a part of the course, LoRAs; and emphasis beside it."""

from __future__ import annotations

from dataclasses import replace
from typing import get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bot.desk.recipes import remixed, varied
from bot.models import DEFAULT_POOL, Profile
from bot.orders import renewed
from bot.prompt import parse, recipe, remarks
from bot.prompt.emphasis import bare
from bot.prompt.flags import OURS, split, title
from bot.prompt.loras import Addition
from bot.prompt.samplers import named
from bot.refused import Refused
from bot.sentences import lasting
from engine.job import SAMPLER_TITLES, WHOLE_SAMPLERS, Lora, Recipe, Sampler, Warm, decode, encode

ALL: tuple[Sampler, ...] = get_args(Sampler)
WARM = Warm(
    name="large", revision="1", dtype="bfloat16", size=64, multiple=8, max_pixels=128 * 128, tokens=77, steps=1000,
    sampler="ddpm", guidance=4.0, row_ms=3.0, encode_ms=5.0, decode_ms=5.0, samplers=ALL, guidance_start=0.1,
    guidance_stop=0.9, loras=(Lora("Style-v2", 0.7, "abc"), Lora("detail", 1.0, "def"), Lora("x", 1, ""), Lora("y", 1)),
)  # fmt: skip
PLAIN = msgspec.structs.replace(WARM, name="plain", samplers=("ddpm", "ddim"), loras=())
QUICK = msgspec.structs.replace(
    WARM, name="quick", samplers=("lcm", "dpmpp_2m", "heun"), sampler="lcm", steps=4, guides="network"
)
quick = settings(deadline=None, max_examples=150)


def made(text: str, warm: Warm = WARM, **options: object) -> Recipe:
    (request,) = parse(text, warm, options=options).requests
    found = recipe(request, warm, 7)
    assert decode(encode(found), Recipe) == found
    return found


def refusal(text: str, warm: Warm = WARM, **options: object) -> str:
    with pytest.raises(Refused) as caught:
        made(text, warm, **options)
    assert len(caught.value.sentence) <= 500
    return caught.value.sentence


WRITTEN: dict[str, Sampler] = {
    "DPM++ 2M Karras": "dpmpp_2m_karras", "Euler a": "euler_ancestral", "dpm++ 2m sde": "dpmpp_2m_sde",
    "k_heun": "heun", "k_euler_a": "euler_ancestral", "DDIMScheduler": "ddim", "UniPC": "unipc", "uni_pc": "unipc",
    "DPM2": "kdpm2", "k_dpm_2": "kdpm2", "LCM": "lcm", "Euler": "euler", "sample_dpmpp_2m": "dpmpp_2m",
    "EulerAncestralDiscreteScheduler": "euler_ancestral", "DPM++ 3M": "dpmpp_3m", "native": "native",
    "KDPM2DiscreteScheduler": "kdpm2", "DPM++ 2M": "dpmpp_2m", "dpmpp-2m": "dpmpp_2m",
}  # fmt: skip


@pytest.mark.parametrize("written", WRITTEN)
@pytest.mark.parametrize("around", ["--sampler {} --seed 3", "--seed 3 --sampler {}", "--sampler '{}', cute --seed 3"])
def test_a_sampler_goes_by_every_name_that_people_write(written: str, around: str) -> None:
    request = parse(f"red fox {around.format(written)}", None).requests[0]
    assert (request.sampler, request.seed) == (WRITTEN[written], 3)
    assert request.words in ("red fox", "red fox , cute")
    assert parse("fox", None, options={"sampler": written}).requests[0].sampler == WRITTEN[written]


def test_every_sampler_has_a_title_by_which_it_can_be_asked_for() -> None:
    assert tuple(SAMPLER_TITLES) == ALL
    assert all(name in OURS["sampler"].range for name in ALL)
    titled: list[Sampler] = [name for name in ALL if name != "native"]
    assert [named(SAMPLER_TITLES[name]) for name in titled] == titled
    assert [named(name) for name in ALL] == list(ALL)


def test_only_a_name_is_taken_from_the_words_behind_the_flag() -> None:
    assert split("--sampler euler a red fox")[0] == "a red fox"
    assert split("--sampler dpm++ 2m karras style fox")[0] == "style fox"
    assert split('--sampler "euler" karras fox')[0] == "karras fox"
    for strange in ("DPM++ 2M SDE Karras", "DPM2 a", "DPM++ 3M SDE", "LCM Karras", "plms"):  # no quiet other one
        assert f"--sampler {strange} is not possible: it takes ddpm, ddim," in refusal(f"fox --sampler {strange}")


def test_a_sampler_that_the_model_lacks_is_refused_with_those_that_it_takes() -> None:
    assert refusal("fox --sampler heun", PLAIN) == "plain does not take the sampler heun: it takes ddpm and ddim."
    assert made("fox --sampler 'DPM++ 2M SDE'").sampler == "dpmpp_2m_sde"


def test_fast_takes_the_models_own_way_where_it_has_no_quick_sampler() -> None:
    assert (made("fox --fast").sampler, made("fox --fast").steps) == ("dpmpp_2m", 30)
    assert (made("fox --fast", PLAIN).sampler, made("fox --fast", PLAIN).steps) == ("ddpm", 30)
    assert (made("fox --fast", QUICK).sampler, made("fox --fast", QUICK).steps) == ("lcm", 4)
    turbo = msgspec.structs.replace(QUICK, sampler="euler", samplers=("euler", "dpmpp_2m"))
    assert (made("fox --fast", turbo).sampler, made("fox --fast", turbo).steps) == ("euler", 4)


def test_guidance_is_the_networks_own_where_the_model_says_so() -> None:
    one = made("red fox::2 snow:: --guidance 8", QUICK)
    assert (one.guides, one.guidance, len(one.concepts)) == ("network", 8.0, 2)
    assert (one.guidance_start, one.guidance_stop) == (0.0, 1.0)
    assert refusal("fox --no fog", QUICK) == (
        "quick takes no negative prompt, since guidance is built into its network: leave out --no."
    )
    assert "it holds at every step: leave out --interval" in refusal("fox --interval 0.2-0.8", QUICK)
    assert made("fox --interval 0-1", QUICK).guidance_stop == 1.0


def test_guidance_holds_in_the_models_part_of_the_course_or_in_the_one_that_is_asked_for() -> None:
    assert (made("fox").guidance_start, made("fox").guidance_stop) == (0.1, 0.9)
    for written in ("0.2-0.8", ".2-.8", "0.2–0.8", "0.2:0.8", "0.20-0.80"):
        assert (made(f"fox --interval {written}").guidance_start, made(f"fox --interval {written}").guidance_stop) == (
            0.2,
            0.8,
        )
    assert made("fox --cfg-interval 0-1").v == 1  # nothing new in it, so any worker can read it
    assert made("fox", interval=(0.25, 0.5)).guidance_start == 0.25
    for bad in ("0.8-0.2", "0.5", "0-1.1", "1-2", "0.3-0.3", "a-b", "-0.1-0.5", "nan-1", ""):
        assert OURS["interval"].range in refusal(f"fox --interval {bad}")


def test_loras_come_by_flag_by_tag_and_by_option() -> None:
    one = made("red fox, <lora:STYLE-V2:0.5>, cute --lora detail:-1.5 --lora x")
    assert [part.text for part in one.concepts] == ["red fox, cute"]
    assert one.loras == (Lora("Style-v2", 0.5, "abc"), Lora("detail", -1.5, "def"), Lora("x", 1.0, ""))
    assert made("fox --lora style-v2").loras == (Lora("Style-v2", 0.7, "abc"),)  # as strongly as it usually is
    assert made("fox <lora:x>", lora=["y:2", "detail.safetensors"]).loras == (
        Lora("x", 1, ""), Lora("y", 2.0, ""), Lora("detail", 1.0, "def"),
    )  # fmt: skip
    assert made("fox", lora="x:0.5, y").loras == (Lora("x", 0.5, ""), Lora("y", 1.0, ""))
    assert made("fox --lora x --lora X:2").loras == (Lora("x", 2.0, ""),)
    assert made("fox --lora x:0").loras == made("fox --lora none").loras == ()
    assert [one.loras[0].name for one in map(made, ("a <lora:x:1>", "a <lora:y:1>"))] == ["x", "y"]
    both = parse("a {<lora:x:1>,<lora:y:1>} cat", None).requests
    assert [(one.words, one.loras) for one in both] == [
        ("a cat", (Addition("x", 1.0),)),
        ("a cat", (Addition("y", 1.0),)),
    ]
    assert title("red fox <lora:x:1> --lora y") == "red fox"


def test_a_lora_that_is_not_there_is_refused_with_what_is() -> None:
    assert refusal("fox --lora stile") == "There is no LoRA stile for large; the nearest is Style-v2."
    assert refusal("fox <lora:x:1>", PLAIN) == (
        "There is no LoRA for plain: this bot's operator can put one, as .safetensors, into loras/ in the worker's "
        "data folder."
    )
    many = " ".join(f"--lora l{n}" for n in range(5))
    assert refusal(f"fox {many}") == "--lora may stand for 4 LoRAs at once; these are 5."
    for bad in ("x:5", "x:-4.5", "x:nan", "x:", "../x", "a:1:2", ""):
        assert OURS["lora"].range in refusal(f"fox --lora {bad}")
    assert "--lora a b:0.8 is not possible" in refusal("fox <lora:a b:0.8>")


@pytest.mark.parametrize("sampler", WHOLE_SAMPLERS)
def test_what_the_unmodified_pipeline_lacks_is_refused_and_the_rest_is_remarked(sampler: Sampler) -> None:
    one = made(f"fox --sampler {sampler}")
    assert (one.guidance_start, one.guidance_stop) == (0.0, 1.0)  # the model's own part of the course gives way
    assert "reads one text: leave out the weights" in refusal(f"red:: fox:: --sampler {sampler}")
    assert "guides at every step: leave out --interval" in refusal(f"fox --interval 0.2-0.8 --sampler {sampler}")
    with pytest.raises(Refused, match="draws no variations"):
        varied(one, 0, 0.2, 9)
    (note,) = parse(f"fox --sampler {sampler}", WARM).notes
    assert note.endswith(": the whole picture goes through the unmodified pipeline; midway it cannot go on elsewhere.")
    assert lasting((note, "other")) == ("other",)


def remix(base: Recipe, text: str, warm: Warm = WARM) -> Recipe:
    (request,) = parse(text, None).requests
    return remixed(base, request, warm)


def test_a_remix_keeps_what_its_words_do_not_change() -> None:
    base = made("fox --lora x --interval 0.3-0.5 --sampler euler")
    kept = remix(base, "wolf")
    assert (kept.loras, kept.guidance_start, kept.sampler) == (base.loras, 0.3, "euler")
    other = remix(base, "wolf <lora:y:2> --interval 0-1 --fast")
    assert (other.loras, other.guidance_stop, other.sampler, other.steps) == (
        (Lora("y", 2.0, ""),), 1.0, "dpmpp_2m", 30,
    )  # fmt: skip
    assert remix(base, "wolf --lora none").loras == ()
    assert remix(base, "wolf --sampler heun").guidance_stop == 1.0
    with pytest.raises(Refused, match="draws no variations"):
        remix(varied(base, 0, 0.2, 9), "wolf --sampler heun")
    with pytest.raises(Refused, match="takes ddpm and ddim"):
        remix(base, "wolf --sampler unipc", PLAIN)


def test_a_recipe_made_again_takes_the_loras_as_they_are_now_and_says_so() -> None:
    base = made("fox --lora style-v2:0.5 --sampler euler")
    assert renewed(base, Profile(WARM, DEFAULT_POOL, True)) == (base, ())
    now = msgspec.structs.replace(WARM, loras=(Lora("Style-v2", 1.0, "new"),))
    again, said = renewed(base, Profile(now, DEFAULT_POOL, True))
    assert again.loras == (Lora("Style-v2", 0.5, "new"),)
    assert said == ("Made with another version of the LoRA Style-v2: it will differ.",)
    for gone in (PLAIN, msgspec.structs.replace(WARM, samplers=("ddpm",))):
        with pytest.raises(Refused):
            renewed(base, Profile(gone, DEFAULT_POOL, True))


@pytest.mark.parametrize(
    "text", ["(red:1.2) fox", "((red)) [fox]", "a (very (red:0.9) fox:1.3)", r"a fox \(animal\)", "(red,fox:.8)"]
)
def test_emphasis_stays_in_the_words_for_the_engine(text: str) -> None:
    assert [part.text for part in made(text).concepts] == [text]
    assert made(f"{text}:: snow::-0.5 --no (fog:1.2)").concepts[0].text == text
    assert made(f"{text} --no (fog:1.2)").negative == "(fog:1.2)"


def test_emphasis_stands_beside_braces_and_in_no_title() -> None:
    parsed = parse("({red,blue}:1.2) [fox]::2 sea", WARM)
    assert [one.concepts[0].text for one in parsed.requests] == ["(red:1.2) [fox]", "(blue:1.2) [fox]"]
    assert title("a (red:1.2) [fox] --no ((fog)) --seed 7") == "a red fox (no fog)"
    assert bare(r"g(o:1.3)re \(plain\) at 10:30") == "gore (plain) at 10:30"


@quick
@given(st.text("ab ()[]:\\1.2", max_size=40))
def test_words_without_emphasis_have_none_left(text: str) -> None:
    assert not set("()[]") & set(bare(text.replace("\\", "")))
    assert bare("fox" + text.translate(dict.fromkeys(map(ord, "()[]\\")))).startswith("fox")


def test_a_long_prompt_is_measured_without_its_emphasis() -> None:
    words = " ".join(f"(word{n}:1.2)" for n in range(40))
    assert remarks(parse(words, None).requests[0], WARM) == ()
    assert remarks(parse(words + words, None).requests[0], WARM) != ()


def test_few_steps_are_no_shortcoming_of_a_model_that_was_made_for_them() -> None:
    (request,) = parse("fox", None).requests
    assert remarks(request, QUICK) == ()
    slow = msgspec.structs.replace(WARM, steps=40)
    assert remarks(replace(request, sampler="ddpm"), slow) != ()
    assert remarks(replace(request, sampler="dpmpp_2m_karras"), slow) == ()


PIECES = ["--sampler ", "--lora ", "<lora:", ">", ":", "x", "0.5", "--interval ", "euler a", " ", "-", "(", ")", "::",
          ",", "karras", '"']  # fmt: skip


@quick
@given(st.lists(st.sampled_from(PIECES), max_size=30).map("".join))
def test_anything_becomes_a_recipe_of_the_contract_or_one_sentence(text: str) -> None:
    try:
        found: Recipe | Refused = made("fox " + text)
    except Refused as refused:
        found = refused
    if isinstance(found, Refused):
        said = found.sentence
        assert 0 < len(said) <= 500
        assert said.isprintable()
