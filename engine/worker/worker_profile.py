"""What a worker offers: its device, models and rows, as it announces them."""

from __future__ import annotations

from dataclasses import dataclass

from engine.contract import ModelProfile, Presence


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
            worker=self.name, pools=self.pools, models=self.models, device=self.device, rows=self.rows, free=free_rows,
            software_build=self.build, has_picture_check=self.has_picture_check, upscale_ms=self.upscale_ms,
        )  # fmt: skip
