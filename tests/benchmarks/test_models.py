"""`darkroom bench models`: random weights, every row with tiny models, and reported failures."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors import safe_open

from benchmarks.fixtures import small_pipelines
from benchmarks.models import family_memory, measurement, memory_rows, model_configs
from benchmarks.models.__main__ import MODEL_NAMES, PART_NAMES, main, parse_names
from benchmarks.models.measurement import RATIO_ROWS, USER_COUNTS, Figures, make_rows
from benchmarks.models.processes import OutputLine, clean_environment, run_and_collect
from benchmarks.models.random_weights import STAMP_FILE, ensure_model_folder
from benchmarks.report.figure_row import FigureRow
from shared.forked_programs import ForkedPrograms

diffusers: Any = import_module("diffusers")
KINDS = {"sd15": small_pipelines.sd, "sdxl": small_pipelines.sdxl, "flux": small_pipelines.flux}
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' own
PARAMETERS = {"sd15": (859.5e6, 0.06e9), "sdxl": (2567.5e6, 0.01e9), "flux": (0.7e9, 0.1e9)}


@pytest.mark.sampled
@pytest.mark.parametrize("kind", KINDS)
def test_a_folder_of_random_weights_opens_in_its_pipeline_and_draws_finite_pixels(tmp_path: Path, kind: str) -> None:
    folder = ensure_model_folder(tmp_path / kind, KINDS[kind])
    pipeline = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline("a lamp", num_inference_steps=2, output_type="pt").images
    assert torch.isfinite(images.float()).all()
    assert images.float().std() > 0


def test_weights_are_varied_and_the_same_every_time(tmp_path: Path) -> None:
    file = Path("unet/diffusion_pytorch_model.safetensors")
    first, second = (ensure_model_folder(tmp_path / name, small_pipelines.sd) / file for name in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    with safe_open(first, "pt") as weights:
        matrix = weights.get_tensor("mid_block.attentions.0.proj_in.weight").float()
        norm = weights.get_tensor("mid_block.attentions.0.norm.weight")
    assert matrix.flatten().unique().numel() > matrix.numel() / 10
    assert (norm == 1).all()


def test_a_complete_folder_is_kept_and_a_damaged_or_different_one_is_rebuilt(tmp_path: Path) -> None:
    folder = ensure_model_folder(tmp_path / "model", small_pipelines.sd)
    before = (folder / STAMP_FILE).stat().st_ino
    assert (ensure_model_folder(folder, small_pipelines.sd) / STAMP_FILE).stat().st_ino == before
    ensure_model_folder(folder, small_pipelines.sdxl)
    assert json.loads((folder / "model_index.json").read_text())["_class_name"] == "StableDiffusionXLPipeline"
    (folder / STAMP_FILE).unlink()
    ensure_model_folder(folder, small_pipelines.sdxl)
    assert (folder / STAMP_FILE).exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_failed_build_leaves_nothing_half_written(tmp_path: Path) -> None:
    class Broken(diffusers.StableDiffusionPipeline):
        def save_config(self, *_: Any, **__: Any) -> None:
            raise OSError("no space left")

    def build() -> Any:
        return Broken(**small_pipelines.sd().components, requires_safety_checker=False)

    with pytest.raises(OSError, match="no space"):
        ensure_model_folder(tmp_path / "model", build)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("subject", model_configs.list_real_models(on_gpu=True), ids=lambda subject: subject.name)
def test_the_real_configurations_have_the_published_sizes(subject: model_configs.BenchmarkModel) -> None:
    with torch.device("meta"):
        pipeline = subject.build_pipeline()
    network = pipeline.unet if hasattr(pipeline, "unet") else pipeline.transformer
    count, tolerance = PARAMETERS[subject.name]
    assert sum(value.numel() for value in network.parameters()) == pytest.approx(count, abs=tolerance)
    assert pipeline.vae.config.block_out_channels == (128, 256, 512, 512)
    ids = pipeline.tokenizer("zebra Ж").input_ids
    assert max(ids) == ids[-1] == pipeline.text_encoder.config.vocab_size - 1


@pytest.fixture(scope="module")
def forked_programs() -> Iterator[ForkedPrograms]:
    with ForkedPrograms() as programs:
        yield programs


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_short_run_measures_every_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, forked_programs: ForkedPrograms
) -> None:
    """Programs whose seconds count from their start keep a process of their own."""

    def run(command: Sequence[str], log_path: Path) -> list[OutputLine]:
        is_timed = not command[2].startswith("benchmarks.models.")
        return run_and_collect(command, log_path) if is_timed else forked_programs.run_and_collect(command, log_path)

    monkeypatch.setattr(measurement, "run_and_collect", run)
    main(["--tiny", "--only", "sd15", "--parts", "speed", "--steps", "3", "--cache", str(tmp_path), "--json"])
    output, err = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(output)}
    assert [name for name, row in rows.items() if row["figure"] is None] == [], err
    compared = [row.name for row in make_rows(_make_subject(), Figures(), on_gpu=False)]
    assert len(compared) == len(RATIO_ROWS) + len(USER_COUNTS) + 3
    *ratios, outside = (rows[name] for name in compared)
    assert all(row["name"].startswith("sd15: ") and "diffusers" in row["note"] for row in ratios)
    assert "time outside the networks a step, two ControlNets" in outside["name"]


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_short_run_measures_every_row_on_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, forked_programs: ForkedPrograms
) -> None:
    monkeypatch.setattr(memory_rows, "run_and_collect", forked_programs.run_and_collect)
    main(["--tiny", "--only", "sd15", "--parts", "memory", "--cache", str(tmp_path), "--json"])
    output, err = capsys.readouterr()
    rows = {row["name"]: row for row in json.loads(output)}
    assert len(rows) == 9
    assert [name for name, row in rows.items() if row["figure"] is None] == [], err
    assert rows["sd15: offloaded layers, latents against those without"]["pass"]
    assert rows["sd15: offloaded layers, predicted ÷ measured"]["figure"] < 2


def test_a_part_that_fails_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("it was killed")

    monkeypatch.setattr(memory_rows, "run_and_collect", fail)
    rows = list(memory_rows.measure_memory_rows(_make_subject(), tmp_path))
    assert [row.figure for row in rows] == [None] * 3
    assert all("failed: RuntimeError: it was killed" in row.note for row in rows)


def _make_subject(**fields: Any) -> model_configs.BenchmarkModel:
    return model_configs.BenchmarkModel("sd15", small_pipelines.sd, 512, 6, 7.5, **fields)


def _find_row(figures: Figures, name: str, **fields: Any) -> FigureRow:
    return next(row for row in make_rows(_make_subject(**fields), figures, on_gpu=False) if name in row.name)


def test_ratios_divide_our_figure_by_the_sequential_engines() -> None:
    figures = Figures({"ours first": 60.0, "diffusers first": 50.0, "ours 4 users": 0.1, "diffusers alone": 20.0})
    first = _find_row(figures, "first start ever")
    assert (first.figure, first.goal, first.meets_goal) == (1.2, "≤ 1.3", True)
    assert "ours 60, diffusers 50 s" in first.note
    four_users = _find_row(figures, "4 users")
    assert (four_users.figure, four_users.meets_goal) == (2.0, True)
    assert "ours 0.1, diffusers 0.05 a second" in four_users.note


def test_a_failed_measurement_has_no_figure_does_not_pass_and_says_why() -> None:
    figures = Figures({"diffusers first": 50.0}, ["darkroom imagine, first start ever failed: no memory"])
    row = _find_row(figures, "first start ever")
    assert row.figure is None
    assert not row.meets_goal
    assert "no memory" in row.note
    assert "diffusers 50 s" in row.note
    left_out = _find_row(figures, "4 users", user_counts=(2,))
    assert "left out" in left_out.note
    assert left_out.goal is None, "what nobody wanted to measure misses no goal"


def test_one_failed_part_does_not_stop_the_others() -> None:
    figures = Figures()

    def fail() -> dict[str, float]:
        raise RuntimeError("it was\nkilled")

    figures.add_measured("this", fail)
    figures.add_measured("that", lambda: {"ours step": 1.0})
    assert figures.failures == ["this failed: RuntimeError: it was killed"]
    assert figures.values == {"ours step": 1.0}


def test_the_error_of_a_failed_program_is_quoted(tmp_path: Path) -> None:
    program = "import sys; print('{\"a\": 1}', flush=True); sys.exit('there is no such model')"
    with pytest.raises(RuntimeError, match="no such model"):
        run_and_collect([sys.executable, "-c", program], tmp_path / "log")


def test_benchmark_programs_get_no_settings_of_the_real_bot(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DISCORD_TOKEN", "DARKROOM_NATS", "DATABASE_URL"):
        monkeypatch.setenv(name, "real")
    assert "real" not in clean_environment().values()


@pytest.mark.slow
def test_a_short_run_has_every_row_of_the_quantisations(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], forked_programs: ForkedPrograms
) -> None:
    monkeypatch.setattr(memory_rows, "run_and_collect", forked_programs.run_and_collect)
    monkeypatch.setattr(memory_rows, "PROCESSOR_QUANTIZATIONS", ("int8",))
    main(["--tiny", "--only", "sdxl", "--parts", "quantization", "--cache", str(tmp_path), "--json"])
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert [name for name, row in rows.items() if row["figure"] is None] == []
    peak = rows["sdxl int8: memory at its peak, with tiles ÷ bfloat16 whole"]
    assert (peak["goal"], peak["unit"]) == ("≤ 0.6", "×")
    assert rows["sdxl int8: bytes of the weights, predicted and measured, the larger ÷ the smaller"]["pass"]


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(sys.platform != "linux", reason="the process's memory is read from /proc")
def test_a_process_takes_what_the_headers_of_larger_models_predict(
    monkeypatch: pytest.MonkeyPatch, forked_programs: ForkedPrograms
) -> None:
    monkeypatch.setattr(family_memory, "run_and_collect", forked_programs.run_and_collect)
    rows = list(family_memory.measure_family_rows(("lumina2",)))
    assert len(rows) == 1
    assert [f"{row.name}: {row.figure_text}, {row.note}" for row in rows if not row.meets_goal] == []


@pytest.mark.parametrize(
    ("known_names", "text", "names", "unknown"),
    [
        (MODEL_NAMES, "flux, sd15", ("flux", "sd15"), "There is no sd3"),
        (PART_NAMES, "families, speed", ("families", "speed"), "There is no sd3"),
    ],
)
def test_names_are_separated_by_commas(
    known_names: tuple[str, ...], text: str, names: tuple[str, ...], unknown: str
) -> None:
    assert parse_names("", known_names) == known_names
    assert parse_names(text, known_names) == names
    with pytest.raises(typer.BadParameter, match=unknown):
        parse_names("sd3", known_names)
