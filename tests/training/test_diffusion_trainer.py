"""Training: data repeats by seed, captions hold no held-out word, resume is exact, checkpoints survive a kill."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image

from engine.process.model_settings import WEIGHTS_FOLDER
from shared.training_parts import SCHEDULE, archive_of, draw_artwork, tiny_autoencoder, tiny_cache, tiny_network
from training.__main__ import main
from training.commands import builtin_artwork
from training.commands.builtin_artwork import Focus, parse_focus, read_focus, write_focus
from training.core import checkpoint
from training.core.learner import weighted_indices
from training.core.run import CHECKPOINT_FILE, Budget, TrainingRun
from training.diffusion.diffusion_trainer import (
    DiffusionEvaluator,
    DiffusionSettings,
    DiffusionTrainer,
    add_text_embedding,
    build_network,
    fit_config,
    fit_latents,
    load_network,
)
from training.diffusion.latent_cache import LatentCache, load_caption_encoder, open_cache, open_variant_cache
from training.diffusion.sampling import add_noise, measure_v_mse, sample_latents
from training.pictures import artwork
from training.pictures.artwork import ARTWORK_PACKAGES, LABEL_PACKAGE
from training.pictures.captions import (
    HELD_OUT_PAIRS,
    HELD_OUT_WORDS,
    Appearance,
    clean_description,
    has_held_out_word,
    is_held_out_pair,
    make_caption,
)
from training.pictures.variants import (
    DRAW_SHARE,
    FIRST_VALIDATION_NUMBER,
    FOCUS_SHARE,
    FocusedDrawing,
    find_dominant_hue,
    nearest_hue,
    number_variants,
    render_variant,
    share_draws,
)

ROOT = Path(__file__).parents[2]
LOOK = Appearance("", "flat design", "", "white")


def test_rows_of_a_cache_are_drawn_by_their_shares() -> None:
    shares = np.array([0.5, 0.3, 0.2, 0.0])
    drawn = [weighted_indices(7, step, shares, 2) for step in range(300)]
    assert all(len(set(rows)) == 2 for rows in drawn), "no row comes twice in a batch"
    counts = np.bincount(np.concatenate(drawn), minlength=4)
    assert counts[0] > counts[1] > counts[2] > counts[3] == 0
    assert np.array_equal(weighted_indices(7, 3, shares, 2), drawn[3])
    cache = replace(tiny_cache(), shares=np.eye(20)[:4].sum(axis=0) / 4)
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod
    trainer = DiffusionTrainer(tiny_network(), cache, alphas, DiffusionSettings(batch=4))
    assert sorted(trainer._choose_rows()) == [0, 1, 2, 3], "the others have no share"


def test_focused_labels_get_their_share_of_the_draws_and_styles_theirs() -> None:
    styles = ("3d render", "3d render", "soft shading", "flat design")
    pictures = [replace(draw_artwork(label), style=style) for label, style in zip("abab", styles, strict=True)]
    pairs = [(0, 0), (0, 1), (1, 0), (2, 0), (3, 0)]
    shares = share_draws(pictures, pairs, {FocusedDrawing("a")})
    rest = 1 - FOCUS_SHARE
    assert shares == pytest.approx(
        [FOCUS_SHARE / 2, FOCUS_SHARE / 2, *(rest * DRAW_SHARE[style] for style in styles[1:])]
    )
    assert share_draws(pictures, pairs[3:], {FocusedDrawing("a")}).sum() == pytest.approx(1.0), "a style may be absent"
    flat = share_draws(pictures, pairs, {FocusedDrawing("b", "flat design")}, 0.9)
    assert flat[4] == pytest.approx(0.9 / (0.9 + 0.1 * (1 - DRAW_SHARE["flat design"]))), "no other is flat"


def test_a_focus_on_a_drawing_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    car = replace(draw_artwork("car"), style="soft shading")
    monkeypatch.setattr(builtin_artwork, "load_drawings", lambda *_, **__: [car])
    monkeypatch.setattr(builtin_artwork, "VALIDATION_PICTURES", 1)
    monkeypatch.setattr(builtin_artwork, "open_variant_cache", lambda *inputs, **_: tiny_cache(len(inputs[2])))
    encoders: Any = (None, None)
    known = parse_focus("car, soft shading\n")
    focused, held_out = builtin_artwork.open_variants(None, encoders, 0, Focus((known,), 0.5))
    assert focused.shares is not None
    assert held_out.shares is None
    assert builtin_artwork.open_variants(None, encoders, 0)[0].shares is None
    for line in ("cart", "car", "car, flat design"):
        with pytest.raises(ValueError, match=f"--focus names '{line}', and there is no such drawing"):
            builtin_artwork.open_variants(None, encoders, 0, Focus((known, parse_focus(line)), 0.5))


def test_a_list_of_drawings_is_read_as_it_was_written(tmp_path: Path) -> None:
    drawings = (FocusedDrawing("man, woman"), FocusedDrawing("car", "flat design"), FocusedDrawing("3d render"))
    write_focus(tmp_path / "focus.txt", drawings)
    assert read_focus(tmp_path / "focus.txt", None) == Focus(drawings, FOCUS_SHARE)
    assert read_focus(None, None).drawings == ()
    with pytest.raises(ValueError, match="cannot be written"):
        write_focus(tmp_path, drawings)


@pytest.mark.slow
def test_a_focused_training_ends_and_continues_only_with_its_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = ("car", "apple", "cat")
    pictures = [replace(draw_artwork(label, key=f"flat-design/{label}"), style="soft shading") for label in labels]
    monkeypatch.setattr(builtin_artwork, "load_drawings", lambda *_, **__: pictures)
    monkeypatch.setattr(builtin_artwork, "VALIDATION_PICTURES", 1)
    monkeypatch.setattr(DiffusionEvaluator, "draw_sheet", lambda *_: None)  # most of the time, and no part of this
    (tmp_path / "focus.txt").write_text("car, soft shading\n")
    words = [
        "diffusion",
        "--threads",
        "1",
        "--batch",
        "4",
        "--cache",
        str(tmp_path / "cache"),
        "--out",
        str(tmp_path / "out"),
    ]
    focus = ["--focus", str(tmp_path / "focus.txt"), "--focus-share", "0.5"]
    assert main([*words, *focus, "--steps", "1"]) == 0
    assert (tmp_path / "out" / "unet" / "config.json").is_file()
    capfd.readouterr()
    assert main([*words, "--steps", "2"]) == 2
    assert "begun with other focus (0.5 of the draws, lines: 1" in capfd.readouterr().err
    assert main([*words, *focus, "--steps", "2"]) == 0
    assert "finished: 2 steps" in capfd.readouterr().err


def embedded_cache() -> LatentCache:
    rng = np.random.default_rng(4)
    latents = rng.normal(size=(4, 8, 16, 16))
    states = rng.normal(size=(4, 24, 384))
    return LatentCache(
        latents.astype(np.float16), states.astype(np.float16), np.zeros((24, 384), np.float32), ("a",) * 4
    )


def build_trainer(
    steps: int = 0, settings: DiffusionSettings = DiffusionSettings(batch=8, warm=2, rate=1e-3)
) -> DiffusionTrainer:
    trainer = DiffusionTrainer(
        add_text_embedding(tiny_network()), tiny_cache(), DDIMScheduler(**SCHEDULE).alphas_cumprod, settings
    )
    for number in range(steps):
        trainer.step(number / 10)
    return trainer


def build_run(folder: Path, budget: Budget) -> TrainingRun:
    folder.mkdir(exist_ok=True)
    trainer = build_trainer()
    judge = DiffusionEvaluator(
        trainer, tiny_cache(8), torch.zeros(2, 6, 64), tiny_autoencoder(), DDIMScheduler(**SCHEDULE)
    )
    return TrainingRun(folder, trainer, judge, budget, start_time=0.0)


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# --- captions


def test_no_caption_contains_a_held_out_word() -> None:
    labels = [
        clean_description("automobile", ["car", "vehicle"]),
        clean_description("oncoming automobile", ["automobile", "cars"]),
        clean_description("dog face", ["Puppy", "puppies", "pet", "hounds"]),
        clean_description("cat face", ["kitten", "Feline friend", "kitty"]),
        clean_description("sailboat", ["vessel", "sea"]),
    ]
    rng = np.random.default_rng(1)
    captions = [make_caption(rng.choice(labels), 3, LOOK, rng) for _ in range(3000)]  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert not [one for one in captions if has_held_out_word(one)]
    assert any("car" in one.split(", ") for one in captions)
    assert {word for word in HELD_OUT_WORDS if has_held_out_word(f"a {word}s, blue background")} == HELD_OUT_WORDS


def test_a_label_without_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="held-out"):
        clean_description("space vessel", [])


def test_a_caption_names_hue_size_and_background() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        one = make_caption(
            clean_description("rocket", ["space"]), 5, Appearance("blue", "3d render", "small", "pink"), rng
        )
        assert "blue" in one
        assert "small" in one
        assert "pink background" in one


@pytest.mark.slow
def test_held_out_pairs_are_recognised_and_never_drawn() -> None:
    assert is_held_out_pair("blue", clean_description("green apple", []))
    assert is_held_out_pair(
        "pink", clean_description("taxi", ["drive", "cars"])
    )  # a caption may put a tag beside the hue
    assert not is_held_out_pair("blue", clean_description("pineapple", ["grapple"]))
    for hue, thing in sorted(HELD_OUT_PAIRS):
        for label, tag in ((thing, "thing"), ("whatsit", thing), ("whatsit", f"big {thing}s")):
            drawn_artwork = draw_artwork(label, tag, "round", key=f"x/{thing}")
            captions = [
                render_variant(drawn_artwork, number, seed=0).caption.replace(f"{hue} background", "")
                for number in range(200)
            ]
            assert not [one for one in captions if hue in one.split() and thing in one]


# --- variants


def test_variants_repeat_by_seed_and_differ_by_number() -> None:
    drawn_artwork = draw_artwork("car", "vehicle")
    one = render_variant(drawn_artwork, 3, 7)
    same_variant = render_variant(drawn_artwork, 3, 7)
    other = render_variant(drawn_artwork, 4, 7)
    assert one.pixels.tobytes() == same_variant.pixels.tobytes()
    assert one.caption == same_variant.caption
    assert one.pixels.tobytes() != other.pixels.tobytes()
    assert one.pixels.shape == (64, 64, 3)
    assert one.licence == "CC-BY-4.0"


def test_a_recoloured_drawing_has_the_hue_of_its_caption() -> None:
    drawn_artwork = draw_artwork("ball", "toy", "round", colour=(220, 30, 40))  # pyright: ignore[reportArgumentType]
    blue_balls = [
        one for number in range(300) if "blue ball" in (one := render_variant(drawn_artwork, number, 0)).caption
    ]
    blue_balls = [one for one in blue_balls if one.caption.count("blue") == 1 and "close-up" not in one.caption]
    assert len(blue_balls) > 3
    for one in blue_balls:
        centre_pixels = Image.fromarray(one.pixels[28:36, 28:36]).convert("RGBA")
        assert nearest_hue(find_dominant_hue(centre_pixels) or 0.0) == "blue"


def test_an_unnamed_background_is_white() -> None:
    variants = [render_variant(draw_artwork("ball"), number, 0) for number in range(200)]
    plain_variants = [one for one in variants if "background" not in one.caption and "close-up" not in one.caption]
    assert len(plain_variants) > 20
    assert all((one.pixels[0, 0] == 255).all() for one in plain_variants)


def test_training_never_uses_validation_numbers() -> None:
    pairs = number_variants([draw_artwork("ball", group=3), draw_artwork("up arrow", group=8)])
    assert max(number for _, number in pairs) < FIRST_VALIDATION_NUMBER
    assert {index: number + 1 for index, number in pairs} == {0: 25, 1: 7}  # flat design: 0.6 of 42 and of 12


# --- artwork


def test_artwork_comes_with_its_licence_and_without_flags_or_skin_tones(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    draw_artwork("ball").pixels.save(buffer, "PNG")
    entries = [
        {"label": "automobile", "hexcode": "1F697", "tags": ["car"], "group": 5},
        {"label": "flag: Chad", "hexcode": "1F1F9-1F1E9", "tags": ["flag"], "group": 9},
        {"label": "keycap: 1", "hexcode": "0031-FE0F-20E3", "tags": ["1"], "group": 8},
    ]
    names = archive_of(tmp_path, LABEL_PACKAGE, {LABEL_PACKAGE.folder: json.dumps(entries).encode()})
    names_of = {
        f"{ARTWORK_PACKAGES[1].folder}{code}.png": buffer.getvalue() for code in ("1f697", "1f1f9-1f1e9", "31-20e3")
    }
    package = archive_of(tmp_path, ARTWORK_PACKAGES[1], names_of)
    loaded_artworks = artwork.load(tmp_path, [package], names)
    assert [
        (drawn_artwork.key, drawn_artwork.licence, drawn_artwork.description.label) for drawn_artwork in loaded_artworks
    ] == [("flat-design/1f697", "CC-BY-4.0", "car")]
    assert {package.licence for package in ARTWORK_PACKAGES} == {"Apache-2.0", "CC-BY-4.0", "MIT"}
    assert all(package.credit for package in ARTWORK_PACKAGES)


def test_an_archive_with_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / LABEL_PACKAGE.archive_name).write_bytes(b"not what was pinned")
    with pytest.raises(ValueError, match="not the archive that was pinned"):
        artwork.fetch_package(LABEL_PACKAGE, tmp_path)


# --- latents


def test_a_cache_is_built_once_and_holds_the_encoders_results(tmp_path: Path) -> None:
    pictures = [draw_artwork("ball", "toy")]
    built = []
    vae = tiny_autoencoder()
    text = load_caption_encoder()
    vae.register_to_config(sample_size=64)

    def make() -> LatentCache:
        pairs = [(0, 0), (0, 1)]
        return open_variant_cache(
            tmp_path, pictures, pairs, (vae, text), seed=5, on_progress=lambda done_count, _: built.append(done_count)
        )

    first = make()
    rebuilt = make()
    assert built == [2]
    assert (
        first.captions == rebuilt.captions == tuple(render_variant(pictures[0], number, 5).caption for number in (0, 1))
    )
    assert first.latents.shape == (2, 4, 8, 8)
    assert np.allclose(first.states, load_caption_encoder()(first.captions).numpy(), atol=2e-3)
    listing = json.loads(next(tmp_path.glob("variants-*/variants.json")).read_text())
    assert [entry["licence"] for entry in listing] == ["CC-BY-4.0"] * 2
    with torch.no_grad():
        vae.get_parameter("quant_conv.bias").add_(1.0)  # another autoencoder has other latents and another cache
    other = make()
    assert built == [2, 2]
    assert not np.allclose(first.latents, other.latents)
    assert len(list(tmp_path.glob("variants-*"))) == 2


def test_an_interrupted_cache_is_built_again(tmp_path: Path) -> None:
    vae = tiny_autoencoder()
    vae.register_to_config(sample_size=64)
    pairs = [(0, 0)]
    pictures = [draw_artwork("ball")]

    def stop(_done: int, _of: int) -> None:
        raise KeyboardInterrupt

    text = load_caption_encoder()
    with pytest.raises(KeyboardInterrupt):
        open_variant_cache(tmp_path, pictures, pairs, (vae, text), seed=1, on_progress=stop)
    assert next(tmp_path.iterdir()).suffix == ".partial"
    open_variant_cache(tmp_path, pictures, pairs, (vae, text), seed=1)
    assert len(open_cache(next(tmp_path.glob("variants-*")))) == 1


# --- the network


def test_noising_and_v_equal_diffusers() -> None:
    scheduler = DDPMScheduler(**SCHEDULE)
    clean = torch.randn(5, 4, 4, 4)
    noise = torch.randn(5, 4, 4, 4)
    times = torch.tensor([0, 10, 500, 900, 999])
    noisy, velocity = add_noise(clean, noise, scheduler.alphas_cumprod[times])
    assert torch.allclose(noisy, scheduler.add_noise(clean, noise, times), atol=1e-5)  # pyright: ignore[reportArgumentType]
    assert torch.allclose(velocity, scheduler.get_velocity(clean, noise, times), atol=1e-5)  # pyright: ignore[reportArgumentType]
    assert torch.equal(noisy[-1], noise[-1])  # the last step is pure noise


def test_a_grafted_network_first_predicts_the_same() -> None:
    source = tiny_network().eval()
    grown_network = add_text_embedding(source).eval()
    x = torch.randn(2, 4, 4, 4)
    text = torch.randn(2, 6, 64)
    with torch.no_grad():
        before = source(x, torch.tensor(500), encoder_hidden_states=text).sample
        after = grown_network(x, torch.tensor(500), encoder_hidden_states=text).sample
    assert torch.equal(before, after)
    assert add_text_embedding(grown_network) is grown_network


def test_a_fresh_network_has_the_shape_of_a_folder_but_new_weights(tmp_path: Path) -> None:
    checkpoint.export_network(add_text_embedding(tiny_network(seed=5)), tmp_path)
    stored_network, one, same_network, other = (
        load_network(tmp_path),
        *(build_network(tmp_path, seed) for seed in (1, 1, 2)),
    )
    weights = [network.state_dict() for network in (stored_network, one, same_network, other)]
    assert [each.keys() == weights[0].keys() for each in weights] == [True] * 4
    assert are_equal(weights[1], weights[2])
    for name in ("conv_in.weight", "conv_out.weight", "mid_block.resnets.0.conv1.weight"):
        assert not torch.allclose(weights[0][name], weights[1][name], atol=1e-3)
        assert not torch.allclose(weights[1][name], weights[3][name], atol=1e-3)


def test_a_network_fitted_to_larger_latents_keeps_its_inner_levels() -> None:
    source = add_text_embedding(tiny_network())
    grown_network = fit_latents(source, 3, 8)
    assert grown_network.config["block_out_channels"] == [8, 16, 32]
    noisy = torch.randn(2, 3, 8, 8)
    prediction = grown_network(noisy, torch.tensor(500), encoder_hidden_states=torch.randn(2, 6, 64)).sample
    assert prediction.shape == noisy.shape
    before = source.state_dict()
    after = grown_network.state_dict()
    for name in ("mid_block.resnets.0.conv1.weight", "add_embedding.proj.weight", "time_embedding.linear_2.weight"):
        assert torch.equal(before[name], after[name])
    for name in ("attentions.0.transformer_blocks.0.attn2.to_k.weight", "resnets.0.conv2.weight"):
        assert torch.equal(before[f"down_blocks.0.{name}"], after[f"down_blocks.1.{name}"])
        assert torch.equal(before[f"up_blocks.1.{name}"], after[f"up_blocks.1.{name}"])


def test_a_fitted_network_keeps_its_sense_of_time() -> None:
    source = load_network(WEIGHTS_FOLDER / "unet")
    grown_network = fit_latents(source, 8, 16)
    timesteps = torch.arange(0, 1000, 50)
    with torch.no_grad():
        before, after = (network.time_embedding(network.time_proj(timesteps)) for network in (source, grown_network))
    assert float((after - before).std()) < 0.25 * float(before.std(dim=0).mean())


@pytest.mark.parametrize("name", ["attention_head_dim", "layers_per_block", "cross_attention_dim"])
def test_settings_of_single_levels_are_fitted_too(name: str) -> None:
    config = dict(tiny_network().config)
    fitted_config = fit_config(config | {name: [config[name]] * 2}, 4, 8)
    assert fitted_config[name] == [config[name]] * 3
    UNet2DConditionModel.from_config(fitted_config)


def test_a_network_is_not_fitted_to_latents_it_cannot_draw() -> None:
    network = tiny_network()
    assert fit_latents(network, 4, 4) is network
    with pytest.raises(
        ValueError, match="have 5×5 values, and this network can only learn to draw 4×4 or 8×8 or 16×16"
    ):
        fit_latents(network, 4, 5)


def test_an_error_on_training_pictures_has_another_name_than_v_mse() -> None:
    trainer = build_trainer()
    args = (trainer, trainer.cache, torch.zeros(1, 6, 64), tiny_autoencoder(), DDIMScheduler(**SCHEDULE))
    assert DiffusionEvaluator(*args).evaluate().keys() == {"v_mse"}
    assert DiffusionEvaluator(*args, "v_mse_of_pictures").evaluate().keys() == {"v_mse_of_pictures"}


@pytest.mark.slow
def test_training_lowers_the_loss_of_the_network_and_its_average() -> None:
    trainer = build_trainer(settings=DiffusionSettings(batch=8, warm=5, rate=3e-3))
    before = measure_v_mse(trainer.average, trainer.cache, trainer.alphas)
    for _ in range(60):
        trainer.step(0.0)
    assert measure_v_mse(trainer.network, trainer.cache, trainer.alphas) < 0.9 * before
    assert measure_v_mse(trainer.average, trainer.cache, trainer.alphas) < 0.95 * before


@pytest.mark.slow
def test_resume_is_exact_bit_for_bit(tmp_path: Path) -> None:
    full_trainer = build_trainer(6)
    half = build_trainer(3)
    checkpoint.save(tmp_path / "c", half.state_tensors(), {"steps": half.steps})
    tensors, position = checkpoint.load(tmp_path / "c")
    other = DiffusionTrainer(add_text_embedding(tiny_network(seed=9)), tiny_cache(), half.alphas, half.settings)
    other.restore(tensors, position["steps"])
    for number in range(3, 6):
        other.step(number / 10)
    assert are_equal(full_trainer.state_tensors(), other.state_tensors())
    assert other.samples == 48


@pytest.mark.slow
def test_a_stopped_and_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    full_run = build_run(tmp_path / "whole", Budget(samples=48))
    full_run.train_until(lambda: 0.0, lambda: False, lambda _: None, save_interval=60)
    first = build_run(tmp_path / "broken", Budget(samples=48))
    losses = []
    first.train_until(lambda: 0.0, lambda: len(losses) == 2, lambda loss: losses.append(loss), save_interval=60)
    second = build_run(tmp_path / "broken", Budget(samples=48))
    second.resume()
    second.train_until(lambda: 0.0, lambda: False, lambda _: None, save_interval=60)
    full_tensors, resumed_tensors = (
        checkpoint.load(tmp_path / name / CHECKPOINT_FILE)[0] for name in ("whole", "broken")
    )
    assert are_equal(full_tensors, resumed_tensors)
    position = checkpoint.read_position(tmp_path / "broken" / CHECKPOINT_FILE)
    assert DiffusionSettings(**position["settings"]) == full_run.trainer.settings
    lines = [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines] == [16, 48]
    with Image.open(tmp_path / "broken" / "sheets" / "000000048.png") as sheet:
        assert sheet.size == (2 * 32 * 2, 32 * 2)


def test_a_budget_by_the_clock_survives_pauses() -> None:
    budget = Budget(end_time=1000.0)
    assert budget.progress(0, start_time=0.0, now=250.0) == 0.25
    assert budget.progress(10**9, start_time=0.0, now=2000.0) == 1.0
    assert Budget(samples=100).progress(50, 0.0, 10**9) == 0.5


def test_a_loss_that_is_not_a_number_stops_the_run() -> None:
    trainer = build_trainer()
    trainer.cache.latents[:] = np.inf
    with pytest.raises(ValueError, match="not a number"):
        trainer.step(0.0)


def test_sampling_repeats_by_seed() -> None:
    network = tiny_network().eval()
    scheduler = DDIMScheduler(**SCHEDULE)
    states = torch.randn(2, 6, 64)
    empty = torch.zeros(6, 64)
    one = sample_latents(network, states, empty, scheduler, steps=4)
    assert torch.equal(one, sample_latents(network, states, empty, scheduler, steps=4))
    assert torch.isfinite(one).all()


# --- checkpoints

SAVE_FOREVER = """
import sys, torch
from pathlib import Path
from training.core import checkpoint
number = 0
while True:
    number += 1
    tensors = {f"t{i}": torch.full((300_000,), float(number)) for i in range(8)}
    checkpoint.save(Path(sys.argv[1]), tensors, {"number": number})
"""


@pytest.mark.slow
def test_a_checkpoint_survives_a_kill_while_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    writer = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(path)], cwd=ROOT)
    try:
        wait_until(lambda: path.exists() and path.with_name("checkpoint.fresh").exists())
    finally:
        writer.kill()
        writer.wait()
    tensors, position = checkpoint.load(path)
    assert len(tensors) == 8
    assert all((tensor == position["number"]).all() for tensor in tensors.values())


def test_a_missing_checkpoint_raises_a_clear_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no checkpoint"):
        checkpoint.load(tmp_path / "checkpoint")


def test_the_export_loads_in_diffusers_in_half_precision(tmp_path: Path) -> None:
    trainer = build_trainer(2)
    checkpoint.export_network(trainer.average, tmp_path / "unet")
    loaded_artworks = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float32)
    assert loaded_artworks.config["addition_embed_type"] == "text"
    average_parameters = dict(trainer.average.named_parameters())
    assert all(
        torch.equal(p, average_parameters[name].half().float()) for name, p in loaded_artworks.named_parameters()
    )
    assert all(p.dtype == torch.float32 for p in trainer.average.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(("raw", "prefix"), [((), "network:average."), (("--raw",), "network.")])
def test_the_checkpoint_of_an_unfinished_run_can_be_exported(tmp_path: Path, raw: tuple[str, ...], prefix: str) -> None:
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod
    trainer = DiffusionTrainer(
        load_network(WEIGHTS_FOLDER / "unet"), embedded_cache(), alphas, DiffusionSettings(batch=2)
    )
    trainer.step(0.5)
    tensors = trainer.state_tensors()
    checkpoint.save(tmp_path / "run" / CHECKPOINT_FILE, tensors, {"steps": 1})
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "unet"), *raw]) == 0
    loaded_artworks = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float32)
    assert all(
        torch.equal(p, tensors[f"{prefix}{name}"].half().float()) for name, p in loaded_artworks.named_parameters()
    )


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.002)
