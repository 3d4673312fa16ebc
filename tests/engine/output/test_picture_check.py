"""The picture check in the real decode worker and the real worker; its small classifier flags red pictures."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
import torch
from PIL import Image

from engine.batching.engine import Engine, StepDone
from engine.bus import Bus, BusLimits
from engine.bus.embedded_broker import Broker
from engine.contract import Frame, Job, JobFailed, JobFinished, JobRejected, JobStarted, PictureReady, UpscaleTask
from engine.output.decode_worker import DecodeWorker
from engine.output.picture_check import PictureCheck
from engine.picture_files import encode_png
from engine.process.setting_sources import SettingError
from engine.process.settings import PictureCheckSettings, load_settings
from engine.worker.doctor import check_picture_check
from engine.worker.main import load_all_models
from engine.worker.worker import Worker
from engine.worker.worker_life import Watchdog, WorkerProfile
from shared.clock import wait_until

RED = Image.new("RGB", (40, 30), "red")
GREEN = Image.new("RGB", (40, 30), "lime")
TIMEOUT = 60.0


def build_classifier(folder: Path, names: dict[int, str] | None = None, **config: Any) -> Path:
    """Builds a ViT with one patch. It scores the last label by how much redder than green a picture is."""
    transformers: Any = import_module("transformers")
    names = names or {0: "normal", 1: "nsfw"}
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = transformers.ViTForImageClassification(
        transformers.ViTConfig(image_size=8, patch_size=8, id2label=names, **(sizes | config))
    )
    with torch.no_grad():
        for weights in model.parameters():
            weights.zero_()
        for name, weights in model.named_parameters():
            if "layernorm" in name and name.endswith("weight"):
                weights.fill_(1.0)
            elif "patch_embeddings" in name and name.endswith("weight"):
                # feature 0: mean red less mean green
                weights[0, 0] = 1 / 64
                weights[0, 1] = -1 / 64
            elif name.endswith(("attention.v_proj.weight", "attention.o_proj.weight")):
                weights.copy_(torch.eye(8))  # the class token attends to the patch
        model.classifier.weight[-1, 0] = 8.0
        model.classifier.bias[-1] = -1.0
    model.save_pretrained(folder)
    transformers.ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_classifier(tmp_path_factory.mktemp("red-is-unsafe"))


@pytest.fixture
def check(classifier: Path) -> RecordingCheck:
    return RecordingCheck.load(classifier)


@pytest.fixture
def second_check(classifier: Path) -> RecordingCheck:
    return RecordingCheck.load(classifier)


class RecordingCheck(PictureCheck):
    """The real check, which records the thread of each call."""

    is_failing = False

    @classmethod
    def load(cls, *args: Any, **options: Any) -> RecordingCheck:
        check = super().load(*args, **options)
        assert isinstance(check, cls)
        check.threads.clear()  # loading runs it once
        return check

    @property
    def threads(self) -> list[str]:
        return self.__dict__.setdefault("_threads", [])

    def __call__(self, picture: Image.Image) -> Any:
        self.threads.append(threading.current_thread().name)
        if self.is_failing:
            raise RuntimeError("out of memory")
        return super().__call__(picture)


def test_red_is_flagged_and_green_passes(classifier: Path) -> None:
    check = PictureCheck.load(classifier)
    assert (check.labels, check(RED), check(GREEN)) == (["nsfw"], "flagged", "passed")
    assert check(GREEN.convert("P")) == check(GREEN.convert("LA")) == "passed"


def test_the_threshold_decides_the_verdict(classifier: Path) -> None:
    grey = Image.new("RGB", (8, 8), "grey")
    score = PictureCheck.load(classifier).score(grey)
    assert 0.2 < score < 0.3
    assert PictureCheck.load(classifier, threshold=0.2)(grey) == "flagged"
    assert PictureCheck.load(classifier, threshold=0.3)(grey) == "passed"


def test_unsafe_labels_add_up_unless_the_classifier_is_multi_label(tmp_path: Path) -> None:
    names = {0: "not_nsfw", 1: "Porn", 2: "hentai", 3: "non-explicit", 4: "sexy"}
    softmax_check = PictureCheck.load(build_classifier(tmp_path / "one", names))
    assert softmax_check.labels == ["Porn", "hentai", "sexy"]
    sigmoid_check = PictureCheck.load(
        build_classifier(tmp_path / "many", names, problem_type="multi_label_classification")
    )
    grey = Image.new("RGB", (8, 8), "grey")
    one = torch.tensor(0.0).exp()
    e = torch.tensor(-1.0).exp()
    assert softmax_check.score(grey) == pytest.approx(float((2 * one + e) / (4 * one + e)))
    assert sigmoid_check.score(grey) == pytest.approx(0.5)


def test_labels_are_chosen_by_name(classifier: Path) -> None:
    check = PictureCheck.load(classifier, labels=("NORMAL",))
    assert (check.labels, check(RED), check(GREEN)) == (["normal"], "passed", "flagged")
    with pytest.raises(JobRejected, match="has no label 'gore'; it has: normal, nsfw"):
        PictureCheck.load(classifier, labels=("gore",))


def test_a_classifier_without_an_unsafe_label_is_refused(tmp_path: Path) -> None:
    with pytest.raises(JobRejected, match="name some in DARKROOM_PICTURE_CHECK_LABELS"):
        PictureCheck.load(build_classifier(tmp_path, {0: "cat", 1: "dog"}))


def remove_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def replace_weights_with_a_pickle(folder: Path) -> None:
    remove_weights(folder)
    torch.save({}, folder / "pytorch_model.bin")


def overwrite_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"rubbish")


def remove_head(folder: Path) -> None:
    safetensors: Any = import_module("safetensors.torch")
    weights = safetensors.load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})


def add_own_code(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    auto_map = {"AutoConfig": "mine.Config", "AutoModelForImageClassification": "mine.Model"}
    config |= {"model_type": "mine", "auto_map": auto_map}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('code of the folder was run')")


def set_nan_bias(folder: Path) -> None:
    safetensors: Any = import_module("safetensors.torch")
    weights = safetensors.load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = float("nan")
    safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (shutil.rmtree, "is no folder with a model's config.json"),
        (remove_weights, "has no weights in safetensors"),
        (replace_weights_with_a_pickle, "a pickle can run code when it is opened"),
        (overwrite_weights, "holds no image classifier that can be loaded"),
        (remove_head, "holds no image classifier that can be loaded"),
        (add_own_code, "holds no image classifier that can be loaded"),
        (set_nan_bias, "fails at a plain grey picture"),
    ],
)
def test_an_unusable_folder_is_refused_in_one_sentence(
    classifier: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(classifier, folder)
    damage(folder)
    with pytest.raises(JobRejected, match=message) as error:
        PictureCheck.load(folder)
    assert error.value.sentence.startswith("The picture check cannot be used: copy ")
    assert "\n" not in error.value.sentence


def test_the_check_settings_come_from_options_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DARKROOM_NATS", "nats://127.0.0.1:4222")
    assert load_settings().check is None
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK", "somewhere")
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK_LABELS", "gore, Drawings ,")
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK_THRESHOLD", "0.25")
    from_option = load_settings(picture_check=tmp_path).check
    assert from_option is not None
    assert (from_option.folder, from_option.labels, from_option.threshold) == (tmp_path, ("gore", "Drawings"), 0.25)
    from_environment = load_settings().check
    assert from_environment is not None
    assert from_environment.folder == Path("somewhere").absolute()


@pytest.mark.parametrize("threshold", ["0", "1.5", "nan", "half"])
def test_an_invalid_threshold_is_refused(monkeypatch: pytest.MonkeyPatch, threshold: str) -> None:
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK_THRESHOLD", threshold)
    with pytest.raises(SettingError, match=r"^DARKROOM_PICTURE_CHECK_THRESHOLD is not valid: "):
        load_settings()


def test_the_doctor_runs_the_check_and_reports_it(classifier: Path, tmp_path: Path) -> None:
    assert list(check_picture_check(PictureCheckSettings(classifier, threshold=0.4))) == [
        ("check", True, f"{classifier.name} flags nsfw from 0.4 on", "")
    ]
    [(name, is_ok, message, advice)] = check_picture_check(PictureCheckSettings(tmp_path))
    assert (name, is_ok) == ("check", False)
    assert "is no folder with a model's config.json" in message
    assert "DARKROOM_PICTURE_CHECK" in advice


def test_a_worker_refuses_an_unusable_folder_at_its_start(tmp_path: Path) -> None:
    settings = load_settings(nats="nats://127.0.0.1:1", data=tmp_path, picture_check=tmp_path / "nowhere", device="cpu")
    with pytest.raises(JobRejected, match="The picture check cannot be used: nowhere is no folder"):
        load_all_models(settings)


# The decode worker


def build_steps(job: Job, total_steps: int, image: int = 0) -> list[StepDone]:
    return [StepDone(job.id, image, k, total_steps, torch.zeros(4, 4, 4)) for k in range(1, total_steps + 1)]


@pytest.fixture
def red_or_green(affine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The affine family: it decodes latents above zero to red, and others to green."""
    monkeypatch.setattr(affine, "decode", lambda latents: RED if float(latents.mean()) > 0 else GREEN)
    return affine


def test_previews_are_checked_once_per_image_after_two_fifths_of_the_steps(
    red_or_green: Any, check: RecordingCheck, recipe: Any, job: Any
) -> None:
    one = job(recipe(steps=10, count=2), check=True)
    decode_worker = DecodeWorker({"affine": red_or_green}, check)
    red = [replace(step, x0=torch.ones(4, 4, 4)) for step in build_steps(one, 10, image=1)]
    frames = [decode_worker.render_frame(step, one, 1, 0.0).result(TIMEOUT) for step in (*build_steps(one, 10), *red)]
    assert [frame.verdict for frame in frames] == (
        ["unchecked"] * 3 + ["passed"] * 7 + ["unchecked"] * 3 + ["flagged"] * 7
    )
    assert check.threads == ["decode-worker"] * 2
    decode_worker.close()


def test_a_finished_picture_gets_its_own_verdict(
    red_or_green: Any, check: RecordingCheck, recipe: Any, job: Any
) -> None:
    one = job(recipe(steps=10), check=True)
    decode_worker = DecodeWorker({"affine": red_or_green}, check)
    assert decode_worker.render_frame(build_steps(one, 10)[5], one, 1, 0.0).result(TIMEOUT).verdict == "passed"
    assert decode_worker.check_picture(encode_png(RED, ""), one).result(TIMEOUT) == "flagged"
    assert decode_worker.render_frame(build_steps(one, 10)[9], one, 1, 0.0).result(TIMEOUT).verdict == "passed"
    decode_worker.close()


def test_forgetting_a_job_forgets_its_verdicts(red_or_green: Any, check: RecordingCheck, recipe: Any, job: Any) -> None:
    one = job(recipe(steps=10), check=True)
    decode_worker = DecodeWorker({"affine": red_or_green}, check)
    decode_worker.render_frame(build_steps(one, 10)[5], one, 1, 0.0).result(TIMEOUT)
    decode_worker.forget_job(one.id)
    decode_worker.render_frame(build_steps(one, 10)[5], one, 2, 0.0).result(TIMEOUT)
    assert len(check.threads) in (1, 2)  # the decode worker forgets a job only when it has no other work
    decode_worker.forget_job(one.id)
    decode_worker.close()
    assert decode_worker._picture_verdicts._preview_verdicts == {}


def test_a_failing_check_leaves_pictures_unchecked(
    red_or_green: Any, check: RecordingCheck, recipe: Any, job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one = job(recipe(steps=10), check=True)
    decode_worker = DecodeWorker({"affine": red_or_green}, check)
    check.is_failing = True
    frames = [decode_worker.render_frame(step, one, 1, 0.0).result(TIMEOUT) for step in build_steps(one, 10)]
    assert {frame.verdict for frame in frames} == {"unchecked"}
    assert len(check.threads) == 1  # the failure counts for all frames
    assert decode_worker.check_picture(encode_png(GREEN, ""), one).result(TIMEOUT) == "unchecked"
    assert decode_worker.check_picture(b"no picture", one).result(TIMEOUT) == "unchecked"
    assert f"job {one.id}: the picture check failed" in caplog.text
    check.is_failing = False
    assert decode_worker.check_picture(encode_png(GREEN, ""), one).result(TIMEOUT) == "passed"
    decode_worker.close()


def test_without_a_request_or_a_check_nothing_is_checked(
    red_or_green: Any, check: RecordingCheck, recipe: Any, job: Any
) -> None:
    job_with_check = job(recipe(steps=10), check=True)
    job_without_check = job(recipe(steps=10))
    worker_with_check = DecodeWorker({"affine": red_or_green}, check)
    worker_without_check = DecodeWorker({"affine": red_or_green})
    for decode_worker, one in ((worker_with_check, job_without_check), (worker_without_check, job_with_check)):
        assert {
            decode_worker.render_frame(step, one, 1, 0.0).result(TIMEOUT).verdict for step in build_steps(one, 10)
        } == {"unchecked"}
        assert decode_worker.check_picture(encode_png(RED, ""), one).result(TIMEOUT) == "unchecked"
        assert decode_worker._picture_verdicts._preview_verdicts == {}
        decode_worker.close()
    assert check.threads == []


# The worker


@dataclass
class CheckHarness:
    """A broker, the bot's end of the bus, and workers."""

    broker: Broker
    bot: Bus
    family: Any
    buses: list[Bus] = field(default_factory=list)
    started_workers: list[tuple[Worker, asyncio.Task[None], DecodeWorker]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    watchers: list[asyncio.Task[None]] = field(default_factory=list)

    async def start_worker(self, name: str, check: PictureCheck | None) -> tuple[Worker, asyncio.Task[None]]:
        bus = await Bus.connect(self.broker.url, self.broker.token, limits=BusLimits(lease=5.0))
        self.buses.append(bus)
        decode_worker = await asyncio.to_thread(DecodeWorker, {"affine": self.family}, check)
        profile = WorkerProfile(name, "cpu", rows=8, has_picture_check=decode_worker.has_picture_check)
        worker = Worker(bus, Engine({"affine": self.family}, rows=8), decode_worker, profile, Watchdog())
        task = asyncio.create_task(worker.run())
        self.started_workers.append((worker, task, decode_worker))
        return worker, task

    def watch_frames_of(self, job: str) -> None:
        self.watchers += [asyncio.create_task(self._request_previews(job)), asyncio.create_task(self._collect_frames())]

    async def _request_previews(self, job: str) -> None:
        while True:
            await self.bot.request_previews(job)
            await asyncio.sleep(0.05)

    async def _collect_frames(self) -> None:
        async for frame in self.bot.watch_frames():
            self.frames.append(frame)

    async def collect_results(self, job: str) -> list[Any]:
        results: list[Any] = []
        source: Any = self.bot.consume_results()
        async with asyncio.timeout(TIMEOUT):
            async for delivered in source:
                await delivered.ack()
                if delivered.value.job == job:
                    results.append(delivered.value)
                if delivered.value.job == job and isinstance(delivered.value, JobFinished | JobFailed):
                    break
        await source.aclose()
        return results


@pytest_asyncio.fixture
async def harness(tmp_path: Path, affine: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[CheckHarness]:
    denoise = affine.denoise

    def denoise_slowly(*args: Any) -> Any:
        time.sleep(0.01)
        return denoise(*args)

    monkeypatch.setattr(affine, "denoise", denoise_slowly)
    monkeypatch.setattr(affine, "decode", lambda latents: RED if float(latents.mean()) < -4.45 else GREEN)
    async with Broker(tmp_path / "nats") as broker:
        bot = await Bus.connect(broker.url, broker.token, limits=BusLimits(lease=5.0))
        await bot.declare()
        await bot.watch_workers()
        harness = CheckHarness(broker, bot, affine)
        yield harness
        for each in harness.watchers:
            each.cancel()
        await asyncio.gather(*harness.watchers, return_exceptions=True)
        for worker, task, decode_worker in harness.started_workers:
            worker.drain()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(decode_worker.close)
        for bus in (*harness.buses, bot):
            await bus.close()


@pytest.mark.slow
@pytest.mark.asyncio
async def test_each_picture_has_its_own_verdict(
    harness: CheckHarness, check: RecordingCheck, second_check: RecordingCheck, recipe: Any, job: Any
) -> None:
    await harness.start_worker("one", check)
    await wait_until(lambda: "one" in harness.bot.workers)
    assert harness.bot.workers["one"].has_picture_check
    one = job(recipe(steps=100, count=4, seed=1), check=True, ladder=True)
    harness.watch_frames_of(one.id)
    await harness.bot.dispatch(one)
    results = await harness.collect_results(one.id)
    pictures = {value.image: value for value in results if isinstance(value, PictureReady) and value.kind == "image"}
    for picture in pictures.values():
        content = await harness.bot.get_blob(picture.sha256, picture.bytes)
        assert picture.verdict == second_check(Image.open(BytesIO(content)))
    assert {picture.verdict for picture in pictures.values()} == {"passed", "flagged"}  # each has its own
    assert {value.verdict for value in results if isinstance(value, PictureReady) and value.kind == "ladder"} == {
        "unchecked"
    }
    early_verdicts = {frame.verdict for frame in harness.frames if frame.step < 40}
    late_frames = [frame for frame in harness.frames if frame.step >= 40]
    late_verdicts = {
        frame.image: {each.verdict for each in late_frames if each.image == frame.image} for frame in late_frames
    }
    assert early_verdicts == {"unchecked"}
    assert late_verdicts
    assert all(len(verdicts) == 1 and verdicts != {"unchecked"} for verdicts in late_verdicts.values())
    assert check.threads == ["decode-worker"] * (4 + len(late_verdicts))


@pytest.mark.asyncio
async def test_a_job_without_a_check_is_not_checked(
    harness: CheckHarness, check: RecordingCheck, recipe: Any, job: Any
) -> None:
    await harness.start_worker("one", check)
    one = job(recipe(steps=50))
    harness.watch_frames_of(one.id)
    await harness.bot.dispatch(one)
    results = await harness.collect_results(one.id)
    assert {value.verdict for value in results if isinstance(value, PictureReady)} == {"unchecked"}
    assert {frame.verdict for frame in harness.frames} == {"unchecked"}
    assert check.threads == []


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_next_worker_checks_the_pictures_again(
    harness: CheckHarness, check: RecordingCheck, second_check: RecordingCheck, recipe: Any, job: Any
) -> None:
    """A snapshot holds no verdicts: they belong to one worker's classifier, and a check is cheap."""
    worker, task = await harness.start_worker("one", check)
    one = job(recipe(steps=200), check=True)
    harness.watch_frames_of(one.id)
    await harness.bot.dispatch(one)
    await wait_until(lambda: any(frame.verdict != "unchecked" for frame in harness.frames))
    worker.drain()
    await task
    harness.frames.clear()
    await harness.start_worker("two", second_check)
    results = await harness.collect_results(one.id)
    assert [value.worker for value in results if isinstance(value, JobStarted)] == ["one", "two"]
    assert (len(check.threads), len(second_check.threads)) == (1, 2)
    assert {frame.verdict for frame in harness.frames if frame.epoch == results[-1].epoch} <= {"passed", "flagged"}
    assert [value.verdict for value in results if isinstance(value, PictureReady) and value.kind == "image"] != [
        "unchecked"
    ]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize(("picture", "verdict"), [(RED, "flagged"), (GREEN, "passed")])
async def test_an_upscaled_picture_is_checked(
    harness: CheckHarness, check: RecordingCheck, job: Any, picture: Image.Image, verdict: str
) -> None:
    await harness.start_worker("one", check)
    source = await harness.bot.put_blob(encode_png(picture, ""))
    one = job(UpscaleTask(source=source), check=True)
    await harness.bot.dispatch(one)
    results = await harness.collect_results(one.id)
    assert [value.verdict for value in results if isinstance(value, PictureReady)] == [verdict]


@pytest.mark.asyncio
async def test_a_failing_check_loses_no_picture(
    harness: CheckHarness, check: RecordingCheck, recipe: Any, job: Any
) -> None:
    check.is_failing = True
    await harness.start_worker("one", check)
    one = job(recipe(steps=5, count=2), check=True)
    await harness.bot.dispatch(one)
    results = await harness.collect_results(one.id)
    assert isinstance(results[-1], JobFinished)
    assert {value.verdict for value in results if isinstance(value, PictureReady)} == {"unchecked"}
