"""The lab: it parses and mixes sums of words, samples as the engine does, and its experiments show what they claim."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from engine.batching.engine import Engine
from engine.contract import Concept, JobRejected
from engine.models.families.stable_diffusion import StableDiffusion
from engine.models.text_embedder import Embedder
from training.diffusion import latent_sampling
from training.diffusion.latent_sampling import SamplingInput
from training.lab import tensor_math
from training.lab.__main__ import main
from training.lab.context import ExperimentResult, LabContext, write_result
from training.lab.experiments import (
    Tile,
    blend_pictures,
    compose_drawing,
    crop_square,
    draw_mix,
    draw_sheet,
    draw_weight_steps,
    interpolate_prompts,
    open_picture,
    show_forward_process,
    show_round_trip,
    to_ascii,
    to_tensor,
)
from training.lab.lesson import draw_apple, draw_cat, write_lesson
from training.lab.vocabulary import LabVocabulary, find_nearest_words, read_vocabulary
from training.lab.word_sums import MAX_TERMS, Term, format_sum, parse_sum

WORDS = ("queen", "king", "prince", "kitten", "carrot", "rocket", "banana", "snowman", "woman", "grape")
few_examples = settings(max_examples=60, deadline=None)
seeds = st.integers(0, 2**31 - 1)
weights = st.floats(-3, 3, allow_nan=False).map(lambda value: round(value, 3))


def random_states(seed: int, count: int = 1) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 8, generator=generator) for _ in range(count)]


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder()


@pytest.fixture
def small(affine: Any) -> LabContext:
    return LabContext(affine, steps=4, guidance=2.0, seed=7)


# --- sums of words

phrases = st.text(st.characters(codec="utf-8", exclude_characters='"“”'), min_size=1, max_size=40).map(
    lambda text: " ".join("".join(mark if mark.isprintable() else " " for mark in text).split())
)
terms = st.builds(Term, phrases.filter(bool), weights)


@given(st.lists(terms, min_size=1, max_size=MAX_TERMS))
@few_examples
def test_parsing_a_formatted_sum_returns_the_same_terms(sum_terms: list[Term]) -> None:
    assert parse_sum(format_sum(sum_terms)) == tuple(sum_terms)


@pytest.mark.parametrize(
    ("typed_text", "expected_terms"),
    [
        ("royalty + woman - man", [("royalty", 1), ("woman", 1), ("man", -1)]),
        ("cat+dog", [("cat", 1), ("dog", 1)]),
        ("1.5*cat − .5 × x-ray", [("cat", 1.5), ("x-ray", -0.5)]),
        ('- man + "rock - paper"', [("man", -1), ("rock - paper", 1)]),
        ("+ “a + b”", [("a + b", 1)]),
        ("3 cats", [("3 cats", 1)]),
    ],
)
def test_sums_are_parsed_into_weighted_terms(typed_text: str, expected_terms: list[tuple[str, float]]) -> None:
    assert [(term.text, term.weight) for term in parse_sum(typed_text)] == expected_terms


@pytest.mark.parametrize(
    ("typed_text", "sentence"),
    [
        ("", "The sum is empty"),
        ("cat +", "no words after the last"),
        ("cat + - dog", "no words between two signs"),
        ("2* + dog", "no words for the weight 2"),
        ('cat + "dog', "is not closed"),
        ('big "cat"', "must be a whole term"),
        ("99*cat", "more than 10"),
        (" + ".join("abcdefghi"), "may have 8 terms; this one has 9"),
        ("x" * 201, "may have 200 characters"),
        ("x" * 10_000, "too long"),
    ],
)
def test_an_invalid_sum_is_refused_in_one_sentence(typed_text: str, sentence: str) -> None:
    with pytest.raises(JobRejected, match=sentence) as error:
        parse_sum(typed_text)
    assert error.value.blame == "member"
    assert "\n" not in error.value.sentence


# --- mixing


@given(seeds)
@few_examples
def test_a_mix_of_one_term_is_that_term_and_an_empty_mix_the_empty_text(seed: int) -> None:
    empty, one = random_states(seed, 2)
    assert torch.allclose(tensor_math.mix_states(empty, [one], [1.0]), one, atol=1e-6)
    assert torch.equal(tensor_math.mix_states(empty, [], []), empty)
    assert torch.equal(tensor_math.mix_states(empty, [one], [0.0]), empty)


@given(seeds, st.lists(weights, min_size=1, max_size=5), st.randoms())
@few_examples
def test_a_mix_ignores_order_and_with_weights_that_sum_to_one_the_empty_text(
    seed: int, term_weights: list[float], random: Any
) -> None:
    empty, other, *texts = random_states(seed, 2 + len(term_weights))
    pairs = list(zip(texts, term_weights, strict=True))
    random.shuffle(pairs)
    mixed_states = tensor_math.mix_states(empty, [text for text, _ in pairs], [weight for _, weight in pairs])
    assert torch.allclose(tensor_math.mix_states(empty, texts, term_weights), mixed_states, atol=1e-5)
    all_weights = [*term_weights, 1 - math.fsum(term_weights)]
    expected_sum = torch.stack(
        [text * weight for text, weight in zip([*texts, texts[0]], all_weights, strict=True)]
    ).sum(0)
    for base in (empty, other):
        assert torch.allclose(tensor_math.mix_states(base, [*texts, texts[0]], all_weights), expected_sum, atol=1e-4)


@given(
    st.lists(weights, min_size=1, max_size=6).filter(lambda term_weights: max(term_weights) > 0.01), st.floats(0.1, 5)
)
@few_examples
def test_balanced_weights_ignore_scale_and_their_positive_part_sums_to_one(
    term_weights: list[float], scale: float
) -> None:
    balanced_weights = tensor_math.balance_weights(term_weights)
    assert math.fsum(weight for weight in balanced_weights if weight > 0) == pytest.approx(1)
    assert tensor_math.balance_weights([scale * weight for weight in term_weights]) == pytest.approx(balanced_weights)


def test_weights_without_a_positive_one_cannot_be_balanced() -> None:
    with pytest.raises(ValueError, match="no weight is positive"):
        tensor_math.balance_weights([-1.0, 0.0])


@given(seeds, st.floats(0, 1))
@few_examples
def test_interpolation_on_an_arc_keeps_lengths_and_hits_both_ends(seed: int, position: float) -> None:
    a, b = random_states(seed, 2)
    a = 3 * a / a.norm()
    b = 3 * b / b.norm()
    assert float(tensor_math.interpolate_on_arc(a, b, position).norm()) == pytest.approx(3, abs=1e-3)
    interpolated = tensor_math.interpolate_on_arc(a, 2 * b, position)
    assert float(interpolated.norm()) == pytest.approx(3 + 3 * position, abs=1e-3)
    for end_share, end in ((0.0, a), (1.0, b)):
        assert torch.allclose(tensor_math.interpolate_on_arc(a, b, end_share), end, atol=1e-5)
        assert torch.allclose(tensor_math.interpolate_states(a, b, end_share), end, atol=1e-5)
    tokens = tensor_math.interpolate_states(a, b, position).norm(dim=-1)
    assert torch.allclose(tokens, (1 - position) * a.norm(dim=-1) + position * b.norm(dim=-1), atol=1e-3)
    assert torch.equal(tensor_math.interpolate_on_arc(torch.zeros(3), torch.ones(3), 0.5), torch.full((3,), 0.5))


def test_psnr_follows_its_definition() -> None:
    black = torch.zeros(4, 4, 3)
    assert tensor_math.psnr(black, black) == math.inf
    assert tensor_math.psnr(black, black + 255) == pytest.approx(0)
    assert tensor_math.psnr(black, black + 2.55) == pytest.approx(40)


# --- sampling


def test_the_lab_draws_the_same_latents_as_the_engine(
    affine: Any, recipe: Callable[..., Any], job: Callable[..., Any], finish: Callable[..., Any]
) -> None:
    """One prompt with guidance, and three weighted concepts as `::` makes them."""
    three_concepts = (Concept("cat", 0.5), Concept("dog", 0.5), Concept("worm", -0.25))
    tasks = [recipe("cat", sampler="ddim", seed=7), recipe(concepts=three_concepts, sampler="ddim", seed=7)]
    engine = Engine({"affine": affine})
    jobs = [job(task) for task in tasks]
    for each in jobs:
        engine.add(each)
    engine_latents = finish(engine)
    lab = LabContext(affine, steps=10, guidance=2.0, seed=7)
    texts = [affine.encode_text(text) for text in ("cat", "dog", "worm")]
    drawings = [
        lab.make_drawing(texts[0], lab.initial_noise()),
        compose_drawing(lab, texts, (2, 2, -1), lab.initial_noise()),
    ]
    lab_latents = latent_sampling.sample_latents(affine, lab.plan, drawings)
    for each, lab_latent in zip(jobs, lab_latents, strict=True):
        assert torch.allclose(engine_latents[each.id, 0], lab_latent, atol=1e-5)


def test_batched_drawings_equal_drawings_one_by_one(small: LabContext) -> None:
    drawings = [small.make_drawing(small.family.encode_text(text), small.initial_noise()) for text in "abcdefghijkl"]
    batch_latents = latent_sampling.sample_latents(small.family, small.plan, drawings)
    single_latents = [latent_sampling.sample_latents(small.family, small.plan, [drawing])[0] for drawing in drawings]
    assert torch.allclose(torch.stack(batch_latents), torch.stack(single_latents), atol=1e-6)


def test_larger_latents_use_smaller_batches() -> None:
    for side, sizes in ((4, [8, 2]), (16, [8, 2]), (32, [2] * 5), (64, [1] * 10)):
        one = SamplingInput(torch.zeros(4, side, side), torch.zeros(2, 3, 5), (2.0,))
        assert [len(batch) for batch in latent_sampling._batches([one] * 10, latent_sampling.MAX_ROWS)] == sizes


def test_progress_counts_every_step(small: LabContext) -> None:
    progress: list[tuple[int, int]] = []
    drawings = [small.make_drawing(small.family.encode_text("a"), small.initial_noise())] * 9
    latent_sampling.sample_latents(
        small.family,
        small.plan,
        drawings,
        1,
        lambda done_count, total_count: progress.append((done_count, total_count)),
    )
    assert progress == [(number, 6) for number in range(1, 7)]


def test_numbers_that_are_not_finite_raise_an_error(small: LabContext) -> None:
    text = torch.full((4, 2), math.nan)
    with pytest.raises(JobRejected, match="not finite"):
        latent_sampling.sample_latents(small.family, small.plan, [small.make_drawing(text, small.initial_noise())])


# --- the nearest words


def test_the_nearest_word_of_king_and_woman_without_man_is_queen(embedder: Embedder) -> None:
    vocabulary = LabVocabulary.embed_words(embedder, WORDS)
    words = find_nearest_words(embedder, parse_sum("king + woman - man"), vocabulary, 3)
    assert words[0][0] == "queen"
    assert {"king", "woman", "man"}.isdisjoint(word for word, _ in words)
    assert [cosine for _, cosine in words] == sorted((cosine for _, cosine in words), reverse=True)
    assert find_nearest_words(embedder, parse_sum("fruit + yellow"), vocabulary, 1)[0][0] == "banana"


def test_words_that_cancel_out_have_no_nearest_word(embedder: Embedder) -> None:
    with pytest.raises(JobRejected, match="cancel each other out"):
        find_nearest_words(embedder, parse_sum("cat - cat"), LabVocabulary.embed_words(embedder, WORDS))
    with pytest.raises(JobRejected, match="no other words"):
        find_nearest_words(embedder, parse_sum("cat"), LabVocabulary.embed_words(embedder, ["cat"]))


@pytest.mark.parametrize(
    "content", ["{", "{}", "[]", "[1]", '{"words": "cat"}', '["' + "x" * 300 + '"]', "[" * 100_000]
)
def test_an_invalid_word_list_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "list.json").write_text(content)
    with pytest.raises(JobRejected, match=r"list\.json"):
        read_vocabulary(tmp_path / "list.json")


# --- pictures of members


def test_pictures_open_upright_on_white_with_only_the_first_frame(tmp_path: Path) -> None:
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert open_picture(tmp_path / "clear.png").getpixel((4, 4)) == (255, 255, 255)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by 90 degrees
    Image.new("RGB", (40, 20), (0, 0, 255)).save(tmp_path / "turned.jpg", exif=exif)
    assert open_picture(tmp_path / "turned.jpg").size == (20, 40)
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert open_picture(tmp_path / "moving.gif").getpixel((4, 4)) == (255, 0, 0)
    assert crop_square(Image.new("RGB", (300, 20)), 64).size == (64, 64)


def test_a_picture_that_cannot_be_read_is_refused_in_one_sentence(tmp_path: Path) -> None:
    Image.new("1", (9000, 8000)).save(tmp_path / "huge.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "other.tiff")
    content = (tmp_path / "huge.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[:16] + b"\x00\x00\x00\x40\x00\x00\x00\x40" + content[24:60])
    (tmp_path / "text.png").write_text("no picture")
    for name, sentence in {
        "huge.png": r"huge\.png .*64 million",
        "other.tiff": r"other\.tiff cannot be decoded",
        "cut.png": r"cut\.png cannot be decoded",
        "text.png": r"text\.png cannot be decoded",
        "none.png": r"none\.png cannot be read",
    }.items():
        with pytest.raises(JobRejected, match=sentence):
            open_picture(tmp_path / name)


def test_a_contact_sheet_writes_any_caption_with_the_letters_of_its_font() -> None:
    assert to_ascii("é × “a − b” → 猫") == 'e x "a - b" to ?'
    page = draw_sheet(
        "title",
        [[Tile(draw_apple(), "word " * 99), None], [Tile(draw_cat(), "a cat", is_pixelated=True)]],
        tile_side=100,
    )
    assert page.size == (12 + 2 * 112, page.height)
    assert (
        draw_sheet("title", [[Tile(draw_apple(), "猫")]]).tobytes()
        == draw_sheet("title", [[Tile(draw_apple(), "犬")]]).tobytes()
    )


# --- experiments, with the model of this repository


@pytest.fixture(scope="module")
def lab() -> Callable[[StableDiffusion], LabContext]:
    return lambda family: LabContext(family, steps=2, guidance=3.5, seed=7)


@pytest.mark.slow
def test_all_three_ways_to_mix_one_term_draw_the_same_picture(
    embedded: StableDiffusion, lab: Callable[..., LabContext]
) -> None:
    result = draw_mix(lab(embedded), parse_sum("red apple"), count=1)
    tiles = [result.sheet.crop((12 + n * 204, 60, 12 + n * 204 + 192, 200)) for n in range(3)]
    assert tiles[0].getextrema() != ((255, 255),) * 3
    psnr_values = [tensor_math.psnr(to_tensor(tile), to_tensor(tiles[0])) for tile in tiles[1:]]
    assert min(psnr_values) > 50
    assert result.figures["terms"] == {"red apple": 1.0}


def test_a_sum_with_only_negative_terms_is_refused(small: LabContext) -> None:
    with pytest.raises(JobRejected, match="must have a plus sign"):
        draw_mix(small, parse_sum("- man"))


def test_stairs_start_without_the_last_term(small: LabContext) -> None:
    result = draw_weight_steps(small, parse_sum("cat + 2*blue"))
    assert result.figures["weights"] == [0.0, 0.5, 1.0, 1.5, 2.0]
    first, last = (result.sheet.crop((x, 40, x + 192, 220)).tobytes() for x in (12, 12 + 4 * 204))
    assert first != last
    with pytest.raises(JobRejected, match="before the last must have a plus sign"):
        draw_weight_steps(small, parse_sum("blue"))


def test_stairs_change_only_the_weight_of_the_last_term(small: LabContext, monkeypatch: pytest.MonkeyPatch) -> None:
    drawings_so_far: list[SamplingInput] = []
    render_pictures = LabContext.render_pictures

    def record_drawings(context: LabContext, drawings: Sequence[SamplingInput]) -> list[Image.Image]:
        drawings_so_far.extend(drawings)
        return render_pictures(context, drawings)

    monkeypatch.setattr(LabContext, "render_pictures", record_drawings)
    draw_weight_steps(small, parse_sum("cat + dog - 2*fog + 2*blue"))
    coefficient_rows = [
        [term_weights / small.guidance for term_weights in one.coefficients] for one in drawings_so_far[-5:]
    ]
    assert [coefficients[:3] for coefficients in coefficient_rows] == [pytest.approx([0.5, 0.5, -1])] * 5
    assert [coefficients[3] for coefficients in coefficient_rows] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


@pytest.mark.parametrize("seeds", [(-1, 2), (1, 2**32), (2**70, 1)])
def test_an_interpolation_refuses_seeds_outside_the_bots_range(small: LabContext, seeds: tuple[int, int]) -> None:
    with pytest.raises(JobRejected, match="A seed is a number from 0 to 4294967295"):
        interpolate_prompts(small, "a", "b", 2, seeds)


@pytest.mark.parametrize(
    ("strength", "steps", "is_recorded"), [(0.0, 0, False), (0.1, 0, False), (0.5, 2, True), (1.0, 4, True)]
)
def test_a_blend_runs_as_many_steps_as_its_strength_asks(
    strength: float, steps: int, is_recorded: bool, small: LabContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    total_counts: list[int] = []
    recording_lab = replace(small, steps=4, on_step=lambda _done, total_count: total_counts.append(total_count))
    result = blend_pictures(recording_lab, draw_apple(), draw_cat(), strength=strength)
    assert (result.figures["steps"], bool(total_counts), {*total_counts} - {steps}) == (steps, is_recorded, set())


def test_an_unwritable_folder_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("training.lab.__main__.open_context", None)
    for output_folder in (tmp_path / "file", tmp_path / "file" / "below", Path("/proc")):
        assert main(["mix", "cat", "--out", str(output_folder)]) == 2
        assert "Nothing can be written to" in capsys.readouterr().err


def test_an_experiment_never_overwrites_earlier_results(tmp_path: Path) -> None:
    (tmp_path / "mix.png").mkdir()  # a folder also counts as an existing result
    for grey in (10, 20):
        write_result(
            ExperimentResult("mix", Image.new("RGB", (8, 8), (grey,) * 3), "It is grey."), tmp_path, as_json=False
        )
    colours = [Image.open(tmp_path / name).getpixel((0, 0)) for name in ("mix-2.png", "mix-3.png")]
    assert colours == [(10, 10, 10), (20, 20, 20)]


@pytest.mark.slow
def test_an_interpolation_starts_and_ends_with_its_prompts(
    embedded: StableDiffusion, lab: Callable[..., LabContext]
) -> None:
    small_lab = lab(embedded)
    result = interpolate_prompts(small_lab, "sun, blue background", "moon, black background", frames=3)
    assert len(result.frames) == 4
    texts = [embedded.encode_text(text) for text in ("sun, blue background", "moon, black background")]
    end_pictures = small_lab.render_pictures(
        [small_lab.make_drawing(text, small_lab.initial_noise()) for text in texts]
    )
    for frame, expected in zip((result.frames[0], result.frames[2]), end_pictures, strict=True):
        assert tensor_math.psnr(to_tensor(frame), to_tensor(expected)) > 45
    between_seeds = interpolate_prompts(small_lab, "sun", "sun", frames=2, seeds=(1, 2))
    assert between_seeds.figures["seeds"] == [1, 2]
    assert between_seeds.frames[0].tobytes() != between_seeds.frames[1].tobytes()


def test_a_round_trip_restores_the_picture_from_a_sixth_of_its_numbers(
    embedded: StableDiffusion, lab: Callable[..., LabContext]
) -> None:
    result = show_round_trip(lab(embedded), draw_cat())
    assert (result.figures["pixels"], result.figures["latents"]) == (12288, 2048)
    assert float(str(result.figures["psnr"])) > 18
    assert "6 times fewer" in result.summary


@pytest.mark.slow
def test_the_blend_and_the_forward_process_return_their_figures(
    embedded: StableDiffusion, lab: Callable[..., LabContext]
) -> None:
    result = blend_pictures(lab(embedded), draw_apple(), draw_cat(), share=0.0, strength=0.0)
    assert result.figures["share"] == 0.0
    one, average = (result.sheet.crop((x, 60, x + 190, 200)) for x in (13, 13 + 204))
    assert one.tobytes() == average.tobytes()
    forward_figure = show_forward_process(lab(embedded), draw_cat(), "cat face")
    levels: Any = forward_figure.figures["levels"]
    assert [each["sigma"] for each in levels] == sorted(each["sigma"] for each in levels)
    assert (len(levels), levels[-1]["alpha"]) == (8, pytest.approx(0, abs=1e-6))


# --- the command line and the lesson


def test_the_mix_command_writes_a_contact_sheet_and_prints_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["mix", "red + apple", "--steps", "2", "--count", "1", "--out", str(tmp_path), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert output["terms"] == {"red": 1.0, "apple": 1.0}
    with Image.open(output["files"][0]) as picture:
        assert picture.format == "PNG"
        assert picture.width == 12 + 4 * 204


def test_the_nearest_command_prints_the_nearest_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "list.json").write_text(json.dumps({"words": WORDS}))
    assert main(["nearest", "king + woman - man", "--words", str(tmp_path / "list.json"), "--top", "2", "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["sum"], output["of"], output["nearest"][0]["word"]) == ("king + woman - man", len(WORDS), "queen")


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        (["mix", "a + + b"], "no words between two signs"),
        (["roundtrip", "nowhere.png"], "nowhere.png cannot be read"),
        (["nearest", "cat", "--words", "nowhere.json"], "There is no list of words nowhere.json"),
        (["walk", "a" * 2001, "b", "--model", "embedded"], "2000 characters"),
    ],
)
def test_command_errors_are_one_sentence(args: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(args) == 2
    output = capsys.readouterr().err
    assert sentence in output
    assert output.strip().count("\n") == 0


def test_without_a_command_the_lab_lists_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.strip().startswith("nearest") for line in lines)


@pytest.mark.slow
def test_the_lesson_writes_the_same_page_twice(small: LabContext, embedder: Embedder, tmp_path: Path) -> None:
    pages = [write_lesson(small, embedder, WORDS, tmp_path / each, "lab") for each in ("one", "two")]
    text = pages[0].read_text()
    assert "| `king + woman - man` | queen" in text
    assert "$" not in text
    files = sorted((tmp_path / "one" / "lab").iterdir())
    assert len(files) == 10
    assert all((f"(lab/{file.name})" if file.suffix == ".webp" else f" lab/{file.name}") in text for file in files)
    assert text == pages[1].read_text()
    assert all(file.read_bytes() == (tmp_path / "two" / "lab" / file.name).read_bytes() for file in files)
