"""The page in Chromium gives the answers of ``predict``."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from ofqctl.jobs.export import ExportRequest
from ofqctl.jobs.export_web import WebRequest, export_web
from ofqctl.jobs.predict import PredictRequest, predict
from ofqctl.models import ModelRequest

from . import browser

pytestmark = [
    pytest.mark.runtimes,
    pytest.mark.skipif(browser.found() is None, reason="no Chromium is installed: apt-get install chromium"),
]
NEAR = 0.02  # a code on a rounding boundary moves probabilities


def picture(path, size=(90, 60), **options):
    """A picture of coloured shapes with edges and noise."""
    random = np.random.default_rng(size[0])
    x, y = np.meshgrid(np.linspace(0, 9, size[0]), np.linspace(0, 6, size[1]))
    waves = np.stack([np.sin(x * y / 2), np.cos(x + y), np.sin(2 * x - y)], axis=2)
    pixels = 128 + 90 * waves + random.normal(0, 12, waves.shape)
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, **options)
    return path


def answers(directory, paths):
    """The five classes that ``predict`` gives for each picture: (label, probability)."""
    found = predict(PredictRequest(ModelRequest(str(directory)), images=tuple(paths)))
    return [[(guess.label, guess.probability) for guess in image.top] for image in found.images]


def agree(shown, expected):
    """Whether the page shows what ``predict`` gives; near each other, two classes may change places."""
    of = dict(expected)
    return len(shown) == len(expected) and all(
        abs(probability - of.get(label, expected[-1][1])) < NEAR for label, probability in shown
    )


@pytest.fixture(params=[8, 4, 2])
def run_of_bits(request, run):
    one_step = ("activations.granularity=tensor", "first.activations.granularity=tensor")
    return run("ptq/minmax", *one_step, f"weights.bits={request.param}", "activations.bits=8")


def page_of(directory, folder, runtime, **more):
    request = ExportRequest(ModelRequest(str(directory)), images=4, **more)
    return export_web(WebRequest(request, folder, runtime))


def test_the_page_answers_as_predict_does_for_every_kind_of_file(run_of_bits, onnxruntime_web, tmp_path):
    page_of(run_of_bits, tmp_path / "site", onnxruntime_web)
    pictures = [
        picture(tmp_path / "a.png"),
        picture(tmp_path / "b.jpg", (70, 130), quality=90),
        picture(tmp_path / "c.webp", (33, 32), lossless=True),
    ]
    turned = Image.Exif()
    turned[0x0112] = 6
    pictures.append(picture(tmp_path / "d.jpg", (64, 48), quality=95, exif=turned))
    expected = answers(run_of_bits, pictures)
    with browser.served(tmp_path / "site") as address, browser.browser() as tab:
        tab("Page.navigate", url=address)
        tab.says("Ready")
        for path, wanted in zip(pictures, expected, strict=True):
            assert agree(tab.answer(path), wanted), path
        assert "ms" in tab.text("times")
    sent = [event["params"]["request"]["url"] for event in tab.events if event["method"] == "Network.requestWillBeSent"]
    assert sent
    assert all(url.startswith((address, "data:", "blob:")) for url in sent)


def test_a_picture_is_dropped_and_the_camera_looked_through(run, onnxruntime_web, tmp_path):
    page_of(run("ptq/minmax"), tmp_path / "site", onnxruntime_web)
    path = picture(tmp_path / "a.png")
    camera = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
    with browser.served(tmp_path / "site") as address, browser.browser(*camera) as tab:
        tab("Page.navigate", url=address)
        tab.says("Ready")
        chosen = tab.answer(path)
        tab.clear()
        data = {"items": [], "files": [str(path)], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop"):
            tab("Input.dispatchDragEvent", type=kind, x=200, y=250, data=data)
        assert tab.classes() == chosen
        tab.clear()
        tab.evaluate("document.getElementById('camera').click()")
        assert len(tab.classes()) == 5
        tab.evaluate("document.getElementById('camera').click()")
        assert tab.text("camera") == "Camera"


def replaced(path, content):
    """Write a file that is a minute newer, so that a server tells it from the one before."""
    newer = path.stat().st_mtime + 60
    path.write_bytes(content)
    os.utime(path, (newer, newer))


def test_what_the_page_cannot_do_it_says(run, onnxruntime_web, tmp_path):
    site = tmp_path / "site"
    page_of(run("ptq/minmax"), site, onnxruntime_web)
    (tmp_path / "no.png").write_bytes(b"no picture")
    with browser.served(site) as address, browser.browser() as tab:
        tab("Page.navigate", url=address)
        tab.says("Ready")
        tab.choose(tmp_path / "no.png")
        tab.says("not a picture")

        model = (site / "model.onnx").read_bytes()
        replaced(site / "model.onnx", model[:-100])
        tab("Page.navigate", url=address)
        tab.says("model.onnx: ends after")
        replaced(site / "model.onnx", bytes(len(model)))
        tab("Page.navigate", url=address)
        tab.says("cannot load the model")

        about = json.loads((site / "model.json").read_text())
        about["runtime"]["folder"] = "http://127.0.0.1:9/"
        replaced(site / "model.json", json.dumps(about).encode())
        tab("Page.navigate", url=address)
        tab.says("--ort-web")
        tab("Page.navigate", url=(site / "index.html").as_uri())
        tab.says("python -m http.server")
