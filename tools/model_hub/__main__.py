"""A hub in the terminal: `python -m tools.model_hub FOLDER …` prints its address, as a shell reads it.

A folder is a model of its own name; a word such as `sdxl` is a small one of random weights, called `tiny-sdxl`.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tools.model_hub.repositories import HubRepository, make_repository, read_folder
from tools.model_hub.server import ModelHub


def main(names: list[str]) -> None:
    repositories = dict(_load(name) for name in names or ["sdxl"])
    with ModelHub(repositories).open() as hub:
        print(f"export HF_ENDPOINT={hub.url}", flush=True)
        while True:
            time.sleep(3600)


def _load(name: str) -> tuple[str, HubRepository]:
    if Path(name).is_dir():
        return Path(name).resolve().name, make_repository(read_folder(Path(name)))
    from benchmarks.fixtures.small_pipelines import save_small_pipeline

    with tempfile.TemporaryDirectory() as folder:
        save_small_pipeline(name, Path(folder))
        return f"tiny-{name}", make_repository(read_folder(Path(folder)))


if __name__ == "__main__":
    main(sys.argv[1:])
