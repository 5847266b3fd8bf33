from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

NoiseMaker = Callable[..., Image.Image]


def _noise(seed: int, size: int = 12) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8))


@pytest.fixture
def noise() -> NoiseMaker:
    """Makes a small RGB image of noise from a seed."""
    return _noise


@pytest.fixture
def make_folder(tmp_path: Path, noise: NoiseMaker) -> Callable[..., Path]:
    """Writes that many images into each of the folders named, below one root."""

    def make(counts: dict[str, int], root: str = "images", suffix: str = ".png") -> Path:
        for position, (name, count) in enumerate(counts.items()):
            folder = tmp_path / root / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                noise(100 * position + number).save(folder / f"{number:03}{suffix}")
        return tmp_path / root

    return make


@pytest.fixture
def make_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Writes a local `datasets` repository, a parquet file a split; each column is (feature, values)."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    # Shuffled streams wait that many seconds for their reading threads at the end of a pass: 5 by default.
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.3, raising=False)

    def make(columns: dict[str, tuple[Any, Iterable[Any]]], splits: Iterable[str] = ("train", "test")) -> Path:
        features = datasets.Features({name: feature for name, (feature, _) in columns.items()})
        content = {name: list(values) for name, (_, values) in columns.items()}
        root = tmp_path / "table"
        (root / "data").mkdir(parents=True, exist_ok=True)
        for split in splits:
            table = datasets.Dataset.from_dict(content, features=features)
            table.to_parquet(root / "data" / f"{split}-00000-of-00001.parquet")
        return root

    return make


@pytest.fixture
def config() -> dict[str, Any]:
    return {
        "input_size": (3, 16, 16),
        "interpolation": "bicubic",
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "crop_pct": 0.9,
        "crop_mode": "center",
    }
