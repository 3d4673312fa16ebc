"""Training: data repeats by seed, captions hold no held-out word, resume is exact, checkpoints survive a kill."""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from PIL import Image, ImageDraw

from engine.families.embedded import WEIGHTS
from engine.training import checkpoint
from engine.training.__main__ import main
from engine.training.diffusion import Judge, Settings, Trainer, fresh_network, graft, open_network
from engine.training.latents import Cached, cached, open_cache, text_states
from engine.training.pictures import artwork
from engine.training.pictures.artwork import LABELS, SETS, Artwork, Package
from engine.training.pictures.captions import HELD_OUT, HELD_OUT_PAIRS, Look, caption, held_out, pair_held_out, words
from engine.training.pictures.variants import HELD_BACK, dominant_hue, hue_name, numbered, variant
from engine.training.run import CHECKPOINT, Budget, Run, settings_of
from engine.training.validate import noised, sample, v_mse

ROOT = Path(__file__).parents[2]
SCHEDULE = {
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "prediction_type": "v_prediction",
    "rescale_betas_zero_snr": True,
    "timestep_spacing": "trailing",
}
LOOK = Look("", "flat design", "", "white")


def draw_artwork(
    label: str, *tags: str, colour: str = "red", group: int = 5, key: str = "flat-design/1f697"
) -> Artwork:
    pixels = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    ImageDraw.Draw(pixels).ellipse((8, 8, 56, 56), fill=colour)
    return Artwork(key, words(label, tags), group, "flat design", "CC-BY-4.0", "somebody", pixels)


def tiny_network(seed: int = 0) -> UNet2DConditionModel:
    torch.manual_seed(seed)
    return UNet2DConditionModel(
        sample_size=4, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        cross_attention_dim=64, attention_head_dim=4, norm_num_groups=4,
    )  # fmt: skip


def tiny_cache(count: int = 20) -> Cached:
    rng = np.random.default_rng(3)
    latents = rng.normal(size=(count, 4, 4, 4)).astype(np.float16)
    states = rng.normal(size=(count, 6, 64)).astype(np.float16)
    return Cached(latents, states, np.zeros((6, 64), np.float32), ("a ball",) * count)


def embedded_cache() -> Cached:
    rng = np.random.default_rng(4)
    latents, states = rng.normal(size=(4, 16, 8, 8)), rng.normal(size=(4, 24, 384))
    return Cached(latents.astype(np.float16), states.astype(np.float16), np.zeros((24, 384), np.float32), ("a",) * 4)


def tiny_autoencoder(latent_channels: int = 4) -> AutoencoderKL:
    torch.manual_seed(0)
    shape = {
        "block_out_channels": (8, 8, 8, 8),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
    }
    return AutoencoderKL(
        sample_size=32, latent_channels=latent_channels, norm_num_groups=4, scaling_factor=1.0, **shape
    ).eval()


def build_trainer(steps: int = 0, settings: Settings = Settings(batch=8, warm=2, rate=1e-3)) -> Trainer:
    trainer = Trainer(graft(tiny_network()), tiny_cache(), DDIMScheduler(**SCHEDULE).alphas_cumprod, settings)
    for number in range(steps):
        trainer.step(number / 10)
    return trainer


def build_run(folder: Path, budget: Budget) -> Run:
    folder.mkdir(exist_ok=True)
    trainer = build_trainer()
    judge = Judge(trainer, tiny_cache(8), torch.zeros(2, 6, 64), tiny_autoencoder(), DDIMScheduler(**SCHEDULE))
    return Run(folder, trainer, judge, budget, started=0.0)


def are_equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def archive_of(folder: Path, package: Package, members: dict[str, bytes]) -> Package:
    """A package as `npm pack` writes it, with the hash of its bytes."""
    with tarfile.open(folder / package.archive, "w:gz") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    pinned = Package(package.name, package.version, "", package.licence, package.credit, package.style, package.folder)
    digest = artwork.integrity_of((folder / package.archive).read_bytes())
    return Package(**{**pinned.__dict__, "integrity": digest})


# --- captions


def test_no_caption_contains_a_held_out_word() -> None:
    labels = [
        words("automobile", ["car", "vehicle"]),
        words("oncoming automobile", ["automobile", "cars"]),
        words("dog face", ["Puppy", "puppies", "pet", "hounds"]),
        words("cat face", ["kitten", "Feline friend", "kitty"]),
        words("sailboat", ["vessel", "sea"]),
    ]
    rng = np.random.default_rng(1)
    captions = [caption(rng.choice(labels), 3, LOOK, rng) for _ in range(3000)]  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert not [one for one in captions if held_out(one)]
    assert any("car" in one.split(", ") for one in captions)
    assert {word for word in HELD_OUT if held_out(f"a {word}s, blue background")} == HELD_OUT


def test_a_label_without_another_name_is_refused() -> None:
    with pytest.raises(ValueError, match="held-out"):
        words("space vessel", [])


def test_a_caption_names_hue_size_and_background() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        one = caption(words("rocket", ["space"]), 5, Look("blue", "3d render", "small", "pink"), rng)
        assert "blue" in one
        assert "small" in one
        assert "pink background" in one


def test_held_out_pairs_are_recognised_and_never_drawn() -> None:
    assert pair_held_out("blue", words("green apple", []))
    assert pair_held_out("pink", words("taxi", ["drive", "cars"]))  # a caption may put a tag beside the hue
    assert not pair_held_out("blue", words("pineapple", ["grapple"]))
    for hue, thing in sorted(HELD_OUT_PAIRS):
        for label, tag in ((thing, "thing"), ("whatsit", thing), ("whatsit", f"big {thing}s")):
            art = draw_artwork(label, tag, "round", key=f"x/{thing}")
            captions = [variant(art, number, seed=0).caption.replace(f"{hue} background", "") for number in range(200)]
            assert not [one for one in captions if hue in one.split() and thing in one]


# --- variants


def test_variants_repeat_by_seed_and_differ_by_number() -> None:
    art = draw_artwork("car", "vehicle")
    one, again, other = variant(art, 3, 7), variant(art, 3, 7), variant(art, 4, 7)
    assert one.pixels.tobytes() == again.pixels.tobytes()
    assert one.caption == again.caption
    assert one.pixels.tobytes() != other.pixels.tobytes()
    assert one.pixels.shape == (64, 64, 3)
    assert one.licence == "CC-BY-4.0"


def test_a_recoloured_drawing_has_the_hue_of_its_caption() -> None:
    art = draw_artwork("ball", "toy", "round", colour=(220, 30, 40))  # pyright: ignore[reportArgumentType]
    blue_balls = [one for number in range(300) if "blue ball" in (one := variant(art, number, 0)).caption]
    blue_balls = [one for one in blue_balls if one.caption.count("blue") == 1 and "close-up" not in one.caption]
    assert len(blue_balls) > 3
    for one in blue_balls:
        middle = Image.fromarray(one.pixels[28:36, 28:36]).convert("RGBA")
        assert hue_name(dominant_hue(middle) or 0.0) == "blue"


def test_an_unnamed_background_is_white() -> None:
    variants = [variant(draw_artwork("ball"), number, 0) for number in range(200)]
    unnamed = [one for one in variants if "background" not in one.caption and "close-up" not in one.caption]
    assert len(unnamed) > 20
    assert all((one.pixels[0, 0] == 255).all() for one in unnamed)


def test_training_never_uses_validation_numbers() -> None:
    pairs = numbered([draw_artwork("ball", group=3), draw_artwork("up arrow", group=8)])
    assert max(number for _, number in pairs) < HELD_BACK
    assert {index: number + 1 for index, number in pairs} == {0: 4, 1: 1}  # flat design: a tenth of its spread


# --- artwork


def test_artwork_comes_with_its_licence_and_without_flags_or_skin_tones(tmp_path: Path) -> None:
    png = io.BytesIO()
    draw_artwork("ball").pixels.save(png, "PNG")
    entries = [
        {"label": "automobile", "hexcode": "1F697", "tags": ["car"], "group": 5},
        {"label": "flag: Chad", "hexcode": "1F1F9-1F1E9", "tags": ["flag"], "group": 9},
        {"label": "keycap: 1", "hexcode": "0031-FE0F-20E3", "tags": ["1"], "group": 8},
    ]
    names = archive_of(tmp_path, LABELS, {LABELS.folder: json.dumps(entries).encode()})
    names_of = {f"{SETS[1].folder}{code}.png": png.getvalue() for code in ("1f697", "1f1f9-1f1e9", "31-20e3")}
    package = archive_of(tmp_path, SETS[1], names_of)
    loaded = artwork.load(tmp_path, [package], names)
    assert [(art.key, art.licence, art.words.label) for art in loaded] == [("flat-design/1f697", "CC-BY-4.0", "car")]
    assert {package.licence for package in SETS} == {"Apache-2.0", "CC-BY-4.0", "MIT"}
    assert all(package.credit for package in SETS)


def test_an_archive_with_other_bytes_is_refused(tmp_path: Path) -> None:
    (tmp_path / LABELS.archive).write_bytes(b"not what was pinned")
    with pytest.raises(ValueError, match="not the archive that was pinned"):
        artwork.fetch(LABELS, tmp_path)


# --- latents


def test_a_cache_is_built_once_and_holds_the_encoders_results(tmp_path: Path) -> None:
    pictures, built = [draw_artwork("ball", "toy")], []
    vae, text = tiny_autoencoder(), text_states()
    vae.register_to_config(sample_size=64)

    def make() -> Cached:
        pairs = [(0, 0), (0, 1)]
        return cached(tmp_path, pictures, pairs, (vae, text), seed=5, told=lambda done, _: built.append(done))

    first, again = make(), make()
    assert built == [2]
    assert first.captions == again.captions == tuple(variant(pictures[0], number, 5).caption for number in (0, 1))
    assert first.latents.shape == (2, 4, 8, 8)
    assert np.allclose(first.states, text_states()(first.captions).numpy(), atol=2e-3)
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
    pairs, pictures = [(0, 0)], [draw_artwork("ball")]

    def stop(_done: int, _of: int) -> None:
        raise KeyboardInterrupt

    text = text_states()
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, pictures, pairs, (vae, text), seed=1, told=stop)
    assert next(tmp_path.iterdir()).suffix == ".partial"
    cached(tmp_path, pictures, pairs, (vae, text), seed=1)
    assert len(open_cache(next(tmp_path.glob("variants-*")))) == 1


# --- the network


def test_noising_and_v_equal_diffusers() -> None:
    scheduler = DDPMScheduler(**SCHEDULE)
    clean, noise = torch.randn(5, 4, 4, 4), torch.randn(5, 4, 4, 4)
    times = torch.tensor([0, 10, 500, 900, 999])
    mixed, velocity = noised(clean, noise, scheduler.alphas_cumprod[times])
    assert torch.allclose(mixed, scheduler.add_noise(clean, noise, times), atol=1e-5)  # pyright: ignore[reportArgumentType]
    assert torch.allclose(velocity, scheduler.get_velocity(clean, noise, times), atol=1e-5)  # pyright: ignore[reportArgumentType]
    assert torch.equal(mixed[-1], noise[-1])  # the last step is pure noise


def test_a_grafted_network_first_predicts_the_same() -> None:
    source = tiny_network().eval()
    grown = graft(source).eval()
    x, text = torch.randn(2, 4, 4, 4), torch.randn(2, 6, 64)
    with torch.no_grad():
        before = source(x, torch.tensor(500), encoder_hidden_states=text).sample
        after = grown(x, torch.tensor(500), encoder_hidden_states=text).sample
    assert torch.equal(before, after)
    assert graft(grown) is grown


def test_a_fresh_network_has_the_shape_of_a_folder_but_new_weights(tmp_path: Path) -> None:
    checkpoint.export(graft(tiny_network(seed=5)), tmp_path)
    stored, one, again, other = open_network(tmp_path), *(fresh_network(tmp_path, seed) for seed in (1, 1, 2))
    weights = [network.state_dict() for network in (stored, one, again, other)]
    assert [each.keys() == weights[0].keys() for each in weights] == [True] * 4
    assert are_equal(weights[1], weights[2])
    for name in ("conv_in.weight", "conv_out.weight", "mid_block.resnets.0.conv1.weight"):
        assert not torch.allclose(weights[0][name], weights[1][name], atol=1e-3)
        assert not torch.allclose(weights[1][name], weights[3][name], atol=1e-3)


def test_an_error_on_training_pictures_has_another_name_than_v_mse() -> None:
    trainer = build_trainer()
    args = (trainer, trainer.cache, torch.zeros(1, 6, 64), tiny_autoencoder(), DDIMScheduler(**SCHEDULE))
    assert Judge(*args).figures().keys() == {"v_mse"}
    assert Judge(*args, "v_mse_of_pictures").figures().keys() == {"v_mse_of_pictures"}


def test_training_lowers_the_loss_of_the_network_and_its_average() -> None:
    trainer = build_trainer(settings=Settings(batch=8, warm=5, rate=3e-3))
    before = v_mse(trainer.average, trainer.cache, trainer.alphas)
    for _ in range(60):
        trainer.step(0.0)
    assert v_mse(trainer.network, trainer.cache, trainer.alphas) < 0.9 * before
    assert v_mse(trainer.average, trainer.cache, trainer.alphas) < 0.95 * before


def test_resume_is_exact_bit_for_bit(tmp_path: Path) -> None:
    uninterrupted = build_trainer(6)
    half = build_trainer(3)
    checkpoint.save(tmp_path / "c", half.tensors(), {"steps": half.steps})
    tensors, position = checkpoint.load(tmp_path / "c")
    other = Trainer(graft(tiny_network(seed=9)), tiny_cache(), half.alphas, half.settings)
    other.restore(tensors, position["steps"])
    for number in range(3, 6):
        other.step(number / 10)
    assert are_equal(uninterrupted.tensors(), other.tensors())
    assert other.samples == 48


def test_a_stopped_and_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    uninterrupted = build_run(tmp_path / "whole", Budget(samples=48))
    uninterrupted.go(lambda: 0.0, lambda: False, lambda _: None, every=60)
    first, losses = build_run(tmp_path / "broken", Budget(samples=48)), []
    first.go(lambda: 0.0, lambda: len(losses) == 2, lambda loss: losses.append(loss), every=60)
    second = build_run(tmp_path / "broken", Budget(samples=48))
    second.resume()
    second.go(lambda: 0.0, lambda: False, lambda _: None, every=60)
    unbroken, again = (checkpoint.load(tmp_path / name / CHECKPOINT)[0] for name in ("whole", "broken"))
    assert are_equal(unbroken, again)
    assert Settings(**settings_of(tmp_path / "broken")) == uninterrupted.trainer.settings
    lines = [json.loads(line) for line in (tmp_path / "broken" / "log.jsonl").read_text().splitlines()]
    assert [line["samples"] for line in lines] == [16, 48]
    with Image.open(tmp_path / "broken" / "sheets" / "000000048.png") as sheet:
        assert sheet.size == (2 * 32 * 2, 32 * 2)


def test_a_budget_by_the_clock_survives_pauses() -> None:
    budget = Budget(until=1000.0)
    assert budget.share(0, started=0.0, now=250.0) == 0.25
    assert budget.share(10**9, started=0.0, now=2000.0) == 1.0
    assert Budget(samples=100).share(50, 0.0, 10**9) == 0.5


def test_a_loss_that_is_not_a_number_stops_the_run() -> None:
    trainer = build_trainer()
    trainer.cache.latents[:] = np.inf
    with pytest.raises(ValueError, match="not a number"):
        trainer.step(0.0)


def test_sampling_repeats_by_seed() -> None:
    network, scheduler = tiny_network().eval(), DDIMScheduler(**SCHEDULE)
    states, empty = torch.randn(2, 6, 64), torch.zeros(6, 64)
    one = sample(network, states, empty, scheduler, steps=4)
    assert torch.equal(one, sample(network, states, empty, scheduler, steps=4))
    assert torch.isfinite(one).all()


# --- checkpoints

SAVE_FOREVER = """
import sys, torch
from pathlib import Path
from engine.training import checkpoint
number = 0
while True:
    number += 1
    tensors = {f"t{i}": torch.full((300_000,), float(number)) for i in range(8)}
    checkpoint.save(Path(sys.argv[1]), tensors, {"number": number})
"""


def test_a_checkpoint_survives_a_kill_while_the_next_is_written(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint"
    writer = subprocess.Popen([sys.executable, "-c", SAVE_FOREVER, str(path)], cwd=ROOT)
    try:
        _until(lambda: path.exists() and path.with_name("checkpoint.fresh").exists())
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
    checkpoint.export(trainer.average, tmp_path / "unet")
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float32)
    assert loaded.config["addition_embed_type"] == "text"
    theirs = dict(trainer.average.named_parameters())
    assert all(torch.equal(p, theirs[name].half().float()) for name, p in loaded.named_parameters())
    assert all(p.dtype == torch.float32 for p in trainer.average.parameters())


@pytest.mark.parametrize(("raw", "prefix"), [((), "network:average."), (("--raw",), "network.")])
def test_the_checkpoint_of_an_unfinished_run_can_be_exported(tmp_path: Path, raw: tuple[str, ...], prefix: str) -> None:
    alphas = DDIMScheduler(**SCHEDULE).alphas_cumprod
    trainer = Trainer(open_network(WEIGHTS / "unet"), embedded_cache(), alphas, Settings(batch=2))
    trainer.step(0.5)
    tensors = trainer.tensors()
    checkpoint.save(tmp_path / "run" / CHECKPOINT, tensors, {"steps": 1})
    assert main(["export", str(tmp_path), "--to", str(tmp_path / "unet"), *raw]) == 0
    loaded = UNet2DConditionModel.from_pretrained(tmp_path / "unet", torch_dtype=torch.float32)
    assert all(torch.equal(p, tensors[f"{prefix}{name}"].half().float()) for name, p in loaded.named_parameters())


def _until(true: Callable[[], bool], seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "the condition did not come true in time"
        time.sleep(0.002)
