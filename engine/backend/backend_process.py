"""Runs one worker whose engine is a backend: connects to the broker, and works until it gets a signal to stop."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from pathlib import Path

from engine.backend.a1111 import Automatic1111
from engine.backend.backend_worker import ROWS, BackendWorker
from engine.backend.comfyui import ComfyUi, load_built_in_workflows
from engine.backend.comfyui_workflow import Workflow, WrongWorkflow, parse_workflow
from engine.backend.connection_state import ConnectionState
from engine.backend.drawing import Backend
from engine.backend.http_client import BackendHttp
from engine.backend.measured_times import MeasuredTimes
from engine.backend.openai_images import OpenAiImages
from engine.backend.verdicts import ChecksPictures, Verdicts
from engine.bus import Bus
from engine.process.setting_sources import SettingError
from engine.process.settings import BackendKind, BackendSettings, PictureCheckSettings, WorkerSettings
from engine.worker.process_end import SignalHandlers, act_on_parent_exit
from engine.worker.worker_profile import WorkerProfile, make_build_label

TITLES: Mapping[BackendKind, str] = {"comfyui": "ComfyUI", "a1111": "AUTOMATIC1111", "openai": "The image server"}
ALL_MODELS = ("added",)  # the settings' default: whatever there is
MAX_WORKFLOW_BYTES = 4 * 1024 * 1024


async def run_backend_worker(settings: WorkerSettings) -> None:
    """Work until SIGTERM or SIGINT, then hand all jobs back.

    Raises `SettingError`, `BrokerUnreachable`, or `ConnectionEnded` where the process must end.
    """
    assert settings.backend is not None
    workflows = await asyncio.to_thread(load_workflows, settings.backend)
    wanted = () if settings.models == ALL_MODELS else settings.models
    backend = build_backend(settings.backend, workflows, wanted)
    token = settings.nats_token.get_secret_value()
    key = settings.nats_key.get_secret_value()
    try:
        bus = await Bus.connect(settings.nats, token, name=settings.worker_name, key=key, ca_file=settings.nats_ca)
        try:
            await bus.declare(settings.pools)
            await _run_jobs(bus, backend, settings, wanted)
        finally:
            await bus.close()
    finally:
        await backend.close()


async def _run_jobs(bus: Bus, backend: Backend, settings: WorkerSettings, wanted: tuple[str, ...]) -> None:
    assert settings.backend is not None
    times = await asyncio.to_thread(MeasuredTimes, settings.data)
    verdicts = Verdicts(await asyncio.to_thread(load_checks, settings.check))
    state = ConnectionState(backend, settings.backend.kind, times, wanted)
    profile = make_worker_profile(settings, has_check=verdicts.has_check)
    worker = BackendWorker(bus, backend, profile, state, times, verdicts)
    with SignalHandlers(worker.drain):
        parent_watch = asyncio.create_task(act_on_parent_exit(settings.parent, worker.drain))
        try:
            await worker.run()
        finally:
            parent_watch.cancel()
            verdicts.close()


def load_checks(check: PictureCheckSettings | None) -> ChecksPictures | None:
    """Return the picture check, which alone needs torch; None where no setting names one. Raises `JobRejected`."""
    if check is None:
        return None
    from engine.device.torch_device import choose_device
    from engine.output.picture_check import JobVerdicts, PictureCheck

    return JobVerdicts(PictureCheck.load(check.folder, check.labels, check.threshold, choose_device()))


def make_worker_profile(settings: WorkerSettings, *, has_check: bool) -> WorkerProfile:
    """Return what the worker announces besides its models. The address stays here: members may see the rest."""
    assert settings.backend is not None
    kind = settings.backend.kind
    return WorkerProfile(
        settings.worker_name,
        f"backend: {kind}",
        ROWS,
        pools=settings.pools,
        build=make_build_label(kind),
        has_picture_check=has_check,
    )


def build_backend(settings: BackendSettings, workflows: tuple[Workflow, ...], wanted: tuple[str, ...]) -> Backend:
    """Return the backend's client. Call it on the event loop."""
    url = settings.url.removesuffix("/v1") if settings.kind == "openai" else settings.url
    http = BackendHttp(TITLES[settings.kind], url, make_headers(settings.key.get_secret_value()))
    if settings.kind == "comfyui":
        return ComfyUi(http, workflows, settings.size)
    if settings.kind == "a1111":
        return Automatic1111(http, settings.size)
    return OpenAiImages(http, settings.size, wanted)


def make_headers(key: str) -> dict[str, str]:
    """Return the header that carries a key; NAME:PASSWORD is sent as Basic (RFC 7617), anything else as Bearer."""
    if not key:
        return {}
    if ":" in key:
        return {"Authorization": f"Basic {base64.b64encode(key.encode()).decode()}"}
    return {"Authorization": f"Bearer {key}"}


def load_workflows(settings: BackendSettings) -> tuple[Workflow, ...]:
    """Return ComfyUI's workflows, those of the settings or the built-in ones. Blocks. Raises `SettingError`."""
    if settings.kind != "comfyui":
        return ()
    workflows = tuple(_load_workflow(path) for path in settings.workflows) or load_built_in_workflows()
    kinds = {(workflow.has_slot("picture"), workflow.has_slot("mask")) for workflow in workflows}
    if len(kinds) < len(workflows) or (False, True) in kinds:
        raise SettingError("--workflow: give at most one for text, one with %picture%, one with %picture% and %mask%.")
    return workflows


def _load_workflow(path: Path) -> Workflow:
    try:
        if path.stat().st_size > MAX_WORKFLOW_BYTES:
            raise SettingError(f"The workflow {path.name} is too large.")
        return parse_workflow(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise SettingError(f"The workflow {path.name} cannot be read: {type(error).__name__}.") from error
    except WrongWorkflow as error:
        raise SettingError(f"{path.name}: {error}") from error
