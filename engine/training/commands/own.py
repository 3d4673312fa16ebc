"""The user's own folder of pictures for the training commands: read, checked, encoded once."""

from __future__ import annotations

from pathlib import Path

from engine.training.commands.progress import counted, say, shown
from engine.training.commands.session import Session
from engine.training.latents import Cached
from engine.training.models import Model
from engine.training.own import own_latents
from engine.training.pictures.folder import Reading, read_folder

SAID = 20  # lines on the terminal; run/skipped.txt has all of them
SHOWN = 16  # captions on a sample sheet


def read(session: Session, folder: Path, *, captions: bool = True) -> Reading:
    """Read the pictures of `folder` and report those left out. Raises ValueError if none is usable."""
    with shown("looking at pictures") as tell:
        reading = read_folder(folder, captions=captions, told=lambda done, of: tell(done / of, ""))
    lines = [str(one) for one in reading.skipped]
    (session.folder / "skipped.txt").write_text("".join(f"{line}\n" for line in lines))
    for line in lines[:SAID]:
        say(f"Left out: {line}.")
    if len(lines) > SAID:
        say(f"… and {len(lines) - SAID} more: {session.folder / 'skipped.txt'} has them all.")
    say(f"{counted(len(reading.pictures), 'picture')} to train on.")
    return reading


def latents(session: Session, reading: Reading, model: Model, *, side: int, seed: int, flip: bool) -> Cached:
    """Encode the pictures' latents and their captions' token states, kept in the run's folder."""
    if cut := model.cut([one.caption for one in reading.pictures]):
        most = model.pipeline.tokenizer.model_max_length
        say(f"The text encoder reads {most} tokens: the ends of {counted(cut, 'longer caption')} are ignored.")
    with shown("encoding pictures") as tell:
        return own_latents(
            session.folder, reading, model, side=side, seed=seed, flip=flip, told=lambda done, of: tell(done / of, "")
        )


def prompts(reading: Reading) -> list[str]:
    """Choose captions of the folder for the sample sheet, evenly spaced, without repeats."""
    said = list(dict.fromkeys(one.caption for one in reading.pictures))
    return said[:: max(1, len(said) // SHOWN)][:SHOWN]
