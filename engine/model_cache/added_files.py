"""A fingerprint of all files that may be added to a model: which of them fit is known only with the model in memory."""

from __future__ import annotations

from pathlib import Path

import torch

from engine.models.autoencoder.autoencoder_files import AUTOENCODER_KIND
from engine.models.control.control_files import CONTROL_KIND
from engine.models.files.added_kind import (
    AUTOENCODER_FOLDER,
    CONTROL_FOLDER,
    EMBEDDING_FOLDER,
    LORA_FOLDER,
    PREPROCESSOR_FOLDER,
    REFERENCE_FOLDER,
)
from engine.models.files.model_source import combine_fingerprints
from engine.models.lora.lora_files import find_loras
from engine.models.preprocessing.preprocessors import Preprocessors
from engine.models.reference.adapter_files import REFERENCE_KIND
from engine.models.textual_inversion.embedding_files import find_embeddings


def fingerprint_added_files(data: Path, model_folder: Path, autoencoder: str = "") -> str:
    """Return a fingerprint of the data folder's files for a model, by name and content; empty where there are none.

    `autoencoder`: the one that is to take the place of the model's own.
    """
    loras = find_loras(data / LORA_FOLDER, model_folder)
    parts = [f"{each.name} {each.revision}" for each in loras]
    parts += [f"embedding {each.name} {each.revision}" for each in find_embeddings(data / EMBEDDING_FOLDER)]
    parts += [f"vae {each.name} {each.revision}" for each in AUTOENCODER_KIND.find_all(data / AUTOENCODER_FOLDER)]
    parts += [f"control {each.name} {each.revision}" for each in CONTROL_KIND.find_all(data / CONTROL_FOLDER)]
    parts += [f"reference {each.name} {each.revision}" for each in REFERENCE_KIND.find_all(data / REFERENCE_FOLDER)]
    preprocessors = Preprocessors(torch.device("cpu"), data / PREPROCESSOR_FOLDER).list_available()
    parts += [f"preprocessor {name}" for name in preprocessors if name not in ("none", "canny")]
    parts += [f"own vae {autoencoder}"] if autoencoder else []
    return combine_fingerprints(*parts) if parts else ""
