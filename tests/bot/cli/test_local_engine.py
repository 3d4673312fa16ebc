"""`darkroom imagine` without a running bot: its sentences about init images, and the ladder that it uses."""

from __future__ import annotations

import asyncio
import io
import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console

from benchmarks.fixtures.small_pipelines import save_small_pipeline
from bot.app.settings import load_settings
from bot.cli.imagine.job_inputs import JobInputs, KeyframeRef
from bot.cli.imagine.local_engine import _load_branch_source, _load_init_images, _load_model
from bot.cli.imagine.progress_display import ProgressDisplay
from bot.cli.options import EngineOptions, load_engine
from bot.domain.errors import UserError
from bot.pictures.picture_store import PictureStore
from bot.store import Store, StoredPicture
from shared.stored_jobs import admit_job, make_new_job

UNQUANTIZED = EngineOptions(quantize="none", quantize_text="none")


def test_the_terminal_says_how_an_init_image_was_changed(tmp_path: Path) -> None:
    path = tmp_path / "moving.gif"
    frames = [Image.new("RGB", (32, 32), shade) for shade in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    output = io.StringIO()
    with ProgressDisplay(Console(file=output), 1) as screen:
        start = _load_init_images(JobInputs((path,)), screen)
    assert start is not None
    assert start.notes
    assert all(note in " ".join(output.getvalue().split()) for note in start.notes)


@pytest.mark.asyncio
async def test_the_terminal_finds_a_ladder_as_the_bot_does(sqlite_store: Store, tmp_path: Path) -> None:
    settings = load_settings(data=tmp_path)
    pictures = await asyncio.to_thread(PictureStore, settings.pictures)
    job = await admit_job(sqlite_store, make_new_job())
    for kind, image, content in (("image", 0, b"picture"), ("ladder", 0, b"rungs"), ("image", 1, b"other")):
        sha = await pictures.put(content)
        assert await sqlite_store.record_picture(
            StoredPicture(job, image, kind, sha, len(content), 64, 64, "passed"), 0, 0.0
        )
    assert (await _load_branch_source(sqlite_store, settings, KeyframeRef(job, 0, 4)))[1] == b"rungs"
    for keyframe, reason in (
        (KeyframeRef(job, 1, 4), "no keyframes to branch from"),
        (KeyframeRef("0" * 26, 0, 4), "There is no job"),
    ):
        with pytest.raises(UserError, match=reason):
            await _load_branch_source(sqlite_store, settings, keyframe)


class RecordingScreen(ProgressDisplay):
    """Records the sentences of its progress line about a model."""

    def __init__(self) -> None:
        super().__init__(Console(file=io.StringIO()), 1)
        self.loads: list[tuple[str, int | None]] = []

    def show_loading(self, sentence: str, percent: int | None) -> None:
        self.loads.append((sentence, percent))


@pytest.mark.slow
def test_the_terminals_own_model_is_loaded_with_progress_in_bytes_and_measured(tmp_path: Path) -> None:
    save_small_pipeline("sd", tmp_path / "models" / "tiny")
    screen = RecordingScreen()
    _load_model("tiny", screen, load_engine(load_settings(data=tmp_path), UNQUANTIZED))
    sentences = [sentence for sentence, _ in screen.loads]
    assert (sentences[0], sentences[-1]) == ("loading tiny", "measuring tiny")
    assert len(sentences) > 4
    assert all(re.fullmatch(r"loading tiny, [\d.]+ of [\d.]+ [kMG]B", one) for one in sentences[1:-1])
    assert screen.loads[-2][1] == 100
