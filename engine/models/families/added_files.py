"""The files that an operator may add to a family's model: LoRAs, textual inversions, autoencoders."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any, ClassVar, Self

import msgspec
import torch

from engine.contract import Lora, ModelPart, Recipe
from engine.models.autoencoder.autoencoder_collection import AutoencoderCollection
from engine.models.autoencoder.autoencoder_files import AutoencoderFile
from engine.models.files.data_folders import AUTOENCODER_FOLDER, EMBEDDING_FOLDER, LORA_FOLDER
from engine.models.files.fingerprint import combine_fingerprints
from engine.models.lora.lora_collection import LoraCollection
from engine.models.pictures.conditioner import PictureConditioner, UsesAutoencoder
from engine.models.textual_inversion.embedding_collection import EmbeddingCollection, EmbeddingSlot
from engine.models.textual_inversion.embedding_files import EmbeddingFile
from engine.preview_maps.map_store import MODEL_MAP_FILE


class AddedFiles:
    """Implements `TakesEmbeddings`, `TakesAutoencoders` and the files of `TakesLoras` (`engine.models.family`)."""

    network_name: ClassVar[str]
    embedding_slots: ClassVar[tuple[EmbeddingSlot, ...]] = ()  # of textual inversions; none: it takes none
    device: torch.device
    revision: str
    pipeline: Any
    conditioners: tuple[PictureConditioner, ...]
    _vae: Any
    _chosen_autoencoder: ModelPart | None = None  # in place of the model's own, for every recipe

    def _init_added_files(self, pipeline: Any, name: str) -> None:
        self._loras = LoraCollection(pipeline, self.network_name)
        self._embeddings = EmbeddingCollection(pipeline, self.embedding_slots, name)
        self._autoencoders = AutoencoderCollection(pipeline.vae, name)

    def list_loras(self) -> tuple[Lora, ...]:
        """Return the LoRAs that fit this model."""
        return self._loras.list_compatible()

    def use_data_folder(self, data: Path) -> None:
        """Find LoRAs, textual inversions and autoencoders in a worker's data folder."""
        self.lora_folder = data / LORA_FOLDER
        self._embeddings.folder = data / EMBEDDING_FOLDER
        self._autoencoders.folder = data / AUTOENCODER_FOLDER

    @property
    def lora_folder(self) -> Path | None:
        """Folder of the LoRAs; None: there are none."""
        return self._loras.folder

    @lora_folder.setter
    def lora_folder(self, folder: Path | None) -> None:
        self._loras.folder = folder

    @property
    def model_folder(self) -> Path | None:
        """The model's own folder, which may hold its turbo LoRA and its preview map; None: it has no folder."""
        return self._loras.model_folder

    @model_folder.setter
    def model_folder(self, folder: Path | None) -> None:
        self._loras.model_folder = folder

    @property
    def preview_map_file(self) -> Path | None:
        """Where the map of the model's own autoencoder may be; None where another one decodes, or without a folder."""
        if self.model_folder is None or self._chosen_autoencoder is not None:
            return None
        return self.model_folder / MODEL_MAP_FILE

    def list_embeddings(self) -> tuple[ModelPart, ...]:
        """Return the textual inversions that fit this model."""
        return self._embeddings.list_fitting()

    def with_embeddings(self, recipe: Recipe) -> Recipe:
        return msgspec.structs.replace(recipe, embeddings=self._embeddings.resolve(recipe.embeddings))

    def list_autoencoders(self) -> tuple[ModelPart, ...]:
        """Return the autoencoders that fit this model."""
        return self._autoencoders.list_fitting()

    def explain_embedding(self, file: EmbeddingFile) -> str:
        """Return why a textual inversion does not fit, as the end of a sentence; empty: it fits."""
        return self._embeddings.find_mismatch(file)

    def explain_autoencoder(self, file: AutoencoderFile) -> str:
        """Return why an autoencoder does not fit, as the end of a sentence; empty: it fits."""
        return self._autoencoders.find_mismatch(file)

    def count_autoencoder_bytes(self, part: ModelPart | None, *, with_kept: bool = True) -> int:
        return self._autoencoders.count_bytes(part, self._vae.dtype, with_kept=with_kept)

    def release_other_autoencoders(self, part: ModelPart | None) -> None:
        self._autoencoders.release_others(part)

    def with_autoencoder(self, part: ModelPart) -> Self:
        """Return a copy that shares all but the autoencoder. Raises `JobRejected`."""
        view = copy.copy(self)
        view._vae = self._autoencoders.load(part, self._vae, self.device)
        view.pipeline = copy.copy(self.pipeline)
        vars(view.pipeline)["vae"] = view._vae
        view.conditioners = tuple(
            each.with_family(view) if isinstance(each, UsesAutoencoder) else each for each in self.conditioners
        )
        return view

    def use_autoencoder(self, name: str) -> None:
        """From now on take this autoencoder as the model's own. The revision covers it. Raises `JobRejected`."""
        file = self._autoencoders.resolve(ModelPart(name))
        self._chosen_autoencoder = ModelPart(file.name, file.revision)
        self._load_chosen_autoencoder()
        self.revision = combine_fingerprints(self.revision, file.revision)

    def _load_chosen_autoencoder(self) -> None:
        if self._chosen_autoencoder is not None:
            self._vae = self._autoencoders.load_alone(self._chosen_autoencoder, self._vae, self.device)
            self.pipeline.vae = self._vae
