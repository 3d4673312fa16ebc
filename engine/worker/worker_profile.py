"""What a worker offers: its device, models and rows, as it announces them."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from engine.contract import ModelProfile, Presence


def make_build_label(drawn_by: str) -> str:
    """Return the versions of a worker's software: pictures are bit-identical only within one build."""
    try:
        package_version = version("darkroom-bot")
    except PackageNotFoundError:
        package_version = "source"
    return f"darkroom {package_version}, {drawn_by}"[:128]


@dataclass(frozen=True)
class WorkerProfile:
    """A worker's presence without its current state. `rows`: rows that it runs at once."""

    name: str
    device: str
    rows: int
    models: tuple[ModelProfile, ...] = ()
    pools: tuple[str, ...] = ("default",)
    build: str = ""
    has_picture_check: bool = False
    upscale_ms: float = 0.0

    def make_presence(self, free_rows: int) -> Presence:
        """Return the presence to announce now."""
        return Presence(
            worker=self.name,
            pools=self.pools,
            models=self.models,
            device=self.device,
            rows=self.rows,
            free=free_rows,
            software_build=self.build,
            has_picture_check=self.has_picture_check,
            upscale_ms=self.upscale_ms,
        )
