"""The evaluation: measures on pictures with known answers, a judge that learns and resumes exactly, and rows."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from benchmarks.report.figure_row import format_json, format_table
from engine.batching.engine import Engine
from engine.contract import Job, Recipe
from engine.models.family import Family
from engine.models.judge import (
    DEFAULT_WIDTHS,
    JudgeNetwork,
    JudgeOutput,
    LabelJudge,
    as_images,
    layer_widths,
    load_judge,
    read_labels,
    save_judge,
)
from engine.process.model_settings import WEIGHTS_FOLDER
from engine.prompt.style_guide import StyleGuide
from engine.worker.local_run import LocalResult
from shared.training_parts import THINGS, WIDTHS, drawing, drawings
from training.__main__ import main
from training.commands import builtin_artwork
from training.commands.evaluate import choose_prompts, write_missed
from training.evaluation import checks, goals, measures, prompt_sheet
from training.evaluation.checks import (
    CHECK_NAMES,
    CHECKS,
    _ssim_row,
    check_grids,
    check_memorisation,
    check_realism,
    check_seeds,
    check_upscaling,
    run_checks,
    subject_mask,
)
from training.evaluation.context import EvaluationContext, InputLoaders, LazyValue, PictureSampler, SampleSizes
from training.evaluation.judge_trainer import (
    JudgeEvaluator,
    JudgeSettings,
    JudgeTrainer,
    augment,
    count_parameters,
    held_back_pairs,
    parse_widths,
    render_pairs,
)
from training.evaluation.prompt_adherence import (
    SEEDS,
    check_backgrounds,
    check_held_out_lemmas,
    check_held_out_words,
    check_hues,
    check_labels,
    find_labels_of_style,
)
from training.evaluation.prompt_sheet import (
    ACCEPTED_LABELS,
    CAPTION_HEIGHT,
    CELL_SIDE,
    FREE_SENTENCES,
    PROMPT_COUNT,
    PROMPT_TEMPLATES,
    choose_mixed_prompts,
    choose_words,
    draw_sheet,
    write_sheet,
)
from training.gan.losses import gradient_energy
from training.pictures.captions import HELD_OUT_WORDS, has_held_out_word
from training.pictures.variants import (
    BACKGROUND_COLOURS,
    FIRST_VALIDATION_NUMBER,
    HUE_DEGREES,
    render_posed,
    render_variant,
)

SMALL = SampleSizes(per_colour=1, per_pair=1, per_word=1, seed_groups=2, guidance_prompts=3)
RGB = tuple[int, int, int]
RED = (220, 30, 30)
BLUE = (45, 105, 220)
LEMMAS = {"terrier": frozenset({"dog"}), "big cat": frozenset({"tiger", "lion"}), "kraken": frozenset({"octopus"})}


def square(colour: RGB, background: RGB = (255, 255, 255), side: int = 64) -> np.ndarray:
    picture = np.full((side, side, 3), background, dtype=np.uint8)
    picture[side // 4 : -side // 4, side // 4 : -side // 4] = colour
    return picture


def judge_trainer(
    settings: JudgeSettings = JudgeSettings(batch=6, warm=2, rate=4e-3, widths="8,16,24"),
) -> JudgeTrainer:
    torch.manual_seed(1)
    vectors = torch.nn.functional.normalize(torch.randn(len(THINGS), 384), dim=1)
    return JudgeTrainer(drawings(), vectors, settings)


class Book:
    """A stand-in for a family: `Copier` looks its pictures up."""

    size = 64
    name = "book"
    guidance = 3.5
    interval = (0.3, 0.8)
    scheduler_config = {}  # noqa: RUF012


class Copier(PictureSampler):
    """A painter that draws what `by_prompt` gives."""

    def __init__(self, by_prompt: Callable[[str, int], np.ndarray], guide: StyleGuide | None = None) -> None:
        super().__init__(Book(), "float32", style_guide=guide)  # pyright: ignore[reportArgumentType]
        object.__setattr__(self, "by_prompt", by_prompt)

    def sample_pictures(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        guidance: float | None = None,
        interval: tuple[float, float] | None = None,
    ) -> np.ndarray:
        prompt_pictures: Any = self.by_prompt  # pyright: ignore[reportAttributeAccessIssue]
        return np.stack([prompt_pictures(prompt, seed) for prompt, seed in zip(prompts, seeds, strict=True)])


class Expert(LabelJudge):
    """A judge with known answers: it compares a picture with the real drawings."""

    def judge_pictures(self, pictures: np.ndarray) -> JudgeOutput:
        originals = measures.shrink(np.stack([render_posed(one) for one in drawings()]))
        small = measures.shrink(pictures)
        similarity = -torch.cdist(small, originals)
        return JudgeOutput(similarity, similarity, torch.nn.functional.normalize(small - 128, dim=1))


def test_a_painter_draws_the_same_latents_as_the_engine(
    affine: Any, recipe: Callable[..., Any], job: Callable[..., Any], finish: Callable[..., Any]
) -> None:
    """A sampler with a history, with guidance and without."""
    words = ("cat", "dog", "a bird")
    for guidance in (1.0, 2.5):
        jobs = [job(recipe(text, sampler="dpmpp_2m", seed=seed, guidance=guidance)) for seed, text in enumerate(words)]
        engine = Engine({"affine": affine})
        for each in jobs:
            engine.add(each)
        engine_latents = finish(engine)
        painter = PictureSampler(affine, "float32", steps=jobs[0].task.steps)
        painter_latents = painter.sample_latents(words, range(len(words)), guidance)
        for each, painter_latent in zip(jobs, painter_latents, strict=True):
            assert torch.allclose(engine_latents[each.id, 0], painter_latent, atol=1e-5)


def test_a_painter_gives_a_prompt_the_style_of_its_seed(affine: Any) -> None:
    painter = PictureSampler(affine, "float32", steps=2)
    styled = replace(painter, style_guide=StyleGuide("3d render", {"flat design": frozenset({"cat"})}))
    latents = styled.sample_latents(["cat", "cat", "dog", "cat, flat design"], [1, 2, 1, 2])
    expected = painter.sample_latents(["cat, flat design", "cat, 3d render", "dog", "cat, flat design"], [1, 2, 1, 2])
    assert torch.equal(latents, expected)


def test_labels_of_a_style_are_those_that_the_judge_recognises_with_every_seed() -> None:
    judge = Expert(JudgeNetwork(len(THINGS), WIDTHS).eval(), THINGS, {})
    asked = list[str]()

    def draw_only_some(prompt: str, seed: int) -> np.ndarray:
        asked.append(prompt)
        label = prompt.partition(",")[0]
        is_drawn = label == THINGS[0] or (label == THINGS[1] and seed < SEEDS[1])
        return render_posed(next(one for one in drawings() if (one.description.label == label) is is_drawn))

    assert find_labels_of_style(Copier(draw_only_some).sample_pictures, judge, "flat design") == {THINGS[0]}
    assert asked == [f"{thing}, white background, flat design" for thing in (*THINGS, *THINGS[:2])]


def test_a_painter_draws_what_people_see_at_the_models_size(
    affine: Any, recipe: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    painter = PictureSampler(affine, "float32", steps=2)
    plain = painter.sample_pictures(["cat"], [1])
    large = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    monkeypatch.setattr(affine, "upscale_factor", 4)
    monkeypatch.setattr(affine, "finish", lambda latents: Image.fromarray(large))
    finished = painter.sample_pictures(["cat"], [1])
    assert finished.shape == plain.shape
    means = large.reshape(32, 4, 32, 4, 3).mean(axis=(1, 3))
    assert abs(finished[0] - means).max() <= 0.5 + 1e-6


def fail_with(sentence: str) -> Callable[[], Any]:
    def make() -> Any:
        raise ValueError(sentence)

    return make


def make_scene(by_prompt: Callable[[str, int], np.ndarray], **other: Any) -> EvaluationContext:
    expert_judge = Expert(JudgeNetwork(len(THINGS), WIDTHS), THINGS, {"at_1": 90.0, "at_5": 95.0})
    loaders: dict[str, Any] = {
        "sampler": lambda: Copier(by_prompt),
        "judge": lambda: expert_judge,
        "artwork": drawings,
        "resolver": fail_with("The super-resolver's weights are not there."),
        "lemmas": lambda: LEMMAS,
    }
    own_loaders = {name: other.pop(f"load_{name}", load) for name, load in loaders.items()}
    fields: dict[str, Any] = {"weights": Path("none"), "sizes": SMALL, **other}
    return EvaluationContext(loaders=InputLoaders(**own_loaders), **fields)


def draw_label(prompt: str, _seed: int = 0) -> np.ndarray:
    """The drawing whose label is in the prompt, on white."""
    matches = [one for one in drawings() if one.description.label in prompt]
    return render_posed(matches[0]) if matches else square(RED)


# --- measures


def test_hue_and_background_of_a_coloured_square_are_recognised() -> None:
    picture = square(RED, BACKGROUND_COLOURS["blue"])
    assert measures.nearest_background(picture) == "blue"
    assert measures.name_subject_hue(picture) == "red"
    assert measures.nearest_background(square(RED, BACKGROUND_COLOURS["teal"])) == "teal"
    assert measures.name_subject_hue(square((128, 128, 128))) is None  # grey has no hue
    assert measures.name_subject_hue(square((255, 255, 255))) is None  # and an empty picture no subject


def test_a_background_is_recognised_behind_a_subject_that_touches_the_edge() -> None:
    picture = square(RED, BACKGROUND_COLOURS["green"])
    picture[:, 24:40] = RED
    assert measures.nearest_background(picture) == "green"


def test_every_named_background_and_hue_is_recognised() -> None:
    assert [measures.nearest_background(square(RED, colour)) for colour in BACKGROUND_COLOURS.values()] == list(
        BACKGROUND_COLOURS
    )
    artwork = drawing("ball", 2)
    for hue in ("red", "green", "blue", "purple"):
        colour = (
            Image.new("HSV", (1, 1), (round(HUE_DEGREES[hue] * 256 / 360), 200, 200)).convert("RGB").getpixel((0, 0))
        )
        assert isinstance(colour, tuple)
        assert measures.name_subject_hue(square((colour[0], colour[1], colour[2]))) == hue
    assert measures.nearest_background(render_variant(artwork, FIRST_VALIDATION_NUMBER, 0).pixels) in BACKGROUND_COLOURS


def test_retrieval_counts_the_wanted_label_among_the_best() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0], [3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0]])
    expected_labels = torch.tensor([0, 1, 0, 2])
    assert measures.retrieval_at(scores, expected_labels, 1) == 25.0
    assert measures.retrieval_at(scores, expected_labels, 2) == 75.0
    assert measures.retrieval_at(scores, expected_labels, 9) == 100.0
    assert measures.retrieval_of_any_at(scores, [[3], [2, 1], [2, 0], [0]], 2) == 50.0


def test_psnr_counts_only_what_is_inside_the_mask() -> None:
    real = np.stack([square(RED)])
    mask = np.zeros((1, 64, 64), dtype=bool)
    mask[:, 16:48, 16:48] = True
    outside_picture = real.copy()
    inside_picture = real.copy()
    outside_picture[:, :8] = 0
    inside_picture[:, 16:48, 16:48, :] = np.array(RED) + np.array([25, 0, 0])
    psnr_of_difference = 10 * np.log10(255**2 * 3 / 25**2)
    assert measures.masked_psnr(real, outside_picture, mask).tolist() == pytest.approx([100])
    assert measures.masked_psnr(real, inside_picture, mask).tolist() == pytest.approx([psnr_of_difference], abs=0.01)
    both_pairs = [np.concatenate(pair) for pair in ((real, real), (inside_picture, real), (mask, np.zeros_like(mask)))]
    assert measures.masked_psnr(*both_pairs).tolist() == pytest.approx(
        [psnr_of_difference], abs=0.01
    )  # an empty mask is not 100 dB
    with pytest.raises(ValueError, match="inside its mask"):
        measures.masked_psnr(real, real, np.zeros_like(mask))


def test_the_mask_covers_the_composed_drawing() -> None:
    artwork = drawing("ball", 0)
    for number in range(FIRST_VALIDATION_NUMBER, FIRST_VALIDATION_NUMBER + 6):
        picture = render_variant(artwork, number, 3).pixels
        mask = subject_mask(artwork, number, 3)
        is_far_from_border = np.abs(picture.astype(int) - measures.border_colour(picture)).max(axis=-1) > 60
        assert mask.any()
        assert (is_far_from_border & ~mask).mean() < 0.03  # apart from the soft edge, the mask covers what differs


def test_equal_pictures_have_no_diversity_and_are_recognised() -> None:
    one = torch.ones(1, 4, 4)
    other = torch.eye(4)[None]
    assert measures.mean_distance(torch.cat([one, other])).tolist() == pytest.approx([0.0, 1.0], abs=1e-6)
    assert measures.has_duplicates(np.stack([square(RED), square(BLUE), square(RED)]))
    assert not measures.has_duplicates(np.stack([square(RED), square(BLUE)]))


def test_a_copied_picture_is_nearest_to_its_original() -> None:
    originals = np.stack([render_posed(one) for one in drawings()])
    distances, index = measures.find_nearest_drawings(originals[[3, 1]], originals)
    assert index.tolist() == [3, 1]
    assert float(distances.max()) < 0.5
    far_distances, _ = measures.find_nearest_drawings(np.stack([square(BLUE, RED)]), originals)
    assert float(far_distances) > 50


def test_overshoot_is_what_goes_beyond_the_step() -> None:
    chart = np.array([[64, 64, 192, 192]])
    assert measures.overshoot(chart, 64, 192) == 0
    assert measures.overshoot(np.array([[61, 64, 192, 199]]), 64, 192) == 7
    assert measures.overshoot(np.array([[50, 64, 192, 199]]), 64, 192) == 14


def test_the_frechet_distance_of_shifted_and_widened_sets_is_known() -> None:
    features = torch.randn(400, 12, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    shift = torch.linspace(-1, 2, 12, dtype=torch.float64)
    assert measures.frechet_distance(features, features) == pytest.approx(0, abs=1e-6)
    assert measures.frechet_distance(features, features + shift) == pytest.approx(float(shift.square().sum()))
    centred = features - features.mean(dim=0)
    variance = float(centred.var(dim=0).sum())
    assert measures.frechet_distance(centred, 3 * centred) == pytest.approx(4 * variance)  # (3 - 1)² of it
    mixed = centred @ torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q * torch.linspace(1, 3, 12).double()
    assert measures.frechet_distance(centred, mixed) == pytest.approx(measures.frechet_distance(mixed, centred))
    with pytest.raises(ValueError, match="two pictures on each side"):
        measures.frechet_distance(features, features[:1])


def test_a_blurred_picture_has_less_gradient_energy() -> None:
    sharp = square(RED)
    blurred = np.array(Image.fromarray(sharp).filter(ImageFilter.GaussianBlur(1)))
    sharp_energy, blurred_energy = (gradient_energy(as_images(picture[None])) for picture in (sharp, blurred))
    assert 0 < blurred_energy < 0.8 * sharp_energy
    assert gradient_energy(as_images(np.full((1, 64, 64, 3), 200, dtype=np.uint8))) == pytest.approx(0)
    step = np.repeat(np.array([[0, 255]], dtype=np.uint8), 2, axis=0)[..., None].repeat(3, axis=2)
    assert gradient_energy(as_images(step[None])) == pytest.approx(255**2 / 2)  # sideways all of it, downwards nothing
    pair = as_images(np.stack([sharp, blurred]))
    assert gradient_energy(pair) == pytest.approx((sharp_energy + blurred_energy) / 2)
    red_step = as_images(step[None] * np.array([1, 0, 0], dtype=np.uint8))
    assert gradient_energy(red_step) == pytest.approx((0.299 * 255) ** 2 / 2)  # luma, not the mean of the channels


def test_the_place_of_the_best_wanted_label_counts_from_one() -> None:
    scores = torch.tensor([[3.0, 2.0, 1.0, 0.0], [0.0, 1.0, 2.0, 3.0]])
    assert measures.best_places(scores, [[2, 1], [0]]) == [2, 4]


# --- the judge


def test_the_judge_learns_its_labels() -> None:
    trainer = judge_trainer()
    look = JudgeEvaluator(trainer, held_back_pairs(trainer.pictures, 4, 0))
    first = trainer.step(0.0)["loss"]
    losses = [trainer.step(0.2)["loss"] for _ in range(40)]
    assert losses[-1] < 0.7 * first
    assert look.evaluate()["at_1"] > 60
    assert all(number >= FIRST_VALIDATION_NUMBER for _, number in look.pairs)


def test_the_judge_resumes_exactly() -> None:
    full_run = judge_trainer()
    interrupted_run = judge_trainer()
    resumed_run = judge_trainer(JudgeSettings(batch=6, warm=2, rate=4e-3, widths="8,16,24"))
    for noise_share in (0.0, 0.1, 0.2, 0.3):
        full_run.step(noise_share)
    for noise_share in (0.0, 0.1):
        interrupted_run.step(noise_share)
    checkpoint = {name: tensor.clone() for name, tensor in interrupted_run.state_tensors().items()}
    interrupted_run.step(0.9)
    resumed_run.restore(checkpoint, 2)
    for noise_share in (0.2, 0.3):
        resumed_run.step(noise_share)
    expected = full_run.state_tensors()
    actual = resumed_run.state_tensors()
    assert expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert resumed_run.samples == 24


def test_measuring_the_judge_does_not_change_it() -> None:
    trainer = judge_trainer()
    trainer.step(0.0)
    before = {name: tensor.clone() for name, tensor in trainer.state_tensors().items()}
    JudgeEvaluator(trainer, held_back_pairs(trainer.pictures, 1, 0)).evaluate()
    assert all(torch.equal(before[name], tensor) for name, tensor in trainer.state_tensors().items())


def test_a_judge_saved_in_half_precision_gives_the_same_scores(tmp_path: Path) -> None:
    trainer = judge_trainer()
    for _ in range(5):
        trainer.step(0.0)
    judge = LabelJudge(trainer.network.eval(), trainer.labels, {"at_1": 70.0, "at_5": 88.0})
    save_judge(judge, tmp_path)
    repeated_result = load_judge(tmp_path)
    pictures = render_pairs(trainer.pictures, [(0, FIRST_VALIDATION_NUMBER), (3, FIRST_VALIDATION_NUMBER)], 0)
    assert repeated_result.labels == read_labels(tmp_path) == THINGS
    assert repeated_result.own_scores == {"at_1": 70.0, "at_5": 88.0}
    assert torch.allclose(
        repeated_result.judge_pictures(pictures).scores, judge.judge_pictures(pictures).scores, atol=0.05
    )
    assert repeated_result.judge_pictures(np.repeat(np.repeat(pictures, 2, axis=1), 2, axis=2)).scores.shape == (
        2,
        len(THINGS),
    )
    listing = json.loads((tmp_path / "labels.json").read_text())
    (tmp_path / "labels.json").write_text(json.dumps({**listing, "labels": listing["labels"][:3]}))
    with pytest.raises(ValueError, match="do not belong to one judge"):
        load_judge(tmp_path)
    for broken_json in ("{", "[]", "{}", json.dumps({**listing, "widths": [8, "16", None]})):
        (tmp_path / "labels.json").write_text(broken_json)
        with pytest.raises(ValueError, match="no list of a judge's labels"):
            load_judge(tmp_path)


def test_a_judge_of_other_widths_is_trained_and_keeps_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def embed(labels: Sequence[str]) -> list[list[float]]:
        return torch.eye(384)[: len(labels)].tolist()

    monkeypatch.setattr("training.commands.builtin_artwork.load_drawings", lambda cache: drawings())
    monkeypatch.setattr("engine.models.text_embedder.Embedder", lambda: embed)
    words = ["judge", "--out", str(tmp_path), "--threads", "1", "--batch", "6"]
    assert main([*words, "--steps", "1", "--widths", "8, 12,16,24"]) == 0
    judge = load_judge(tmp_path)
    assert layer_widths(judge.network) == [8, 12, 16, 24]
    assert judge.judge_pictures(np.stack([square(RED)])).scores.shape == (1, len(THINGS))
    capsys.readouterr()
    assert main([*words, "--steps", "2", "--widths", "8,16"]) == 2
    assert "was begun with --widths 8,12,16,24, not 8,16: leave it out" in capsys.readouterr().err
    assert main([*words, "--steps", "2"]) == 0  # the run keeps its widths
    assert layer_widths(load_judge(tmp_path).network) == [8, 12, 16, 24]


def test_the_size_of_a_judge_is_known_before_it_is_built() -> None:
    network = JudgeNetwork(7, WIDTHS)
    assert count_parameters(7, WIDTHS) == sum(parameter.numel() for parameter in network.parameters())
    assert parse_widths(JudgeSettings().widths) == DEFAULT_WIDTHS


def test_blemishes_depend_only_on_the_seed_and_keep_the_range() -> None:
    pictures = as_images(np.stack([square(RED), square(BLUE)] * 6))
    one, same_pictures, other = (augment(pictures, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(one, same_pictures)
    assert not torch.equal(one, other)
    assert one.shape == pictures.shape
    assert float(one.abs().max()) <= 1


# --- checks


def figures(rows: Sequence[Any]) -> Mapping[str, float]:
    return {row.name: row.figure for row in rows}


def test_a_model_that_copies_hits_all_labels_and_is_reported_as_memorising() -> None:
    scene = make_scene(draw_label)
    own_1, own_5, _, posed_5, at_1, at_5, relative_at_1, relative_figure = check_labels(scene)
    assert relative_at_1.figure == 100
    assert (at_1.figure, at_5.figure) == (100, 100)
    assert own_5.figure
    assert own_1.figure
    assert posed_5.figure == 100  # the judge knows all drawings, but it may miss re-hued renderings
    assert relative_figure.figure == pytest.approx(100 * 100 / posed_5.figure, abs=0.1)
    assert "on white" in relative_figure.note
    assert "6 of 6 labels" in at_5.note
    (memory,) = check_memorisation(scene)
    assert memory.figure == 100
    assert "asked for in 100 %" in memory.note
    assert "drawings themselves, 0 %" in memory.note
    difference, same_seed = check_seeds(scene)
    assert difference.figure == pytest.approx(0, abs=1e-4)
    assert same_seed.figure == 100


def test_a_model_that_draws_noise_memorises_nothing_and_hits_no_hue() -> None:
    def noise(prompt: str, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (64, 64, 3)).astype(np.uint8)

    scene = make_scene(noise)
    assert check_memorisation(scene)[0].figure == 0
    assert figures(check_labels(scene))["label retrieval at 1"] < 50
    assert check_seeds(scene)[1].figure == 0
    assert check_hues(scene)[0].figure == 0


def test_requested_colours_are_hits_and_others_are_misses() -> None:
    def draw_obediently(prompt: str, _seed: int) -> np.ndarray:
        name = prompt.rsplit(", ", 1)[1].removesuffix(" background")
        return square(RED, BACKGROUND_COLOURS[name])

    assert check_backgrounds(make_scene(draw_obediently))[0].figure == 100
    (row,) = check_backgrounds(make_scene(lambda prompt, _: square(RED, BACKGROUND_COLOURS["teal"])))
    assert row.figure == pytest.approx(100 / 12, abs=0.01)
    assert "as teal" in row.note
    (row,) = check_hues(make_scene(lambda prompt, _: square(BLUE)))
    assert row.figure == pytest.approx(100 * 2 / 6, abs=0.01)  # blue apple, blue banana
    assert "green cat as blue" in row.note


def test_the_missed_labels_that_have_a_drawing_in_the_style_are_listed(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prompts: list[str] = []

    def draw(prompt: str, _seed: int) -> np.ndarray:
        prompts.append(prompt)
        return draw_label("tiger" if "cat" in prompt else prompt)

    scene = make_scene(draw, style="flat design")
    missed = tmp_path / "missed.txt"
    write_missed(scene, missed)
    assert missed.read_text() == "cat, flat design\n"
    assert prompts == [f"{label}, flat design, white background" for label in THINGS]
    write_missed(make_scene(draw, style="soft shading"), missed)
    assert missed.read_text() == ""
    assert "0 of 1 missed labels" in capfd.readouterr().err


def test_a_missed_label_is_listed_with_the_style_that_its_seed_gave_it(tmp_path: Path) -> None:
    guide = StyleGuide("3d render", {"flat design": frozenset({"cat", "dog"})})
    painter = Copier(lambda prompt, _seed: draw_label("tiger"), guide)
    scene = make_scene(draw_label, load_sampler=lambda: painter)
    missed = tmp_path / "missed.txt"
    write_missed(scene, missed)
    styles = dict(scene.label_sample().list_missed())
    assert styles == {"apple": "", "car": "", "cat": "3d render", "dog": "flat design", "ship": ""}
    assert missed.read_text() == "dog, flat design\n", "the others have no drawing in three dimensions"


def test_a_held_out_word_is_a_hit_if_an_accepted_label_is_recognised() -> None:
    def draw_with_understanding(prompt: str, _seed: int) -> np.ndarray:
        (word,) = [word for word in ACCEPTED_LABELS if word in prompt]
        return draw_label(next(label for label in THINGS if label in ACCEPTED_LABELS[word]))

    figure, relative_figure = check_held_out_words(make_scene(draw_with_understanding))
    assert figure.figure == 100
    assert relative_figure.figure == 100
    assert "kitten 100" in figure.note
    assert f"{4 * len(ACCEPTED_LABELS)} pictures" in figure.note


def test_a_held_out_lemma_is_a_hit_if_a_label_of_its_meaning_is_recognised() -> None:
    class Contrarian(Expert):
        def judge_pictures(self, pictures: np.ndarray) -> JudgeOutput:
            output = super().judge_pictures(pictures)
            return JudgeOutput(-output.scores, output.sentences, output.features)

    def draw_with_understanding(prompt: str, _seed: int) -> np.ndarray:
        return draw_label({"terrier": "dog", "big cat": "tiger"}[prompt.removesuffix(", white background")])

    (row,) = check_held_out_lemmas(make_scene(draw_with_understanding))
    assert (row.figure, row.note) == (100, "2 of 2 lemmas")  # the judge knows no octopus
    contrarian = Contrarian(JudgeNetwork(len(THINGS), WIDTHS), THINGS, {})
    (row,) = check_held_out_lemmas(make_scene(draw_with_understanding, load_judge=lambda: contrarian))
    assert (row.figure, row.meets_goal) == (0, False)
    assert row.note == "2 of 2 lemmas; missed most: big cat (place 6), terrier (place 6)"
    (row,) = check_held_out_lemmas(make_scene(draw_with_understanding, sizes=SampleSizes(lemma_count=1)))
    assert row.note == "1 of 2 lemmas"


def test_without_wordnet_the_row_of_lemmas_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path / "empty"))
    scene = make_scene(draw_label, load_lemmas=lambda: builtin_artwork.load_held_out_lemmas(tmp_path))
    (row,) = run_checks(scene, ["lemmas"], lambda _: None)
    assert (row.figure, row.note) == (None, "WordNet could not be fetched with npm (FileNotFoundError): install npm.")
    scene = make_scene(draw_label, load_lemmas=lambda: {"kraken": frozenset({"octopus"})})
    (row,) = run_checks(scene, ["lemmas"], lambda _: None)
    assert "None of the held-out lemmas" in row.note


def test_real_drawings_are_real_and_noise_and_blurred_drawings_are_not() -> None:
    torch.manual_seed(1)
    judge = LabelJudge(JudgeNetwork(len(THINGS), WIDTHS).eval(), THINGS, {})

    def check(by_prompt: Callable[[str, int], np.ndarray], **other: Any) -> Sequence[Any]:
        return run_checks(make_scene(by_prompt, load_judge=lambda: judge, **other), ["realism"], lambda _: None)

    def blur(prompt: str, _seed: int) -> np.ndarray:
        return np.asarray(Image.fromarray(draw_label(prompt)).filter(ImageFilter.GaussianBlur(1)))

    def noise(_prompt: str, seed: int) -> np.ndarray:
        return np.random.default_rng(seed).integers(0, 256, (64, 64, 3)).astype(np.uint8)

    real_distance, real_energy = check(draw_label)
    _, blurred_energy = check(blur)
    noise_distance, noise_energy = check(noise)
    assert 0 < 5 * real_distance.figure < noise_distance.figure
    assert real_energy.figure == 1
    assert blurred_energy.figure < 0.85 < noise_energy.figure
    assert not blurred_energy.meets_goal
    assert "6 pictures, 24 renderings of real drawings" in real_distance.note
    assert "are 0.00 apart" in real_distance.note  # there is one drawing of each label, so the halves are equal
    assert "no more pictures than features (320)" in real_distance.note
    assert real_energy.note == "6 pictures, 12 real drawings of the same labels and size; by style: flat design 1.00"
    assert all(row.figure is None and "npm" in row.note for row in check(draw_label, load_artwork=fail_with("no npm.")))


def test_larger_pictures_are_compared_at_the_judges_side() -> None:
    def draw_large(prompt: str, _seed: int) -> np.ndarray:
        return draw_label(prompt).repeat(2, axis=0).repeat(2, axis=1)

    _, energy = check_realism(
        make_scene(draw_large, load_judge=lambda: LabelJudge(JudgeNetwork(len(THINGS), WIDTHS).eval(), THINGS, {}))
    )
    assert energy.figure is not None
    assert energy.figure > 0.75  # at their own side it would be 0.5: each step stands between two of four pixels


def test_grids_of_many_few_and_four_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = list[Job]()

    def run_quickly(job: Job, families: Mapping[str, Family]) -> LocalResult:
        jobs.append(job)
        assert isinstance(job.task, Recipe)
        return LocalResult([], [], 0, job.task.steps / 4, 0.0)

    monkeypatch.setattr(Book, "upscale_factor", 4, raising=False)
    monkeypatch.setattr(checks, "run_locally", run_quickly)
    rows = check_grids(make_scene(draw_label))
    assert not any(job.ladder for job in jobs), "the frames of a film are decoded after the pictures"
    assert {job.task.guidance_interval for job in jobs if isinstance(job.task, Recipe)} == {Book.interval}
    assert figures(rows) == {
        "a grid of four, 1000 steps": 250,
        "a grid of four, 30 steps": 7.5,
        "a grid of four, 4 steps": 1,
    }
    assert [row.meets_goal for row in rows] == [False, False, True]


def test_the_evaluation_uses_all_held_out_words() -> None:
    assert set(ACCEPTED_LABELS) == HELD_OUT_WORDS
    assert all(has_held_out_word(form.format(word=word)) for word in ACCEPTED_LABELS for form in PROMPT_TEMPLATES)
    assert not any(has_held_out_word(label) for labels in ACCEPTED_LABELS.values() for label in labels)


# --- rows


def test_rows_are_well_formed_if_parts_are_missing(tmp_path: Path) -> None:
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "model.safetensors").write_bytes(b"0" * 2_500_000)
    for other in ("run/checkpoint.safetensors", "text_encoder/model.safetensors"):
        (tmp_path / other).parent.mkdir()
        (tmp_path / other).write_bytes(b"0" * 9_000_000)
    missing_artwork = fail_with("The artwork could not be fetched: install npm.")
    messages: list[str] = []
    scene = make_scene(
        draw_label,
        load_artwork=missing_artwork,
        weights=tmp_path,
        load_sampler=fail_with("The text encoder is not installed."),
    )
    rows = [json.loads(one) for one in map(json.dumps, json.loads(format_json(run_checks(scene, [], messages.append))))]
    assert [row["name"] for row in rows] == [goal.name for check in CHECKS for goal in check.goals]
    assert all({"name", "figure", "goal", "unit", "pass"} <= row.keys() for row in rows)
    assert not [row for row in rows if row["figure"] is None and (row["pass"] or not row["note"].endswith("."))]
    assert len(messages) == len(CHECKS)
    by_name = {row["name"]: row for row in rows}
    assert by_name["weights, together"]["figure"] == 2.5
    assert by_name["weights, together"]["pass"]
    assert "not installed" in by_name["backgrounds as named"]["note"]
    assert "install npm" in by_name["reconstruction: PSNR inside the subject, drawings held out"]["note"]
    assert "super-resolver" in by_name["one picture, four times as wide and high"]["note"]


def test_a_figure_without_a_goal_always_passes() -> None:
    rows = run_checks(make_scene(draw_label), ["guidance"], lambda _: None)
    assert len(rows) == 24
    assert all(row.meets_goal and row.goal is None for row in rows)
    assert "goal" not in format_table(rows)
    assert json.loads(format_json(rows))[0]["goal"] is None


def test_a_figure_just_below_its_goal_does_not_pass_by_rounding() -> None:
    assert not goals.SSIM.make_row(0.957).meets_goal
    assert goals.SSIM.make_row(0.96).meets_goal
    assert not goals.DIVERSITY.make_row(0.2457).meets_goal


def test_an_unknown_check_is_refused_with_the_names_of_all() -> None:
    with pytest.raises(ValueError, match="reconstruction, backgrounds"):
        run_checks(make_scene(draw_label), ["beauty"], lambda _: None)
    assert len(set(CHECK_NAMES)) == len(CHECK_NAMES)


def test_without_the_artwork_the_judges_stored_score_is_used() -> None:
    scene = make_scene(draw_label, load_artwork=fail_with("install npm"))
    rows = {row.name: row for row in check_labels(scene)}
    assert rows["the judge's own retrieval at 5, any rendering of real drawings"].figure == 95
    assert rows["label retrieval at 5"].figure == 100
    for count in (1, 5):
        noise_share = rows[f"label retrieval at {count}, as a share of the judge's own on white"]
        assert noise_share.figure is None  # never against the score on harder pictures
        assert "install npm" in noise_share.note


def test_without_torchmetrics_the_row_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    real = np.stack([square(RED)])
    row = _ssim_row(real, real, "")
    assert not row.meets_goal
    assert "darkroom-bot[train]" in row.note


def test_ssim_of_the_same_picture_is_one() -> None:
    real = np.stack([square(RED), square(BLUE)])
    assert _ssim_row(real, real, "").figure == 1


def test_a_super_resolver_is_measured_for_overshoot_and_time() -> None:
    class Lanczos:
        def upscale(self, picture: Image.Image) -> Image.Image:
            return picture.resize((4 * picture.width, 4 * picture.height), Image.Resampling.LANCZOS)

    seconds, ringing_figure = check_upscaling(make_scene(draw_label, load_resolver=Lanczos))
    assert seconds.figure is not None
    assert ringing_figure.figure is not None
    assert ringing_figure.figure > 4  # which is why it is measured
    assert not ringing_figure.meets_goal
    assert "36 charts" in ringing_figure.note


def test_an_overshoot_at_slanting_edges_only_is_detected() -> None:
    def upscale(picture: Image.Image) -> Image.Image:
        grey = np.asarray(picture.convert("L"))
        if (grey == grey[0]).all() or (np.ptp(grey, axis=1) == 0).all():
            return picture
        return Image.fromarray((np.asarray(picture).astype(int) + 9).astype(np.uint8))

    overshoots = checks.measure_overshoots(upscale)
    assert {value for name, value in overshoots.items() if "upright" in name or "lying" in name} == {0}
    assert overshoots["64 to 192, steep"] == 9


def test_a_missing_part_is_requested_once() -> None:
    calls: list[int] = []

    def make() -> int:
        calls.append(1)
        raise ValueError("It is not there.")

    lazy_value = LazyValue(make)
    for _ in range(3):
        with pytest.raises(ValueError, match="not there"):
            lazy_value()
    assert calls == [1]


# --- the sheet


def test_the_sheets_prompts_depend_only_on_labels_and_seed() -> None:
    labels = [f"thing {number}" for number in range(300)]
    prompts = choose_mixed_prompts(labels, 7)
    assert prompts == choose_mixed_prompts(labels, 7)
    assert prompts != choose_mixed_prompts(labels, 8)
    assert len(prompts) == 64
    assert [word for word in ACCEPTED_LABELS if any(word in one for one in prompts[:8])] == list(ACCEPTED_LABELS)
    assert sum("white background" in one for one in prompts[8:]) in range(15, 42)


def test_words_for_a_sheet_are_drawn_evenly_without_repeats() -> None:
    words = {f"thing {number}" for number in range(300)}
    prompts = choose_words(words, 7)
    assert len(set(prompts)) == 64
    assert prompts == choose_words(sorted(words), 7)
    assert {prompt.removesuffix(", white background") for prompt in prompts} < words
    assert choose_words({"kraken"}, 7) == ["kraken, white background"]


def test_each_kind_of_sheet_has_its_own_prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builtin_artwork, "load_held_out_lemmas", lambda _: LEMMAS)
    judge_folder = WEIGHTS_FOLDER / "judge"
    labels = set(read_labels(judge_folder))
    mixed, alone, lemmas, sentences = (
        choose_prompts(kind, judge_folder, tmp_path, 0) for kind in ("mixed", "labels", "lemmas", "sentences")
    )
    assert {prompt.removesuffix(", white background") for prompt in alone} < labels
    assert {prompt.removesuffix(", white background") for prompt in lemmas} == set(LEMMAS)
    assert sentences == list(FREE_SENTENCES)
    assert not all(prompt.endswith(", white background") for prompt in mixed)


def test_the_free_sentences_fill_a_sheet_and_name_no_held_out_word() -> None:
    assert len(set(FREE_SENTENCES)) == PROMPT_COUNT
    assert not any(has_held_out_word(sentence) for sentence in FREE_SENTENCES)


def test_a_sheet_is_captioned_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = draw_sheet([Image.fromarray(square(RED))] * 20, ["a long caption of a picture"] * 20)
    assert page.size == (8 * CELL_SIDE, 3 * (CELL_SIDE + CAPTION_HEIGHT))
    assert np.asarray(page)[CELL_SIDE : CELL_SIDE + CAPTION_HEIGHT, :CELL_SIDE].min() < 60
    write_sheet(page, tmp_path / "sheet.webp")
    with Image.open(tmp_path / "sheet.webp") as reopened:
        assert reopened.size == page.size
    with pytest.raises(ValueError, match=r"ends in \.webp"):
        write_sheet(page, tmp_path / "sheet.png")
    monkeypatch.setattr(prompt_sheet, "MAX_BYTES", 1000)
    with pytest.raises(ValueError, match=r"does not fit into 0\.001 MB"):
        write_sheet(page, tmp_path / "large.webp")
    assert not (tmp_path / "large.webp").exists()


# --- the command


def test_prompts_for_no_sheet_are_refused_in_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", "--prompts", "labels"]) == 2
    assert "name a file with --sheet" in capsys.readouterr().err


def test_a_sheet_of_another_format_is_refused_before_anything_is_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.commands.builtin_artwork.find_weights", lambda source: pytest.fail("it went on"))
    assert main(["evaluate", "--sheet", str(tmp_path / "sheet.png")]) == 2
    assert "a file that ends in .webp" in capsys.readouterr().err


def test_a_folder_that_is_no_model_is_refused_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["evaluate", "--from", str(tmp_path), "--json"]) == 2
    output = capsys.readouterr()
    assert "no model" in output.err
    assert not output.out
