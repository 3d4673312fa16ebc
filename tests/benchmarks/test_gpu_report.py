"""`darkroom gpu-report`: every kind of model against its pipeline, every way to run one, and the two files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import typer

from benchmarks.fixtures.small_pipelines import PIPELINE_BUILDERS, save_small_pipeline
from benchmarks.gpu_report import __main__ as report
from benchmarks.gpu_report import device_facts, parity, speedups
from benchmarks.gpu_report.__main__ import format_json, format_markdown
from benchmarks.gpu_report.device_facts import describe_device
from benchmarks.models.measurement import Figures
from benchmarks.report.figure_row import FigureRow
from engine import models
from engine.models.families.diffusers_family import DiffusersFamily
from engine.process.memory_requests import Offload

pytestmark = pytest.mark.filterwarnings("ignore:__array:DeprecationWarning")  # diffusers' schedulers
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without float16 takes ten seconds for the full ones."""
    monkeypatch.setattr(device_facts, "CPU_MATRIX_SIDE", 256)


@pytest.fixture
def one_kind_and_two_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test of the report itself measures."""
    monkeypatch.setattr(parity, "PIPELINE_BUILDERS", {"sd": PIPELINE_BUILDERS["sd"]})
    monkeypatch.setattr(speedups, "BATCH_SIZES", (2, 4))
    monkeypatch.setattr(parity, "QUANTIZATIONS", ("int8", "nf4"))


@pytest.mark.slow
def test_every_kind_is_measured_and_matches_its_pipeline() -> None:
    rows = parity.measure_parity_rows(CPU)
    assert len(rows) == len(PIPELINE_BUILDERS)
    assert [f"{row.name}: {row.note}" for row in rows if not row.meets_goal] == []


@pytest.mark.slow
def test_pictures_beside_the_prompt_are_measured_and_match_their_pipelines() -> None:
    rows = parity.measure_picture_rows(CPU)
    rows += parity.measure_control_rows(CPU)
    assert [f"{row.name}: {row.note}" for row in rows if not row.meets_goal] == []
    assert len(rows) == 6


@pytest.mark.slow
def test_a_failing_kind_is_reported_and_the_others_continue(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(kind: str, folder: Path) -> None:
        if kind == "sd":
            raise RuntimeError("no kernel image is available")
        save_small_pipeline(kind, folder)

    monkeypatch.setattr(parity, "save_small_pipeline", fail)
    broken_row, sound_row = parity.measure_parity_rows(CPU, ("sd", "sdxl"))
    assert (broken_row.figure, broken_row.meets_goal) == (None, False)
    assert "no kernel image" in broken_row.note
    assert sound_row.meets_goal


@pytest.mark.slow
def test_a_picture_that_differs_is_a_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    original = parity.call_pipeline
    monkeypatch.setattr(parity, "call_pipeline", lambda *args: original(*args) * 1.01)
    (row,) = parity.measure_parity_rows(CPU, ("sd",))
    assert row.figure == pytest.approx(0.01, abs=0.009)
    assert not row.meets_goal


@pytest.fixture
def load(tmp_path: Path) -> speedups.LoadFamily:
    save_small_pipeline("sd", tmp_path / "sd")

    def load_family(offload: Offload = "none") -> DiffusersFamily:
        family = models.load_model(str(tmp_path / "sd"), tmp_path, offload=offload)
        assert isinstance(family, DiffusersFamily)
        return family

    return load_family


@pytest.mark.slow
def test_each_method_is_measured_or_marked_as_gpu_only(load: speedups.LoadFamily) -> None:
    rows = speedups.measure_speedup_rows(load)
    measured_figures = {row.name: row.figure for row in rows if row.figure is not None}
    assert all(figure > 0 for figure in measured_figures.values())
    assert sorted(measured_figures) == sorted(speedups._batch_row_name(count) for count in speedups.BATCH_SIZES)
    assert {row.note for row in rows if row.figure is None} == {speedups.NO_GPU_NOTE}
    assert len(rows) == len(speedups.BATCH_SIZES) + 3 + len(speedups.OFFLOAD_ROW_NAMES)


def test_a_failing_method_does_not_stop_the_others(load: speedups.LoadFamily, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> float:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(speedups, "_measure_ms", fail)
    rows = speedups.measure_speedup_rows(load)
    assert len(rows) == len(speedups.BATCH_SIZES) + 3 + len(speedups.OFFLOAD_ROW_NAMES)
    assert all("out of memory" in row.note for row in rows[: len(speedups.BATCH_SIZES)])
    assert {row.note for row in rows[len(speedups.BATCH_SIZES) :]} == {speedups.NO_GPU_NOTE}


def test_a_method_that_fails_late_keeps_its_first_rows_and_repeats_none(
    load: speedups.LoadFamily, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0

    def fail_at_the_third_size(*_: Any) -> float:
        nonlocal calls
        calls += 1
        if calls > 3:  # one row alone, then two sizes
            raise torch.OutOfMemoryError("out of memory")
        return 1.0

    monkeypatch.setattr(speedups, "_measure_ms", fail_at_the_third_size)
    rows = speedups.measure_speedup_rows(load)[: len(speedups.BATCH_SIZES)]
    assert [row.name for row in rows] == [speedups._batch_row_name(count) for count in speedups.BATCH_SIZES]
    assert [row.figure for row in rows] == [2.0, 4.0, None, None]


def test_failures_name_no_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise FileNotFoundError(2, "No such file or directory", "/home/ada/models/sd")

    figures = Figures()
    figures.add_measured("this", fail)
    monkeypatch.setattr(parity, "save_small_pipeline", fail)
    rows = speedups.measure_speedup_rows(fail)
    rows += parity.measure_parity_rows(CPU, ("sd",))
    notes = [*figures.failures, *(row.note for row in rows)]
    assert all("No such file" in note and "ada" not in note for note in notes), notes


def test_latents_that_are_not_finite_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    original = parity.run_engine
    monkeypatch.setattr(parity, "run_engine", lambda *args: original(*args) * torch.nan)
    (row,) = parity.measure_parity_rows(CPU, ("sd",))
    assert "not finite" in row.note
    assert "| **failed** | sd: latents" in format_markdown({"device": "a", "kind": "cuda"}, {"Parity": [row]})


def test_real_sizes_on_a_processor_need_a_word(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "measure_report", lambda *_, **__: pytest.fail("measured"))
    with pytest.raises(typer.BadParameter, match="need --full"):
        report.main(["--out", str(tmp_path), "--models", "sd15"])


@pytest.mark.slow
def test_the_device_is_described_in_plain_values() -> None:
    facts = json.loads(json.dumps(describe_device(CPU)))
    assert facts["kind"] == "cpu"
    assert facts["torch"] == torch.__version__.partition("+")[0] or facts["torch"] == torch.__version__
    assert facts["float32, TFLOP/s"] > 0
    assert {f"{dtype}, TFLOP/s" for dtype in ("float32", "bfloat16", "float16")} <= set(facts)


def test_the_page_says_what_was_measured_and_what_was_not() -> None:
    rows = [FigureRow("a | b", 0.5, "≥ 1", "×", "two\nlines"), FigureRow("c", None, None, "×", speedups.NO_GPU_NOTE)]
    facts = {"device": "a processor", "kind": "cpu", "driver": None}
    page = format_markdown(facts, {"Ways": rows})
    assert "There is no GPU here" in page
    assert "| **miss** | a \\| b | 0.5 × | ≥ 1 | two lines |" in page
    assert "| – | c | not measured |  | not on a processor |" in page
    partial_page = format_markdown(facts, {"Ways": [FigureRow("d", 1.0, None, "×", "n", 3, 4)]})
    assert "only 3 of 4 were measured; n" in partial_page
    assert "There is no GPU" not in format_markdown({**facts, "kind": "cuda"}, {})
    content = json.loads(format_json(facts, {"Ways": rows}))
    assert [row["pass"] for row in content["sections"]["Ways"]] == [False, False]


@pytest.mark.slow
@pytest.mark.usefixtures("one_kind_and_two_batches")
def test_both_files_are_written_and_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(report, "measure_models", lambda *_, **__: pytest.fail("real sizes without --full"))
    assert report.main(["--out", str(tmp_path / "new"), "--cache", str(tmp_path)]) == 0
    output, err = capsys.readouterr()
    files = [Path(line) for line in output.splitlines()]
    assert [file.name for file in files] == ["darkroom-gpu-report.json", "darkroom-gpu-report.md"]
    assert "no GPU here" in err
    page = files[1].read_text()
    assert "Parity with the unmodified pipelines" in page
    assert str(tmp_path) not in page + files[0].read_text()


def test_full_measures_the_chosen_real_sizes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module, section in (
        (parity, "measure_parity_rows"),
        (parity, "measure_picture_rows"),
        (speedups, "measure_speedup_rows"),
        (parity, "measure_quantization_rows"),
        (parity, "measure_control_rows"),
    ):
        monkeypatch.setattr(module, section, lambda *_: [])  # the test above runs them
    chosen_rows: list[Any] = []

    def measure(names: tuple[str, ...], cache: Path, **_: Any) -> list[FigureRow]:
        chosen_rows.append((names, cache))
        return [FigureRow("sd15: a step", 1.0, None, "×")]

    monkeypatch.setattr(report, "measure_models", measure)
    report.main(["--out", str(tmp_path), "--cache", str(tmp_path / "c"), "--full", "--models", "sd15"])
    assert chosen_rows == [(("sd15",), tmp_path / "c")]
    assert "sd15: a step" in (tmp_path / "darkroom-gpu-report.md").read_text()
