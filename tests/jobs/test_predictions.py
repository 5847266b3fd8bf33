"""A row for each image that was measured: the figures of the document, and the same images in the same order."""

import csv
import math
from dataclasses import replace

import numpy as np
import pandas
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from ofqctl.data import DataSpec, image_loader, open_data
from ofqctl.errors import ArtifactError, DataError
from ofqctl.evaluation import paired
from ofqctl.jobs.evaluate import EvaluateRequest, evaluate
from ofqctl.jobs.image_rows import write_csv, write_parquet
from ofqctl.jobs.prediction_files import SavedPredictions
from ofqctl.jobs.quantize import QuantizeRequest, quantize
from ofqctl.models import ModelRequest
from ofqctl.recipe import catalogue
from ofqctl.training import Processes
from tests.conftest import TINY

ROUNDING = catalogue.load("ptq/minmax", ["calibration.images=8", "calibration.batch_size=4"])
CONFIG = {"input_size": (3, 32, 32), "interpolation": "bicubic", "mean": (0.5,) * 3, "std": (0.5,) * 3}


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=3, **TINY).state_dict(), path)
    return ModelRequest("vit_tiny_patch16_224", checkpoint=path, num_classes=3, kwargs=TINY)


@pytest.fixture(scope="module")
def backbone(classifier):
    return replace(classifier, num_classes=None, features=True)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Folders ``val`` of 21 images in three classes, of which the first two and another are damaged, and ``flat``."""
    root, drawn = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for folder in ("val/a", "val/b", "val/c", "flat"):
        (root / folder).mkdir(parents=True)
        for number in range(7):
            pixels = drawn.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / folder / f"{number}.png")
    for damaged in ("a/0.png", "a/1.png", "c/2.png"):
        (root / "val" / damaged).write_bytes(b"nothing")
    return root


@pytest.fixture(scope="module")
def quantized(classifier, photos, tmp_path_factory):
    """A run of the classifier, and the document of `quantize`."""
    output = tmp_path_factory.mktemp("runs") / "w4"
    request = QuantizeRequest(classifier, ROUNDING, output, DataSpec("digits"), DataSpec(str(photos / "val")))
    return ModelRequest(str(output)), quantize(request)


@pytest.fixture
def saved(photos, tmp_path):
    """Evaluates a model, and gives the result and the rows."""

    def run(model, folder="val", name="rows.csv", **asked):
        path = tmp_path / name
        found = evaluate(EvaluateRequest(model, DataSpec(str(photos / folder)), save_predictions=path, **asked))
        assert found.saved_predictions == str(path)
        return found, (pandas.read_csv if path.suffix == ".csv" else pandas.read_parquet)(path)

    return run


def test_the_figures_of_the_document_are_those_of_the_rows(saved, classifier, photos):
    found, rows = saved(classifier, batch_size=4)
    assert list(rows) == ["image", "label", "predicted", "right", "loss"]
    names = [f"{label}/{number}.png" for label in "abc" for number in range(7)]
    kept = [name for name in names if name not in ("a/0.png", "a/1.png", "c/2.png")]
    assert list(rows.image) == [str(photos / "val" / name) for name in kept]
    assert list(rows.label) == ["abc".index(name[0]) for name in kept]
    assert list(rows.right) == list((rows.label == rows.predicted).astype(int))
    assert found.images == len(rows)
    assert found.top1 == round(100 * rows.right.sum() / len(rows), 4)
    assert found.loss == math.fsum(rows.loss) / len(rows)
    assert list(rows.loss) == list(rows.loss.astype(np.float32).astype(float))


def test_csv_and_parquet_hold_the_same(saved, classifier, backbone):
    for model in (classifier, backbone):
        (_, one), (_, other) = saved(model), saved(model, name="rows.parquet")
        pandas.testing.assert_frame_equal(one, other, check_dtype=False, check_exact=True)


def test_rows_are_the_same_whatever_the_batches_and_workers(saved, classifier):
    _, rows = saved(classifier, limit=9)
    for batch_size, workers in ((2, 0), (3, 2)):
        _, again = saved(classifier, limit=9, batch_size=batch_size, workers=workers)
        pandas.testing.assert_frame_equal(again, rows, rtol=1e-5)


def test_rows_of_two_models_give_the_paired_difference_of_quantize(saved, classifier, quantized):
    run, document = quantized
    (_, before), (_, after) = saved(classifier), saved(run)
    assert list(before.image) == list(after.image)
    right = [torch.tensor(rows.right.to_numpy() == 1) for rows in (before, after)]
    assert paired(*right) == document.evaluation.paired


def test_rows_of_embeddings_say_what_neighbours_vote_for_and_how_alike_the_float_model_is(saved, backbone, quantized):
    run = replace(quantized[0], features=True)
    found, rows = saved(run, against=str(backbone.checkpoint))
    assert list(rows) == ["image", "label", "predicted", "right", "cosine"]
    assert found.knn == round(100 * rows.right.mean(), 4)
    assert list(rows.right) == list((rows.label == rows.predicted).astype(int))
    assert found.likeness.cosine == pytest.approx(rows.cosine.mean(), rel=1e-12)
    assert found.likeness.lowest_cosine == rows.cosine.min()
    _, alone = saved(backbone)
    assert list(alone) == ["image", "label", "predicted", "right"]
    found, rows = saved(run, "flat", against=str(backbone.checkpoint))
    assert list(rows) == ["image", "cosine"]
    assert found.images == len(rows) == 7
    assert found.likeness.lowest_cosine == rows.cosine.min()


@pytest.mark.parametrize("world", [2, 3])
def test_processes_write_the_rows_of_one_although_a_whole_batch_is_damaged(photos, tmp_path, world):
    data = open_data(DataSpec(str(photos / "val")))

    def read(rank, world):
        loader = image_loader(data, CONFIG, batch_size=2, rank=rank, world=world)
        saved = SavedPredictions(tmp_path / f"{world}.csv", loader)
        return saved, torch.cat([labels for _, labels in saved])

    def write(world):
        shares = [read(rank, world) for rank in range(world)]

        class Together(Processes):
            def gather(self, value):
                return [(saved._names, saved._batches) for saved, _ in shares]

        labels = torch.cat([labels for _, labels in shares])
        shares[0][0].write({"label": labels}, Together(0, world, torch.device("cpu")))
        return (tmp_path / f"{world}.csv").read_text()

    assert write(world) == write(1)


def test_an_unknown_kind_is_one_error_before_any_work(classifier, photos, tmp_path):
    told = []
    request = EvaluateRequest(classifier, DataSpec(str(photos / "val")), save_predictions=tmp_path / "rows.json")
    with pytest.raises(DataError, match=r"--save-predictions .*unknown kind '.json'; allowed: .csv, .parquet"):
        evaluate(request, lambda *step: told.append(step))
    assert told == []


def test_neither_data_nor_a_folder_is_replaced(classifier, photos, tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "table" / "val.parquet").write_bytes(b"images")
    classes = tmp_path / "classes.csv"
    classes.write_text("a,0\nb,1\nc,2\n")
    (tmp_path / "folder.csv").mkdir()
    for path, data in (
        (tmp_path / "table" / "val.parquet", DataSpec(str(tmp_path / "table"))),
        (classes, DataSpec(str(photos / "val"), class_map=classes)),
        (tmp_path / "folder.csv", DataSpec(str(photos / "val"))),
    ):
        with pytest.raises(ArtifactError, match=r"is read by this command|it is a folder"):
            evaluate(EvaluateRequest(classifier, data, save_predictions=path))
    assert (tmp_path / "table" / "val.parquet").read_bytes() == b"images"


def test_names_that_are_no_utf8_and_hold_line_ends_are_rows(tmp_path):
    names = ["a\udcff.png", 'b\n,".png', "ü.png"]
    columns = {"loss": torch.tensor([0.1, 1e-30, 3.0])}
    write_csv(tmp_path / "rows.csv", names, columns)
    write_parquet(tmp_path / "rows.parquet", names, columns)
    with (tmp_path / "rows.csv").open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["image", "loss"]
    assert [name for name, _ in rows] == ["a\\udcff.png", 'b\n,".png', "ü.png"]
    assert list(pandas.read_parquet(tmp_path / "rows.parquet").image) == [name for name, _ in rows]
    assert np.array_equal(np.float32([float(loss) for _, loss in rows]), columns["loss"].numpy())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classes", "embeddings"])
def test_processes_of_torchrun_write_the_file_of_one(torchrun, quantized, backbone, photos, tmp_path, kind):
    more = ["--features", "--against", backbone.checkpoint] if kind == "embeddings" else []
    command = ["evaluate", quantized[0].name, "--data", photos / "val", "--batch-size", 2, "--device", "cpu", *more]
    written = []
    for world in (1, 2):
        path = tmp_path / f"{world}.csv"
        ended = torchrun(world, "-m", "ofqctl", *command, "--save-predictions", path)
        assert ended.returncode == 0, ended.stderr
        assert ended.stdout.count(f"written to {path}") == 1
        written.append(path.read_bytes())
    assert written[0] == written[1] and written[0].count(b"\n") == 19
