"""`python -m engine.training`: the trainer's commands. Opens every resource and passes it on.

The parts know nothing of the terminal.
"""

from __future__ import annotations

import json
import signal
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, cast

import numpy as np
import torch
import typer
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from transformers.utils import logging

from engine.training import artwork, checkpoint
from engine.training.diffusion import Judge, Settings, Trainer, open_network
from engine.training.latents import Cached, TextStates, cached, text_states
from engine.training.run import CHECKPOINT, Budget, Losses, Run, settings_of
from engine.training.validate import PROMPTS, v_mse
from engine.training.variants import HELD_BACK, numbered

app = typer.Typer(help="Train the embedded model.", no_args_is_help=True, add_completion=False)
WEIGHTS = Path(__file__).parent.parent / "weights"
VALIDATED = 1024

CacheFolder = Annotated[Path, typer.Option(help="where artwork, latents and token states are kept")]
RunFolder = Annotated[Path, typer.Option(help="where this run's checkpoints, log and sheets go")]
From = Annotated[Path, typer.Option("--from", help="weights to start from, in the diffusers layout")]


@app.callback()
def commands() -> None:
    """Train the embedded model."""
    logging.set_verbosity_error()  # "unexpected pooler": we leave it out on purpose
    logging.disable_progress_bar()


@app.command()
def diffusion(
    cache: CacheFolder,
    run: RunFolder,
    weights: From = WEIGHTS,
    until: Annotated[str, typer.Option(help="end at this time of the clock, HH:MM")] = "",
    samples: Annotated[int, typer.Option(help="end after so many pictures seen (0: by the clock only)")] = 0,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the run's last checkpoint")] = False,
    minutes: Annotated[float, typer.Option(help="between checkpoints")] = 5.0,
    threads: Annotated[int, typer.Option(min=1, help="1 is faster where other work shares the cores")] = 2,
    seed: Annotated[int, typer.Option(min=0, max=2**31 - 1)] = 0,
    rate: Annotated[float, typer.Option(help="the learning rate's peak")] = Settings.rate,
    batch: Annotated[int, typer.Option(min=1)] = Settings.batch,
) -> None:
    """Train the diffusion network on openly licensed pictures."""
    if not (until or samples):
        raise typer.BadParameter("say when to end: --until HH:MM or --samples N")
    if (run / CHECKPOINT).exists() and not resume:
        raise typer.BadParameter(f"{run} has a checkpoint already: add --resume, or take another folder")
    torch.set_num_threads(threads)
    budget = Budget(samples or None, _clock(until) if until else None)
    settings = Settings(**settings_of(run)) if resume else Settings(seed=seed, rate=rate, batch=batch)
    _train(cache, run, weights, budget, settings, resume, minutes)


@app.command()
def measure(
    cache: CacheFolder, network: Path, weights: From = WEIGHTS, sheet: Path | None = None, seed: int = 0
) -> None:
    """Print a network's v-MSE on the variants that are never trained on; draw its sheet of the fixed prompts."""
    torch.set_num_threads(2)
    vae, text = _encoders(weights)
    _, held_back = _variants(cache, weights, seed)
    scheduler = _scheduler(weights)
    alphas = scheduler.alphas_cumprod
    opened = UNet2DConditionModel.from_pretrained(network, torch_dtype=torch.float32).eval()
    typer.echo(json.dumps({"network": network.name, "v_mse": round(v_mse(opened, held_back, alphas), 4)}))
    if sheet:
        Judge(Trainer(opened, held_back, alphas, Settings()), held_back, text(PROMPTS), vae, scheduler).sheet(sheet)


@app.command()
def export(run: RunFolder, to: Annotated[Path, typer.Option()], weights: From = WEIGHTS, raw: bool = False) -> None:
    """Write the run's averaged network (or the raw one) in fp16, sharded, in the diffusers layout."""
    network = open_network(weights / "unet")
    tensors, _ = checkpoint.load(run / CHECKPOINT)
    prefix = "network." if raw else "average."
    kept = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    network.load_state_dict(kept)
    checkpoint.export(network, to)


def _train(
    cache: Path, folder: Path, weights: Path, budget: Budget, settings: Settings, resume: bool, minutes: float
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    train, held_back = _variants(cache, weights, settings.seed)
    vae, text = _encoders(weights)
    scheduler = _scheduler(weights)
    trainer = Trainer(open_network(weights / "unet"), train, scheduler.alphas_cumprod, settings)
    judge = Judge(trainer, held_back, text(PROMPTS), vae, scheduler)
    run = Run(folder, trainer, judge, budget, started=time.time())
    run.resume() if resume else run.keep(time.time(), {})
    stopped: list[int] = []
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda number, _frame: stopped.append(number))
    with _progress("{task.fields[loss]}") as progress:
        task = progress.add_task("training", total=1.0, loss="")

        def told(losses: Losses) -> None:
            line = f"{trainer.samples} pictures seen, loss {losses['loss']:.3f}"
            progress.update(task, completed=run.share(time.time()), loss=line)

        run.go(time.time, lambda: bool(stopped), told, every=60 * minutes)


def _variants(cache: Path, weights: Path, seed: int) -> tuple[Cached, Cached]:
    pictures = artwork.load(cache / "npm")
    chosen = np.random.default_rng(seed).choice(len(pictures), VALIDATED, replace=False)
    both: list[Cached] = []
    for name, pairs in (
        ("held-back variants", [(int(index), HELD_BACK) for index in np.sort(chosen)]),
        ("variants", numbered(pictures)),
    ):
        with _progress("") as progress:
            task = progress.add_task(name, total=len(pairs))
            ready = cached(
                cache,
                pictures,
                pairs,
                lambda: _encoders(weights),
                seed=seed,
                told=lambda done, _of, bar=progress, one=task: bar.update(one, completed=done),
            )
            progress.update(task, completed=len(pairs))
        both.append(ready)
    return both[1], both[0]


def _encoders(weights: Path) -> tuple[AutoencoderKL, TextStates]:
    autoencoder = AutoencoderKL.from_pretrained(weights / "vae", torch_dtype=torch.float32)
    autoencoder.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]  (diffusers hides its signature)
    return autoencoder.eval(), text_states()


def _scheduler(weights: Path) -> DDIMScheduler:
    return cast(DDIMScheduler, DDIMScheduler.from_pretrained(weights / "scheduler"))


def _clock(until: str) -> float:
    try:
        wanted = datetime.strptime(until, "%H:%M").time()  # noqa: DTZ007  (the wall clock of whoever typed it)
    except ValueError:
        raise typer.BadParameter(f"{until!r} is not a time like 15:25") from None
    now = datetime.now().astimezone()
    end = now.replace(hour=wanted.hour, minute=wanted.minute, second=0, microsecond=0)
    return (end if end > now else end + timedelta(days=1)).timestamp()


def _progress(extra: str) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, *([TextColumn(extra)] if extra else []))


def main(args: list[str] | None = None) -> int:
    """What `darkroom train` calls with its arguments. Returns the exit code."""
    return int(app(args, prog_name="darkroom train", standalone_mode=False) or 0)


if __name__ == "__main__":
    app()
