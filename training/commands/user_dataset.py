"""The user's own folder of pictures for the training commands: reads and checks it, and encodes it once."""

from __future__ import annotations

from pathlib import Path

from training.commands.progress import count_noun, print_status, show_counts
from training.commands.session import Session
from training.diffusion.latent_cache import LatentCache, open_dataset_cache
from training.diffusion.models import LoadedModel
from training.pictures.dataset import PictureDataset, read_folder

LISTED_FILES = 20  # lines on the terminal; run/skipped.txt has all of them
SHEET_CAPTIONS = 16  # captions on a sample sheet


def read_dataset(session: Session, folder: Path, *, require_captions: bool = True) -> PictureDataset:
    """Read the pictures of `folder` and report those left out. Raises ValueError if none is usable."""
    with show_counts("looking at pictures") as on_progress:
        dataset = read_folder(folder, require_captions=require_captions, on_progress=on_progress)
    lines = [str(skipped_file) for skipped_file in dataset.skipped]
    (session.folder / "skipped.txt").write_text("".join(f"{line}\n" for line in lines))
    for line in lines[:LISTED_FILES]:
        print_status(f"Left out: {line}.")
    if len(lines) > LISTED_FILES:
        print_status(f"… and {len(lines) - LISTED_FILES} more: {session.folder / 'skipped.txt'} has them all.")
    print_status(f"{count_noun(len(dataset.pictures), 'picture')} to train on.")
    return dataset


def encode_dataset(
    session: Session, dataset: PictureDataset, model: LoadedModel, *, side: int, seed: int, flip: bool
) -> LatentCache:
    """Encode the pictures' latents and their captions' token states, kept in the run's folder."""
    if truncated_count := model.count_truncated([picture.caption for picture in dataset.pictures]):
        limit = model.pipeline.tokenizer.model_max_length
        longer = count_noun(truncated_count, "longer caption")
        print_status(f"The text encoder reads {limit} tokens: the ends of {longer} are ignored.")
    with show_counts("encoding pictures") as on_progress:
        return open_dataset_cache(
            session.folder, dataset, model, side=side, seed=seed, flip=flip, on_progress=on_progress
        )


def choose_prompts(dataset: PictureDataset) -> list[str]:
    """Choose captions of the folder for the sample sheet, evenly spaced, without repeats."""
    captions = list(dict.fromkeys(picture.caption for picture in dataset.pictures))
    return captions[:: max(1, len(captions) // SHEET_CAPTIONS)][:SHEET_CAPTIONS]
