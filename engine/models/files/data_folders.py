"""Folders in a worker's data folder whose files are added to models, by the operator."""

from __future__ import annotations

from engine.hub.catalogue import FOLDER_BY_KIND

LORA_FOLDER = FOLDER_BY_KIND["lora"]
EMBEDDING_FOLDER = FOLDER_BY_KIND["embedding"]  # textual inversions
AUTOENCODER_FOLDER = FOLDER_BY_KIND["vae"]
CONTROL_FOLDER = FOLDER_BY_KIND["controlnet"]  # ControlNets and T2I-Adapters
PREPROCESSOR_FOLDER = "preprocessors"  # networks that make control images
REFERENCE_FOLDER = FOLDER_BY_KIND["ip-adapter"]  # for reference pictures
