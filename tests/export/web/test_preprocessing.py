"""What the page in the browser does with an image, against timm's own transform."""

import itertools
import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from timm.data.transforms_factory import create_transform

import ofqctl.export

HERE = Path(__file__).parent
SCRIPT = Path(ofqctl.export.__file__).parent / "page" / "preprocess.js"
COLOURS = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
GREY = {"mean": [0.1307], "std": [0.3081]}
SQUARE = {"input_size": [3, 32, 32], "crop_pct": 0.9, "crop_mode": "center", "interpolation": "bicubic"} | COLOURS
SIZES = [(57, 43), (43, 57), (32, 32), (35, 35), (9, 31), (300, 7), (2, 64), (131, 130)]
SHAPES = [
    {},
    {"input_size": [3, 24, 40]},
    {"crop_mode": "squash"},
    {"crop_mode": "border"},
    {"crop_mode": "border", "input_size": [3, 24, 40], "crop_pct": 1.0},
    {"crop_pct": 1.3},
    {"input_size": [1, 28, 28], **GREY},
    {"input_size": [1, 28, 28], "crop_mode": "border", **GREY},
]


def cases():
    for filtered in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"):
        yield from ((size, SQUARE | {"interpolation": filtered}) for size in SIZES)
    yield from ((size, SQUARE | shape) for size, shape in itertools.product(SIZES, SHAPES))


def transformed(pixels, config):
    """timm's transform of RGB pixels."""
    wanted = ("interpolation", "mean", "std", "crop_pct", "crop_mode")
    transform = create_transform(tuple(config["input_size"]), **{name: config[name] for name in wanted})
    image = Image.fromarray(pixels)
    return transform(image.convert("L") if config["input_size"][0] == 1 else image).numpy()


@pytest.mark.skipif(shutil.which("node") is None, reason="Node.js, which runs the page's script, is not installed")
def test_the_page_prepares_images_bit_for_bit_as_timm_does(tmp_path):
    random = np.random.default_rng(0)
    described, expected = [], {}
    for index, ((width, height), config) in enumerate(cases()):
        pixels = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        opaque = np.full((height, width, 1), 255, np.uint8)
        (tmp_path / f"{index}.rgba").write_bytes(np.concatenate([pixels, opaque], axis=2).tobytes())
        described.append({"name": str(index), "width": width, "height": height, "config": config})
        expected[index] = transformed(pixels, config)
    listed = tmp_path / "cases.json"
    listed.write_text(json.dumps(described))
    # A module outside of a package is one of ECMAScript by its suffix alone.
    script = shutil.copy(SCRIPT, tmp_path / "preprocess.mjs")
    subprocess.run(["node", HERE / "prepare.mjs", script, listed, tmp_path], check=True)
    for index, values in expected.items():
        found = np.fromfile(tmp_path / f"{index}.f32", np.float32).reshape(values.shape)
        assert np.array_equal(found, values), (described[index], float(np.abs(found - values).max()))
