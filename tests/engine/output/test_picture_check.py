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

from engine.bus import Bus, BusLimits
from engine.bus.broker.embedded import Broker
from engine.contract import Frame, Job, JobFailed, JobFinished, JobStarted, PictureReady, UpscaleTask
from engine.contract.rejection import JobRejected
from engine.core.engine import Engine, StepDone
from engine.output.decode_worker import DecodeWorker
from engine.output.image_encoding import encode_png
from engine.output.picture_check import PictureCheck
from engine.process.settings import SettingError, load_check_settings, load_settings
from engine.worker.doctor import check_picture_check
from engine.worker.main import load_all_models
from engine.worker.watchdog import Watchdog
from engine.worker.worker import Worker
from engine.worker.worker_profile import WorkerProfile

RED, GREEN = Image.new("RGB", (40, 30), "red"), Image.new("RGB", (40, 30), "lime")
TIMEOUT = 60.0


def build_classifier(folder: Path, names: dict[int, str] | None = None, **config: Any) -> Path:
    """A ViT with one patch. Its weights score the last label by how much redder than green a picture is."""
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
                weights[0, 0], weights[0, 1] = 1 / 64, -1 / 64  # feature 0: mean red less mean green
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

    fails = False

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
        if self.fails:
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
    together = PictureCheck.load(build_classifier(tmp_path / "one", names))
    assert together.labels == ["Porn", "hentai", "sexy"]
    apart = PictureCheck.load(build_classifier(tmp_path / "many", names, problem_type="multi_label_classification"))
    grey = Image.new("RGB", (8, 8), "grey")
    one, e = torch.tensor(0.0).exp(), torch.tensor(-1.0).exp()
    assert together.score(grey) == pytest.approx(float((2 * one + e) / (4 * one + e)))
    assert apart.score(grey) == pytest.approx(0.5)


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
    own = {"AutoConfig": "mine.Config", "AutoModelForImageClassification": "mine.Model"}
    config |= {"model_type": "mine", "auto_map": own}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text("raise SystemExit('code of the folder was run')")


def set_nan_bias(folder: Path) -> None:
    safetensors: Any = import_module("safetensors.torch")
    weights = safetensors.load_file(folder / "model.safetensors")
    weights["classifier.bias"][:] = float("nan")
    safetensors.save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("spoil", "said"),
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
    classifier: Path, tmp_path: Path, spoil: Callable[[Path], None], said: str
) -> None:
    folder = tmp_path / "copy"
    shutil.copytree(classifier, folder)
    spoil(folder)
    with pytest.raises(JobRejected, match=said) as refused:
        PictureCheck.load(folder)
    assert refused.value.sentence.startswith("The picture check cannot be used: copy ")
    assert "\n" not in refused.value.sentence


def test_the_check_settings_come_from_options_and_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DARKROOM_NATS", "nats://127.0.0.1:4222")
    assert load_settings().check is None
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK", "somewhere")
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK_LABELS", "gore, Drawings ,")
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK_THRESHOLD", "0.25")
    from_option = load_settings(check=tmp_path).check
    assert from_option is not None
    assert (from_option.folder, from_option.labels, from_option.threshold) == (tmp_path, ("gore", "Drawings"), 0.25)
    from_environment = load_check_settings()
    assert from_environment is not None
    assert from_environment.folder == Path("somewhere").absolute()


@pytest.mark.parametrize("threshold", ["0", "1.5", "nan", "half"])
def test_an_invalid_threshold_is_refused(monkeypatch: pytest.MonkeyPatch, threshold: str) -> None:
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK_THRESHOLD", threshold)
    with pytest.raises(SettingError, match=r"^DARKROOM_PICTURE_CHECK_THRESHOLD: "):
        load_check_settings(Path("somewhere"))


def test_the_doctor_runs_the_check_and_reports_it(
    classifier: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DARKROOM_PICTURE_CHECK_THRESHOLD", "0.4")
    assert list(check_picture_check(classifier)) == [("check", True, f"{classifier.name} flags nsfw from 0.4 on", "")]
    [(name, is_ok, message, advice)] = check_picture_check(tmp_path)
    assert (name, is_ok) == ("check", False)
    assert "is no folder with a model's config.json" in message
    assert "DARKROOM_PICTURE_CHECK" in advice


def test_a_worker_refuses_an_unusable_folder_at_its_start(tmp_path: Path) -> None:
    settings = load_settings(nats="nats://127.0.0.1:1", data=tmp_path, check=tmp_path / "nowhere", device="cpu")
    with pytest.raises(JobRejected, match="The picture check cannot be used: nowhere is no folder"):
        load_all_models(settings)


# The decode worker


def build_steps(job: Job, of: int, image: int = 0) -> list[StepDone]:
    return [StepDone(job.id, image, k, of, torch.zeros(4, 4, 4)) for k in range(1, of + 1)]


@pytest.fixture
def red_or_green(affine: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The affine family: it decodes latents above zero to red, and others to green."""
    monkeypatch.setattr(affine, "decode", lambda latents: RED if float(latents.mean()) > 0 else GREEN)
    return affine


def test_previews_are_checked_once_per_image_after_two_fifths_of_the_steps(
    red_or_green: Any, check: RecordingCheck, recipe: Any, job: Any
) -> None:
    one, lane = job(recipe(steps=10, count=2), check=True), DecodeWorker({"affine": red_or_green}, check)
    red = [replace(step, x0=torch.ones(4, 4, 4)) for step in build_steps(one, 10, image=1)]
    frames = [lane.render_frame(step, one, 1, 0.0).result(TIMEOUT) for step in (*build_steps(one, 10), *red)]
    assert [frame.verdict for frame in frames] == (
        ["unchecked"] * 3 + ["passed"] * 7 + ["unchecked"] * 3 + ["flagged"] * 7
    )
    assert check.threads == ["lane"] * 2
    lane.close()


def test_a_finished_picture_gets_its_own_verdict(
    red_or_green: Any, check: RecordingCheck, recipe: Any, job: Any
) -> None:
    one, lane = job(recipe(steps=10), check=True), DecodeWorker({"affine": red_or_green}, check)
    assert lane.render_frame(build_steps(one, 10)[5], one, 1, 0.0).result(TIMEOUT).verdict == "passed"
    assert lane.check_picture(encode_png(RED, ""), one).result(TIMEOUT) == "flagged"
    assert lane.render_frame(build_steps(one, 10)[9], one, 1, 0.0).result(TIMEOUT).verdict == "passed"
    lane.close()


def test_forgetting_a_job_forgets_its_verdicts(red_or_green: Any, check: RecordingCheck, recipe: Any, job: Any) -> None:
    one, lane = job(recipe(steps=10), check=True), DecodeWorker({"affine": red_or_green}, check)
    lane.render_frame(build_steps(one, 10)[5], one, 1, 0.0).result(TIMEOUT)
    lane.forget_job(one.id)
    lane.render_frame(build_steps(one, 10)[5], one, 2, 0.0).result(TIMEOUT)
    assert len(check.threads) in (1, 2)  # the decode worker forgets a job only when it has no other work
    lane.forget_job(one.id)
    lane.close()
    assert lane._picture_verdicts._preview_verdicts == {}


def test_a_failing_check_leaves_pictures_unchecked(
    red_or_green: Any, check: RecordingCheck, recipe: Any, job: Any, caplog: pytest.LogCaptureFixture
) -> None:
    one, lane = job(recipe(steps=10), check=True), DecodeWorker({"affine": red_or_green}, check)
    check.fails = True
    frames = [lane.render_frame(step, one, 1, 0.0).result(TIMEOUT) for step in build_steps(one, 10)]
    assert {frame.verdict for frame in frames} == {"unchecked"}
    assert len(check.threads) == 1  # the failure counts for all frames
    assert lane.check_picture(encode_png(GREEN, ""), one).result(TIMEOUT) == "unchecked"
    assert lane.check_picture(b"no picture", one).result(TIMEOUT) == "unchecked"
    assert f"job {one.id}: the picture check failed" in caplog.text
    check.fails = False
    assert lane.check_picture(encode_png(GREEN, ""), one).result(TIMEOUT) == "passed"
    lane.close()


def test_without_a_request_or_a_check_nothing_is_checked(
    red_or_green: Any, check: RecordingCheck, recipe: Any, job: Any
) -> None:
    asking, quiet = job(recipe(steps=10), check=True), job(recipe(steps=10))
    with_check, without = DecodeWorker({"affine": red_or_green}, check), DecodeWorker({"affine": red_or_green})
    for lane, one in ((with_check, quiet), (without, asking)):
        assert {lane.render_frame(step, one, 1, 0.0).result(TIMEOUT).verdict for step in build_steps(one, 10)} == {
            "unchecked"
        }
        assert lane.check_picture(encode_png(RED, ""), one).result(TIMEOUT) == "unchecked"
        assert lane._picture_verdicts._preview_verdicts == {}
        lane.close()
    assert check.threads == []


# The worker


@dataclass
class Shop:
    """A broker, the bot's end of the bus, and workers."""

    broker: Broker
    bot: Bus
    family: Any
    buses: list[Bus] = field(default_factory=list)
    running: list[tuple[Worker, asyncio.Task[None], DecodeWorker]] = field(default_factory=list)
    frames: list[Frame] = field(default_factory=list)
    looking: list[asyncio.Task[None]] = field(default_factory=list)

    async def worker(self, name: str, check: PictureCheck | None) -> tuple[Worker, asyncio.Task[None]]:
        bus = await Bus.connect(self.broker.url, self.broker.token, limits=BusLimits(lease=5.0))
        self.buses.append(bus)
        lane = await asyncio.to_thread(DecodeWorker, {"affine": self.family}, check)
        offer = WorkerProfile(name, "cpu", rows=8, has_picture_check=lane.has_picture_check)
        worker = Worker(bus, Engine({"affine": self.family}, rows=8), lane, offer, Watchdog())
        task = asyncio.create_task(worker.run())
        self.running.append((worker, task, lane))
        return worker, task

    def watch(self, job: str) -> None:
        self.looking += [asyncio.create_task(self._want(job)), asyncio.create_task(self._look())]

    async def _want(self, job: str) -> None:
        while True:
            await self.bot.request_previews(job)
            await asyncio.sleep(0.05)

    async def _look(self) -> None:
        async for frame in self.bot.watch_frames():
            self.frames.append(frame)

    async def results(self, job: str) -> list[Any]:
        found: list[Any] = []
        source: Any = self.bot.consume_results()
        async with asyncio.timeout(TIMEOUT):
            async for delivered in source:
                await delivered.ack()
                if delivered.value.job == job:
                    found.append(delivered.value)
                if delivered.value.job == job and isinstance(delivered.value, JobFinished | JobFailed):
                    break
        await source.aclose()
        return found


@pytest_asyncio.fixture
async def shop(tmp_path: Path, affine: Any, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shop]:
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
        shop = Shop(broker, bot, affine)
        yield shop
        for each in shop.looking:
            each.cancel()
        await asyncio.gather(*shop.looking, return_exceptions=True)
        for worker, task, lane in shop.running:
            worker.drain()
            await asyncio.gather(task, return_exceptions=True)
            await asyncio.to_thread(lane.close)
        for bus in (*shop.buses, bot):
            await bus.close()


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(TIMEOUT):
        while not true():
            await asyncio.sleep(0.02)


@pytest.mark.slow
@pytest.mark.asyncio
async def test_each_picture_has_its_own_verdict(
    shop: Shop, check: RecordingCheck, second_check: RecordingCheck, recipe: Any, job: Any
) -> None:
    await shop.worker("one", check)
    await until(lambda: "one" in shop.bot.workers)
    assert shop.bot.workers["one"].checks
    one = job(recipe(steps=100, count=4, seed=1), check=True, ladder=True)
    shop.watch(one.id)
    await shop.bot.dispatch(one)
    results = await shop.results(one.id)
    pictures = {value.image: value for value in results if isinstance(value, PictureReady) and value.kind == "image"}
    for picture in pictures.values():
        content = await shop.bot.get_blob(picture.sha256, picture.bytes)
        assert picture.verdict == second_check(Image.open(BytesIO(content)))
    assert {picture.verdict for picture in pictures.values()} == {"passed", "flagged"}  # each has its own
    assert {value.verdict for value in results if isinstance(value, PictureReady) and value.kind == "ladder"} == {
        "unchecked"
    }
    early = {frame.verdict for frame in shop.frames if frame.step < 40}
    late = {frame.image: {each.verdict for each in shop.frames if each.step >= 40 and each.image == frame.image}
            for frame in shop.frames if frame.step >= 40}  # fmt: skip
    assert early == {"unchecked"}
    assert late
    assert all(len(verdicts) == 1 and verdicts != {"unchecked"} for verdicts in late.values())
    assert check.threads == ["lane"] * (4 + len(late))


@pytest.mark.asyncio
async def test_a_job_without_a_check_is_not_checked(shop: Shop, check: RecordingCheck, recipe: Any, job: Any) -> None:
    await shop.worker("one", check)
    one = job(recipe(steps=50))
    shop.watch(one.id)
    await shop.bot.dispatch(one)
    results = await shop.results(one.id)
    assert {value.verdict for value in results if isinstance(value, PictureReady)} == {"unchecked"}
    assert {frame.verdict for frame in shop.frames} == {"unchecked"}
    assert check.threads == []


@pytest.mark.slow
@pytest.mark.asyncio
async def test_the_next_worker_checks_again(
    shop: Shop, check: RecordingCheck, second_check: RecordingCheck, recipe: Any, job: Any
) -> None:
    """A snapshot holds no verdicts: they belong to one worker's classifier, and a check is cheap."""
    worker, task = await shop.worker("one", check)
    one = job(recipe(steps=200), check=True)
    shop.watch(one.id)
    await shop.bot.dispatch(one)
    await until(lambda: any(frame.verdict != "unchecked" for frame in shop.frames))
    worker.drain()
    await task
    shop.frames.clear()
    await shop.worker("two", second_check)
    results = await shop.results(one.id)
    assert [value.worker for value in results if isinstance(value, JobStarted)] == ["one", "two"]
    assert (len(check.threads), len(second_check.threads)) == (1, 2)
    assert {frame.verdict for frame in shop.frames if frame.epoch == results[-1].epoch} <= {"passed", "flagged"}
    assert [value.verdict for value in results if isinstance(value, PictureReady) and value.kind == "image"] != [
        "unchecked"
    ]


@pytest.mark.slow
@pytest.mark.asyncio
@pytest.mark.parametrize(("picture", "verdict"), [(RED, "flagged"), (GREEN, "passed")])
async def test_an_upscaled_picture_is_checked(
    shop: Shop, check: RecordingCheck, job: Any, picture: Image.Image, verdict: str
) -> None:
    await shop.worker("one", check)
    source = await shop.bot.put_blob(encode_png(picture, ""))
    one = job(UpscaleTask(source=source), check=True)
    await shop.bot.dispatch(one)
    results = await shop.results(one.id)
    assert [value.verdict for value in results if isinstance(value, PictureReady)] == [verdict]


@pytest.mark.asyncio
async def test_a_failing_check_loses_no_picture(shop: Shop, check: RecordingCheck, recipe: Any, job: Any) -> None:
    check.fails = True
    await shop.worker("one", check)
    one = job(recipe(steps=5, count=2), check=True)
    await shop.bot.dispatch(one)
    results = await shop.results(one.id)
    assert isinstance(results[-1], JobFinished)
    assert {value.verdict for value in results if isinstance(value, PictureReady)} == {"unchecked"}
