"""Textual inversions and skipped layers of CLIP: the oracle is diffusers' own loading and its own `clip_skip`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file

from benchmarks.fixtures.reference_pipeline import call_pipeline as by_pipeline
from engine.batching.engine import Engine
from engine.batching.job_images import reason_to_decline
from engine.calibration.calibration import Calibration
from engine.contract import Concept, JobRejected, ModelPart, ReferenceImage
from engine.models import embedding_files
from shared.small_families import by_engine, error
from shared.text_models import SLOTS, WIDTH, load_family, load_pipeline, save_model, write_embedding

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own

Make = Callable[..., Any]
CALIBRATION = Calibration("float32", 4, 10, "ddim", 1.0, 1.0, 1.0, {1: 1.0}, {"float32": 1.0})


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {kind: save_model(kind, tmp_path_factory.mktemp("text") / kind) for kind in SLOTS}


@pytest.fixture
def load(folders: dict[str, Path], tmp_path: Path) -> Make:
    return lambda kind: load_family(folders[kind], kind, tmp_path)


def load_by_diffusers(pipeline: Any, kind: str, path: Path) -> None:
    """Loads a textual inversion into the unmodified pipeline, as its documentation says."""
    for key, ending in SLOTS[kind].items():
        pipeline.load_textual_inversion(
            {"*": load_file(path)[key]},
            token=f"<{path.stem}>",
            tokenizer=getattr(pipeline, f"tokenizer{ending}"),
            text_encoder=getattr(pipeline, f"text_encoder{ending}"),
        )


def build_recipe(make: Make, kind: str, text: str = "a cat", **fields: Any) -> Any:
    defaults: dict[str, Any] = {
        "model": kind,
        "sampler": {"sd": "ddim", "sdxl": "euler"}[kind],
        "steps": 3,
        "width": 32,
        "height": 32,
        "guidance": 3.0,
    }
    return make(text, **(defaults | fields))


def embed(*names: str) -> dict[str, Any]:
    return {"embeddings": tuple(ModelPart(name) for name in names)}


@pytest.mark.parametrize("kind", SLOTS)
def test_latents_equal_those_of_a_pipeline_that_loads_the_textual_inversions_itself(
    load: Make, folders: dict[str, Path], tmp_path: Path, recipe: Make, job: Make, finish: Make, kind: str
) -> None:
    """One has a vector, one has three; the text names them with and without brackets, in any capitals."""
    pipeline = load_pipeline(folders[kind])
    family = load(kind)
    for name, vectors in (("Toy", 1), ("style.v2", 3)):
        load_by_diffusers(pipeline, kind, write_embedding(tmp_path, kind, name, vectors, seed=vectors))
    assert [part.name for part in family.list_embeddings()] == ["Toy", "style.v2"]
    written = "my <toy> STYLE.V2"
    exact = "my <Toy> <style.v2>"
    fields = {"negative": "<style.v2>", "count": 2}
    plain_latents = by_engine(family, build_recipe(recipe, kind, written, **fields), job, finish)
    one = build_recipe(recipe, kind, written, **fields, **embed("Toy", "style.v2"))
    expected = by_pipeline(pipeline, family, build_recipe(recipe, kind, exact, **fields))
    for actual, wanted, plain in zip(by_engine(family, one, job, finish), expected, plain_latents, strict=True):
        assert error(actual, wanted) <= 1e-4
        assert error(actual, plain) > 1e-3
    again = by_engine(family, build_recipe(recipe, kind, written, **fields), job, finish)
    assert all(torch.equal(*pair) for pair in zip(again, plain_latents, strict=True))


@pytest.mark.parametrize("clip_skip", [0, 2])
def test_a_long_text_with_weights_keeps_every_vector(
    load: Make, folders: dict[str, Path], tmp_path: Path, recipe: Make, clip_skip: int
) -> None:
    """Two chunks of fourteen tokens; the oracle's tokenizer and encoder have the words, and the layer is diffusers'."""
    path = write_embedding(tmp_path, "sd", "toy", 3)
    family = load("sd")
    pipeline = load_pipeline(folders["sd"])
    load_by_diffusers(pipeline, "sd", path)
    one = build_recipe(recipe, "sd", "a (toy:1.5) abcdefghijklmn", clip_skip=clip_skip, **embed("toy"))
    (actual,) = family.encode_conditioning(one.concepts[0].text, family.with_embeddings(one))
    ids = list[int]()
    weights = list[float]()
    for text, weight in (("a ", 1.0), ("<toy> <toy>_1 <toy>_2", 1.5), (" abcdefghijklmn", 1.0)):
        ids += (tokens := pipeline.tokenizer(text, add_special_tokens=False).input_ids)
        weights += [weight] * len(tokens)
    assert len(ids) == 18
    expected = list[torch.Tensor]()
    for begin in (0, 14):
        chunk = ids[begin : begin + 14]
        chunk_weights = weights[begin : begin + 14]
        padding = 14 - len(chunk)
        with torch.inference_mode():
            output = pipeline.text_encoder(torch.tensor([[0, *chunk, 1, *[1] * padding]]), output_hidden_states=True)
            layer = output.hidden_states[-1 - clip_skip]
            states = pipeline.text_encoder.final_layer_norm(layer)[0] if clip_skip else output[0][0]
        weighted = states * torch.tensor([1.0, *chunk_weights, 1.0, *[1.0] * padding])[:, None]
        ratio = 1.0 if begin else float(states.mean() / weighted.mean())
        expected.append(weighted * min(2.0, max(0.5, ratio)))
    assert error(actual, torch.cat(expected)) <= 1e-5


@pytest.mark.sampled
@pytest.mark.parametrize("kind", SLOTS)
@pytest.mark.parametrize("clip_skip", [1, 2])
def test_skipped_layers_equal_the_pipelines(
    load: Make, folders: dict[str, Path], recipe: Make, job: Make, finish: Make, kind: str, clip_skip: int
) -> None:
    family = load(kind)
    pipeline = load_pipeline(folders[kind])
    one = build_recipe(recipe, kind, negative="a dog", clip_skip=clip_skip)
    (actual,) = by_engine(family, one, job, finish)
    assert error(actual, by_pipeline(pipeline, family, one)[0]) <= 1e-4
    (plain,) = by_engine(family, build_recipe(recipe, kind, negative="a dog"), job, finish)
    assert error(actual, plain) > 1e-3


@pytest.mark.slow
def test_jobs_with_different_words_and_layers_share_the_forward_and_not_a_bit_of_each_other(
    load: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make
) -> None:
    for seed, name in enumerate(("toy", "hat")):
        write_embedding(tmp_path, "sd", name, 2, seed=seed)
    family = load("sd")
    fields: list[dict[str, Any]] = [{}, embed("toy"), embed("hat"), embed("toy", "hat"), {"clip_skip": 1}]
    fields.append({"clip_skip": 1, "sampler": "heun", **embed("hat")})  # a whole pipeline
    jobs = [job(build_recipe(recipe, "sd", "a toy hat", **each), user=f"u{n}") for n, each in enumerate(fields)]
    lone_pictures = [by_engine(load("sd"), each.task, job, finish)[0] for each in jobs]
    engine = Engine({"sd": family})
    for each in jobs:
        engine.add(each)
    shared_latents = finish(engine)
    for each, expected in zip(jobs, lone_pictures, strict=True):
        torch.testing.assert_close(shared_latents[each.id, 0], expected, rtol=0, atol=1e-4)
    assert len({each.numpy().tobytes() for each in lone_pictures}) == len(fields)


def test_a_resumed_image_is_the_same_picture(load: Make, tmp_path: Path, recipe: Make, job: Make, finish: Make) -> None:
    write_embedding(tmp_path, "sd", "toy", 2)
    one = job(build_recipe(recipe, "sd", "a toy", steps=4, clip_skip=1, **embed("toy")))
    expected = by_engine(load("sd"), one.task, job, finish)[0]
    engine = Engine({"sd": load("sd")})
    engine.add(one)
    engine.step()
    snapshots = engine.take_snapshots(one.id, 1)
    other = Engine({"sd": load("sd")})
    other.add(one, snapshots)
    assert torch.equal(finish(other)[one.id, 0], expected)


def test_what_fits_is_announced_and_all_else_refused_with_a_sentence(
    load: Make,
    tmp_path: Path,
    recipe: Make,
    job: Make,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = write_embedding(tmp_path, "sd", "fits", 2).parent
    write_embedding(tmp_path, "sdxl", "both", 2)
    save_file({"emb": torch.zeros(1, 768)}, folder / "wide.safetensors")
    save_file({"emb": torch.zeros(80, WIDTH)}, folder / "long.safetensors")
    save_file({"emb": torch.full((1, WIDTH), torch.nan)}, folder / "nan.safetensors")
    save_file({f"w{n}": torch.zeros(2) for n in range(9)}, folder / "model.safetensors")
    (folder / "spoilt.safetensors").write_bytes(b"rubbish")
    torch.save({}, folder / "old.pt")
    save_file({"emb": torch.zeros(1, WIDTH)}, tmp_path / "elsewhere.safetensors")
    (folder / "out.safetensors").symlink_to(tmp_path / "elsewhere.safetensors")
    family = load("sd")
    profile = CALIBRATION.to_model_profile(family)
    assert [part.name for part in profile.embeddings] == ["fits", "nan"]
    assert profile.max_clip_skip == 3
    assert CALIBRATION.to_model_profile(load("sdxl")).max_clip_skip == 2
    assert [part.name for part in CALIBRATION.to_model_profile(load("sdxl")).embeddings] == ["both"]
    assert {"long", "model", "spoilt", "old", "out"} <= {word for line in caplog.messages for word in line.split()}
    ending = "exists only as a pickle, which can run code when it is opened: convert it to safetensors."
    for name, sentence in {
        "absent": "This worker has no textual inversion called absent.",
        "old": f"The textual inversion old {ending}",
        "spoilt": "The textual inversion spoilt cannot be read as safetensors.",
        "long": "The textual inversion long is no textual inversion of at most 64 vectors.",
        "nan": "The textual inversion nan holds numbers that are not finite.",
        "wide": "The textual inversion wide does not fit this model: its vectors have 768 numbers, and those of sd "
        "have 32.",
        "both": "The textual inversion both does not fit this model: sd needs one tensor, and the file has clip_g, "
        "clip_l.",
        "out": "The textual inversion out is a link that leads out of the folder that it is in.",
    }.items():
        with pytest.raises(JobRejected) as rejection:
            Engine({"sd": family}).add(job(build_recipe(recipe, "sd", f"a <{name}>", **embed(name))))
        assert rejection.value.sentence == sentence
    monkeypatch.setattr(embedding_files, "MAX_FILE_BYTES", 64)
    with pytest.raises(JobRejected, match="so it is no textual inversion"):
        Engine({"sd": family}).add(job(build_recipe(recipe, "sd", "a <fits>", **embed("fits"))))


def test_a_worker_declines_what_it_lacks(load: Make, tmp_path: Path, recipe: Make, job: Make) -> None:
    write_embedding(tmp_path, "sd", "toy", 1)
    family = load("sd")
    profile = CALIBRATION.to_model_profile(family)
    (own,) = profile.embeddings
    refusals: list[tuple[dict[str, Any], str]] = [
        ({"embeddings": (own,)}, ""),
        ({"clip_skip": 3}, ""),
        ({"embeddings": (ModelPart("toy", "other"),)}, "This worker has no such version of the textual inversion toy"),
        ({"clip_skip": 4}, "The text encoder of sd can skip at most 3 of its layers."),
        (
            {"references": (ReferenceImage("face", "a" * 64),)},
            "This worker has no such version of the reference adapter face for sd.",
        ),
        ({"autoencoder": ModelPart("fine")}, "This worker has no such version of the autoencoder fine for sd."),
    ]
    for fields, sentence in refusals:
        one = build_recipe(recipe, "sd", **fields)
        assert reason_to_decline(one, [profile]).startswith(sentence)
        assert bool(reason_to_decline(one, [profile])) == bool(sentence)
        if sentence:
            with pytest.raises(JobRejected):
                Engine({"sd": family}).add(job(one))


def test_a_model_without_skippable_layers_says_so(embedded: Any, recipe: Make, job: Make) -> None:
    assert embedded.max_clip_skip == 0
    with pytest.raises(JobRejected, match="The text encoder of embedded skips no layers"):
        Engine({"embedded": embedded}).add(job(recipe(model="embedded", clip_skip=1)))


def test_a_composition_keeps_its_words(load: Make, tmp_path: Path, recipe: Make) -> None:
    """Only the concept that names it is encoded with it."""
    write_embedding(tmp_path, "sd", "toy", 2)
    family = load("sd")
    one = family.with_embeddings(build_recipe(recipe, "sd", concepts=(Concept("a toy"), Concept("a")), **embed("toy")))
    family.encode_conditioning("a toy", one)
    family.encode_conditioning("a", one)
    assert {key.text: len(key.embeddings) for key in family.text_cache.keys} == {"a toy": 1, "a": 0}
    plain = family.encode_conditioning("a toy", msgspec.structs.replace(one, embeddings=()))[0]
    assert not torch.equal(family.encode_conditioning("a toy", one)[0], plain)
