"""Weighted words and long texts: any text can be read, and text without brackets is encoded as before."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.fixtures.small_pipelines import PIPELINE_BUILDERS
from bot.prompt.concepts import remove_emphasis
from engine.batching.engine import Engine
from engine.contract import Concept
from engine.models import prompt_chunks
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.registry import find_families
from engine.prompt.emphasis import MAX_WEIGHT, split_by_weight, strip_emphasis
from engine.sampling import build_scheduler
from shared.small_families import by_engine, error

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

Make = Callable[..., Any]
BRACKET_TEXTS = st.text(alphabet="ab ()[]:\\.,-+19é\n", max_size=60)


@pytest.fixture(scope="module")
def load_family() -> Callable[[str], Any]:
    """A family around a small pipeline of a kind."""
    families: dict[str, Any] = {}

    def family(kind: str) -> Any:
        if kind not in families:
            torch.manual_seed(0)
            pipeline = PIPELINE_BUILDERS[kind]()
            pipeline.set_progress_bar_config(disable=True)
            families[kind] = find_families().get(type(pipeline).__name__, StableDiffusion)(pipeline, kind, "r1")
        return families[kind]

    return family


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a (word)", [("a ", 1.0), ("word", 1.1)]),
        ("((word))", [("word", 1.1 * 1.1)]),
        ("(word:1.2), b", [("word", 1.2), (", b", 1.0)]),
        ("(word: .5 )", [("word", 0.5)]),
        ("(word:-1)", [("word", -1.0)]),
        ("[word]", [("word", 1 / 1.1)]),
        ("[(a:1.5) b]", [("a", 1.5 / 1.1), (" b", 1 / 1.1)]),
        ("(a (b:2) c:0.5)", [("a ", 0.5), ("b", 1.0), (" c", 0.5)]),
        ("(two words\nand lines:1.3)", [("two words\nand lines", 1.3)]),
        ("(猫:1.3)", [("猫", 1.3)]),
    ],
)
def test_brackets_weight_the_words_inside(text: str, expected: list[tuple[str, float]]) -> None:
    parts = split_by_weight(text)
    assert [part.text for part in parts] == [words for words, _ in expected]
    assert [part.weight for part in parts] == pytest.approx([weight for _, weight in expected])


@pytest.mark.parametrize(
    "text",
    ["", "a cat", "a cat :)", ":( sad", "a) b(", "f() and []", "((((", "(a]", "a: b", "(open:1.2", "C:\\x", "1:2)"],
)
def test_unmatched_brackets_are_plain_characters(text: str) -> None:
    assert list(split_by_weight(text)) == [(text, 1.0)]


@pytest.mark.parametrize("text", ["(4:3)", "(12:30)", "(16 : 9)", "(red:99)", "(a: b)", "(:1.2)"])
def test_a_number_that_is_no_weight_is_text(text: str) -> None:
    assert list(split_by_weight(text)) == [(text[1:-1], 1.1)]


def test_escaped_brackets_are_plain_characters() -> None:
    assert list(split_by_weight(r"a \(b\) \[c\] \\ (d)")) == [("a (b) [c] \\ ", 1.0), ("d", 1.1)]


@given(BRACKET_TEXTS | st.text(max_size=40))
def test_any_text_can_be_read(text: str) -> None:
    parts = split_by_weight(text)
    assert parts
    assert all(abs(part.weight) <= MAX_WEIGHT for part in parts)
    assert all(one.weight != other.weight for one, other in pairwise(parts))
    assert re.sub(r"[()\[\]\\:.\d\s+-]", "", strip_emphasis(text)) == re.sub(r"[()\[\]\\:.\d\s+-]", "", text)


@given(BRACKET_TEXTS)
def test_escaped_text_comes_back_unchanged(text: str) -> None:
    assert list(split_by_weight(re.sub(r"([()\[\]\\])", r"\\\1", text))) == [(text, 1.0)]


@given(st.text(alphabet="abc :.,1", max_size=30))
def test_text_without_brackets_is_unchanged(text: str) -> None:
    assert list(split_by_weight(text)) == [(text, 1.0)]


@given(st.lists(st.sampled_from(["()", "[]", ":1.5", ":0.8"]), max_size=5))
def test_nested_weights_multiply(brackets: list[str]) -> None:
    text = "word"
    weight = 1.0
    for each in brackets:
        text = f"{each[0]}{text}{each[1]}" if each in ("()", "[]") else f"({text}{each})"
        weight *= {"()": 1.1, "[]": 1 / 1.1}.get(each) or float(each[1:])
    assert split_by_weight(text)[0] == ("word", pytest.approx(weight))


WORDS = st.text(alphabet="ab é", min_size=1, max_size=4).map(lambda word: f"{word}x")
NUMBERS = (
    st.floats(-12, 12).map("{:.3f}".format)
    | st.from_regex(r"[+-]?\d{0,4}\.?\d{0,9}", fullmatch=True)
    | st.sampled_from(["1.0000000", "10", "10.0", "10.01", "٢", "1.٢", " 1.2 ", "+.5", "00001", "1."])
)
WEIGHTED_TEXTS = st.recursive(
    WORDS | st.sampled_from([r"\(", r"\]", r"\\"]),
    lambda inner: (
        inner.map(lambda text: f"({text}x)")
        | inner.map(lambda text: f"[{text}x]")
        | st.builds(lambda text, number: f"({text}x:{number})", inner, NUMBERS)
        | st.builds(str.__add__, inner, inner)
    ),
    max_leaves=8,
)


@settings(max_examples=300)
@given(WEIGHTED_TEXTS)
def test_the_word_filter_reads_what_the_engine_reads(text: str) -> None:
    """This holds for closed brackets around words. Brackets that are characters to the engine may be removed too."""
    assert remove_emphasis(text) == strip_emphasis(text)


@pytest.mark.parametrize("number", ["1.0000000", "00000001", "٢", "1.٢"])
def test_a_number_that_the_word_filter_keeps_is_text_to_the_engine(number: str) -> None:
    text = f"g(or:{number})e"
    assert strip_emphasis(text) == remove_emphasis(text) == f"gor:{number}e"


def clamp_product(factors: list[float]) -> float:
    weight = 1.0
    for factor in factors:
        weight = max(-MAX_WEIGHT, min(MAX_WEIGHT, weight * factor))
    return weight


@given(st.lists(st.sampled_from(["10", "9", "-3", "0.1", "0.01", "0", "-0.5", "1.1"]), max_size=12))
def test_nested_factors_are_clamped_from_the_inside_out(numbers: list[str]) -> None:
    text = "word"
    for number in numbers:
        text = f"({text}:{number})"
    assert split_by_weight(text)[0] == ("word", pytest.approx(clamp_product([float(number) for number in numbers])))


@pytest.mark.sampled
@pytest.mark.parametrize(
    "shape",
    [
        lambda n: "(" * n + "a" + ")" * n,
        lambda n: "(" * n + "a" + ":1.1)" * n,
        lambda n: "[" * n + "a" + ")" * n,
        lambda n: "([" * n + "a" + ")" * n,
        lambda n: "(a" * n + ")" * n,
        lambda n: "(" * n + "4" + ":3)" * n,
        lambda n: "(" * n + "(a:0)" + ":10)" * n,
    ],
)
def test_reading_time_grows_linearly_with_the_text(shape: Callable[[int], str]) -> None:
    """Sixteen times the text takes about sixteen times as long. Quadratic reading would take 256 times."""

    def seconds(text: str) -> float:
        best_seconds = float("inf")
        for _ in range(5):
            split_by_weight.cache_clear()
            started_at = time.process_time()
            split_by_weight(text)
            best_seconds = min(best_seconds, time.process_time() - started_at)
        return best_seconds

    assert seconds(shape(8000)) < 64 * seconds(shape(500))


def make_recipe_for(make: Make, family: Any, *texts: str, **fields: Any) -> Any:
    side = min(64, family.size)
    defaults: dict[str, Any] = {
        "model": family.name,
        "sampler": "ddim" if family.name == "sd" else "euler",
        "steps": 2,
        "width": side,
        "height": side,
        "guidance_kind": family.guides,
        "guidance": 3.0,
    }
    return make(*texts, **(defaults | fields))


def encode_with_pipeline(family: Any, text: str) -> torch.Tensor:
    """The pipeline's own states of a text that fits."""
    with torch.inference_mode():
        return family.pipeline.encode_prompt(
            text, device=family.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )[0][0]


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_text_without_weights_is_encoded_as_by_the_pipeline(
    load_family: Make, recipe: Make, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = load_family(kind)
    expected = encode_with_pipeline(family, "a cat")
    for text in ("a cat", "(a cat:1.0)", "((a cat:0.5):2)"):
        assert torch.equal(family.encode_conditioning(text, make_recipe_for(recipe, family, text))[0], expected)
    family.text_cache.clear()
    monkeypatch.setattr(prompt_chunks, "is_plain", lambda parts: False)  # the path with weights gives the same bits
    assert torch.equal(family.encode_conditioning("a cat", make_recipe_for(recipe, family, "a cat"))[0], expected)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_the_tokens_of_a_weighted_word_are_multiplied(load_family: Make, recipe: Make, kind: str) -> None:
    family = load_family(kind)
    text = "a (bc:1.5) [d]"
    weighted_states = family.encode_conditioning(text, make_recipe_for(recipe, family, text))
    unweighted_states = encode_with_pipeline(family, "a bc d")
    weights = torch.ones(len(unweighted_states), 1)
    # after the start and "a": a letter is a token
    weights[2:4] = 1.5
    weights[4] = 1 / 1.1
    expected = unweighted_states * weights
    if kind == "sd":
        expected *= unweighted_states.mean() / expected.mean()
    torch.testing.assert_close(weighted_states[0], expected)
    if kind == "sdxl":
        assert torch.equal(weighted_states[1], family.encode_conditioning("a bc d", make_recipe_for(recipe, family))[1])


def test_a_mean_near_zero_does_not_blow_up_the_states(load_family: Make, recipe: Make) -> None:
    family = load_family("sd")
    for text in ("(a:-10) b", "(a cat:10)", "(a:0) (b:0)"):
        states = family.encode_conditioning(text, make_recipe_for(recipe, family, text))[0]
        assert float(states.abs().max()) <= 20 * float(encode_with_pipeline(family, "a cat").abs().max())


@pytest.mark.parametrize(
    "kind", ["sd3", "flux", "zimage", "sana", "flux2_klein", "chroma", "qwen_image", "lumina2", "pixart", "hidream"]
)
def test_families_without_word_weights_drop_the_brackets(load_family: Make, recipe: Make, kind: str) -> None:
    family = load_family(kind)
    for text in ("(a cat:1.5)", "[a] (cat)", r"a cat"):
        conditioning = family.encode_conditioning(text, make_recipe_for(recipe, family, text))
        for actual, expected in zip(
            conditioning, family.encode_conditioning("a cat", make_recipe_for(recipe, family)), strict=True
        ):
            assert torch.equal(actual, expected)


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_a_long_text_is_read_in_chunks(load_family: Make, recipe: Make, kind: str) -> None:
    family = load_family(kind)
    size = prompt_chunks.get_chunk_capacity(family.pipeline.tokenizer)
    assert family.tokens == 3 * size
    letters = "a b c d e f g h i j " * 30  # a word is a token
    for words, count in ((2 * size + 3, 3), (size + 1, 2), (size, 1), (290, 3)):
        text = letters[: 2 * words]
        states = family.encode_conditioning(text, make_recipe_for(recipe, family, text))[0]
        parts = [letters[2 * index * size : 2 * min(words, (index + 1) * size)] for index in range(count)]
        assert torch.equal(states, torch.cat([encode_with_pipeline(family, part) for part in parts]))


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_all_texts_of_an_image_are_padded_to_one_length(load_family: Make, recipe: Make, kind: str) -> None:
    family = load_family(kind)
    size = prompt_chunks.get_chunk_capacity(family.pipeline.tokenizer)
    long_text = "a " * (size + 3)
    two_concepts = make_recipe_for(recipe, family, concepts=(Concept(long_text), Concept("a cat")), negative="a dog")
    shapes = {family.encode_conditioning(text, two_concepts)[0].shape for text in (long_text, "a cat")}
    shapes.add(family.encode_conditioning("a dog", two_concepts, negative=True)[0].shape)
    shapes.add(family.encode_conditioning("", two_concepts, negative=True)[0].shape)
    assert [shape[0] for shape in shapes] == [2 * (size + 2)]
    padded_states = family.encode_conditioning("a cat", two_concepts)[0]
    assert torch.equal(
        padded_states, torch.cat([encode_with_pipeline(family, "a cat"), encode_with_pipeline(family, "")])
    )
    long_negative = make_recipe_for(recipe, family, "a cat", negative=long_text)
    assert len(family.encode_conditioning("a cat", long_negative)[0]) == 2 * (size + 2)
    unused_negative = make_recipe_for(recipe, family, "a cat", negative=long_text, guidance=1.0)
    assert len(family.encode_conditioning("a cat", unused_negative)[0]) == size + 2


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
def test_jobs_with_long_and_short_prompts_each_match_their_run_alone(
    load_family: Make, recipe: Make, job: Make, finish: Make, kind: str
) -> None:
    """The long one also matches the pipeline with the same text states."""
    family = load_family(kind)
    long_text = "a b c d e f g h " * 9
    jobs = [job(make_recipe_for(recipe, family, text), user=text[:5]) for text in (long_text, "a cat", "(a:1.4) cat")]
    single_runs = [by_engine(family, each.task, job, finish)[0] for each in jobs]
    engine = Engine({kind: family})
    for each in jobs:
        engine.add(each)
    shared_latents = finish(engine)
    for each, expected in zip(jobs, single_runs, strict=True):
        assert error(shared_latents[each.id, 0], expected) <= 1e-5
    assert error(single_runs[0], draw_with_pipeline(family, jobs[0].task)) <= 1e-4


@pytest.mark.parametrize("kind", ["sd", "sdxl"])
@pytest.mark.parametrize("text", ["a (b:1.5) cat", "a b c d e f g h " * 9])
def test_a_whole_pipeline_uses_the_same_text_states(
    load_family: Make, recipe: Make, job: Make, finish: Make, kind: str, text: str
) -> None:
    family = load_family(kind)
    one = make_recipe_for(recipe, family, text, sampler="heun", negative="a [dog]")
    (actual,) = by_engine(family, one, job, finish)
    assert error(actual, draw_with_pipeline(family, one)) <= 1e-4
    unweighted_states = make_recipe_for(recipe, family, "a b cat", sampler="heun", negative="a dog")
    assert error(actual, by_engine(family, unweighted_states, job, finish)[0]) > 1e-4


def draw_with_pipeline(family: Any, recipe: Any) -> torch.Tensor:
    """The pipeline's own latents; it takes states of any length."""
    pipeline: Any = type(family.pipeline)(**family.pipeline.components)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = build_scheduler(family.scheduler_config, recipe.sampler)
    conditioning = family.encode_conditioning(recipe.concepts[0].text, recipe)
    empty = family.encode_conditioning(recipe.negative, recipe, negative=True)
    names = ("prompt_embeds", "pooled_prompt_embeds")
    states = {
        name: part[None] for name, part in zip(names, conditioning[: 2 if family.name == "sdxl" else 1], strict=False)
    }
    states |= {f"negative_{name}": part[None] for (name, _), part in zip(list(states.items()), empty, strict=False)}
    return pipeline(
        num_inference_steps=recipe.steps,
        guidance_scale=recipe.guidance,
        width=recipe.width,
        height=recipe.height,
        output_type="latent",
        generator=torch.Generator().manual_seed(recipe.seed),
        **states,
    ).images[0]


def test_the_embedded_model_weights_words_and_reads_24_tokens(embedded: StableDiffusion, recipe: Make) -> None:
    """The model was trained on no more tokens, so more would be noise to it."""
    unweighted_states = embedded.encode_text("apple, blue background")
    weighted_states = embedded.encode_text("apple, (blue:1.5) background")
    assert weighted_states.shape == embedded.encode_text("very " * 60).shape == (24, 384)
    factor = (weighted_states / unweighted_states).nan_to_num(1.0).median(dim=1).values
    assert factor.tolist() == pytest.approx([1.0] * 3 + [1.5] + [1.0] * 20)
    assert torch.equal(embedded.encode_text("(very:1.0) red"), embedded.encode_text("very red"))
