"""Folders in a worker's data folder whose files are added to models, by the operator."""

from __future__ import annotations

LORA_FOLDER = "loras"
EMBEDDING_FOLDER = "embeddings"  # textual inversions
AUTOENCODER_FOLDER = "vaes"
CONTROL_FOLDER = "controlnets"  # ControlNets and T2I-Adapters
PREPROCESSOR_FOLDER = "preprocessors"  # networks that make control images
REFERENCE_FOLDER = "ip-adapters"  # for reference pictures
