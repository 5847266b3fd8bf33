"""Models without a classifier through every job: quantize, evaluate, predict, export, train."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file

from ofqctl import jobs
from ofqctl.data import DataSpec
from ofqctl.errors import DataError, ModelError, RecipeError
from ofqctl.jobs.evaluate import EvaluateRequest
from ofqctl.jobs.export import ExportRequest
from ofqctl.jobs.predict import PredictRequest
from ofqctl.jobs.quantize import QuantizeRequest
from ofqctl.jobs.sensitivity import SensitivityRequest
from ofqctl.jobs.train import TrainRequest
from ofqctl.models import ModelRequest
from ofqctl.recipe import catalogue
from tests.conftest import TINY


def told(job):
    """A job whose result is what ``--json`` prints of it."""
    return lambda *args, **kwargs: job(*args, **kwargs).model_dump(mode="json")


evaluate, export_onnx, predict = told(jobs.evaluate.evaluate), told(jobs.export.export_onnx), told(jobs.predict.predict)
quantize, train = told(jobs.quantize.quantize), told(jobs.train.train)
sensitivity = told(jobs.sensitivity.sensitivity)

FEW = ["calibration.images=8", "calibration.batch_size=4"]
FLOAT, QUANTIZED = ("", "first.", "last."), ("weights", "activations")
AT_8_BITS = catalogue.load("ptq/minmax", ["weights.bits=8", "activations.bits=8", *FEW])
SMALL = {"embed_dim": 48, "depth": 1, "num_heads": 3}
ARCHITECTURES = {
    "vit_small_patch14_reg4_dinov2": SMALL | {"img_size": 28},
    "vit_small_patch16_dinov3": SMALL | {"img_size": 32},
    "vit_base_patch16_siglip_224": SMALL | {"img_size": 32},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Labelled images of three classes, as folders ``val``, ``train``, ``other`` and, unlabelled, ``flat``."""
    root, drawn = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split, classes in (("val", "abc"), ("train", "abc"), ("other", "bcd")):
        for place, name in enumerate(classes):
            (root / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = drawn.integers(0, 120, (40, 40, 3)) + 60 * place
                Image.fromarray(pixels.astype(np.uint8)).save(root / split / name / f"{number}.png")
    (root / "flat").mkdir()
    for number in range(4):
        Image.fromarray(drawn.integers(0, 255, (40, 40, 3)).astype(np.uint8)).save(root / "flat" / f"{number}.png")
    return root


def spec(path):
    return DataSpec(str(path))


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A model with a classifier, whose weights are in a file."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "vit.safetensors"
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=7, **TINY).state_dict(), path)
    return ModelRequest("vit_tiny_patch16_224", checkpoint=path, kwargs=TINY, features=True)


@pytest.fixture(scope="module")
def run(tmp_path_factory, photos, classifier):
    """Its features at 8 bits, as a run, and the result."""
    output = tmp_path_factory.mktemp("runs") / "w8a8"
    request = QuantizeRequest(
        classifier,
        AT_8_BITS,
        output,
        spec(photos / "train"),
        spec(photos / "val"),
        index=spec(photos / "train"),
        tokens=True,
    )
    return output, quantize(request)


def test_figures_stand_beside_the_float_models(run):
    _, result = run
    figures = result["evaluation"]
    assert (result["gives"], figures["quantized"]["features"]) == ("embeddings", 48)
    assert figures["quantized"]["likeness"]["cosine"] > 0.99
    assert figures["quantized"]["tokens"]["cosine"] > 0.99
    assert 0 <= figures["float"]["knn"] <= 100
    assert figures["neighbours"]["index_images"] == 12
    assert figures["paired"]["knn"].keys() == {"difference", "standard_error", "gained", "lost"}


def test_a_run_is_measured_beside_the_weights_it_was_made_from(run, photos):
    output, result = run
    found = evaluate(
        EvaluateRequest(ModelRequest(str(output)), spec(photos / "val"), index=spec(photos / "train"), tokens=True)
    )
    wanted = result["evaluation"]
    assert found["likeness"] == pytest.approx(wanted["quantized"]["likeness"], rel=1e-4)
    assert found["tokens"] == pytest.approx(wanted["quantized"]["tokens"], rel=1e-4)
    assert found["paired"] == wanted["paired"]
    assert "vit.safetensors" in found["against"]


def test_unlabelled_images_give_the_likeness_alone(run, photos):
    found = evaluate(EvaluateRequest(ModelRequest(str(run[0])), spec(photos / "flat")))
    assert found["likeness"]["cosine"] > 0.99
    assert (found["knn"], found["paired"], found["neighbours"]) == (None, None, None)


def test_a_run_made_from_a_run_is_measured_beside_that(photos, classifier, tmp_path):
    in_float = catalogue.load("ptq/minmax", [f"{part}{kind}.bits=32" for part in FLOAT for kind in QUANTIZED])
    trained = quantize(QuantizeRequest(classifier, in_float, tmp_path / "float"))["output"]
    request = QuantizeRequest(ModelRequest(trained), AT_8_BITS, tmp_path / "run", spec(photos / "train"))
    found = evaluate(EvaluateRequest(ModelRequest(quantize(request)["output"]), spec(photos / "val")))
    assert (found["against"], found["notes"]) == (trained, [])
    (tmp_path / "float").rename(tmp_path / "elsewhere")
    found = evaluate(EvaluateRequest(ModelRequest(str(tmp_path / "run")), spec(photos / "val")))
    assert any("it is no longer there; --against MODEL" in note for note in found["notes"])


def test_a_float_model_that_is_gone_is_said_and_can_be_named(run, photos, classifier, tmp_path):
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(classifier.checkpoint.read_bytes())
    random = replace(classifier, checkpoint=None, pretrained=False)
    output = quantize(QuantizeRequest(random, AT_8_BITS, tmp_path / "run", spec(photos / "train")))["output"]
    found = evaluate(EvaluateRequest(ModelRequest(output), spec(photos / "val")))
    assert (found["against"], found["likeness"], found["float"]) == (None, None, None)
    assert found["knn"] is not None
    assert any("its weights were random; --against MODEL" in note for note in found["notes"])
    with pytest.raises(DataError, match="nothing to measure"):
        evaluate(EvaluateRequest(ModelRequest(output), spec(photos / "flat")))
    named = evaluate(EvaluateRequest(ModelRequest(str(run[0])), spec(photos / "flat"), against=str(moved)))
    assert named["likeness"]["cosine"] > 0.99


def test_the_classifier_of_a_run_can_be_left_out(photos, classifier, tmp_path):
    whole = replace(classifier, features=False, num_classes=7)
    output = quantize(QuantizeRequest(whole, AT_8_BITS, tmp_path / "run", spec(photos / "train")))["output"]
    found = evaluate(EvaluateRequest(ModelRequest(output, features=True), spec(photos / "val")))
    assert (found["gives"], found["features"]) == ("embeddings", 48)
    assert found["likeness"]["cosine"] > 0.99
    with pytest.raises(ModelError, match="--tokens: for embeddings"):
        evaluate(EvaluateRequest(ModelRequest(output), spec(photos / "val"), tokens=True))


@pytest.mark.parametrize("kind", ["npy", "safetensors", "parquet"])
def test_embeddings_are_written_with_the_names_of_their_images(run, photos, tmp_path, kind):
    path = tmp_path / f"e.{kind}"
    result = predict(PredictRequest(ModelRequest(str(run[0])), (photos / "flat",), save_embeddings=path))
    listed = predict(PredictRequest(ModelRequest(str(run[0])), (photos / "flat",)))
    names = [image["image"] for image in listed["images"]]
    rows = np.array([image["embedding"] for image in listed["images"]], dtype=np.float32)
    assert result["images"][0]["embedding"] is None
    if kind == "npy":
        written, images = np.load(path), json.loads(path.with_suffix(".json").read_text())["images"]
    elif kind == "safetensors":
        with safe_open(path, "np") as file:
            written, images = file.get_tensor("embeddings"), json.loads(file.metadata()["images"])
    else:
        table = pyarrow.parquet.read_table(path)
        written, images = np.array(table["embedding"].to_pylist(), dtype=np.float32), table["image"].to_pylist()
    assert images == names
    assert np.array_equal(written, rows)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    closest = (unit @ unit.T - 2 * np.eye(4)).argmax(1)
    assert [image["nearest"] for image in listed["images"]] == [names[place] for place in closest]


@pytest.mark.parametrize(
    ("name", "tokens"),
    [
        ("vit_small_patch14_reg4_dinov2", True),
        ("vit_base_patch16_siglip_224", False),
        pytest.param("vit_base_patch16_siglip_224", True, marks=pytest.mark.slow),
        pytest.param("vit_small_patch16_dinov3", True, marks=pytest.mark.slow),
    ],
)
def test_files_give_embeddings_and_tokens_exactly(photos, tmp_path, name, tokens):
    request = ModelRequest(name, pretrained=False, kwargs=ARCHITECTURES[name])
    output = quantize(QuantizeRequest(request, AT_8_BITS, tmp_path / "run"))["output"]
    run = ModelRequest(output)
    exported = export_onnx(ExportRequest(run, tokens=tokens, images=4, pixels=tokens))
    assert exported["outputs"] == (["embedding", "tokens"] if tokens else ["embedding"])
    assert exported["verification"]["exactness"]["exact"]
    assert exported["verification"]["end_to_end"]["cosine"]["graph"] > 0.99
    file = EvaluateRequest(ModelRequest(exported["output"]), spec(photos / "val"), against=output)
    assert evaluate(file)["likeness"]["cosine"] > 0.999
    if not tokens:
        with pytest.raises(Exception, match="has no patch tokens"):
            evaluate(replace(file, tokens=True))


def test_sensitivities_are_errors_of_embeddings(photos, classifier):
    recipe = catalogue.load("ptq/minmax", FEW)
    found = sensitivity(SensitivityRequest(classifier, recipe, spec(photos / "train"), bits=(2, 8)))
    assert found["unit"] == "relative_error"
    assert all(layer["damage"]["2"] > layer["damage"]["8"] >= 0 for layer in found["layers"])


@pytest.mark.parametrize(
    "stage",
    [
        "{stage: evolq, passes: 1, population: 2, loss: kl}",
        "{stage: reconstruct, iterations: 4, views: 8}",
        "{stage: erq}",
    ],
)
def test_stages_bring_embeddings_closer_or_leave_them(photos, classifier, tmp_path, stage):
    recipe = catalogue.load("ptq/minmax", ["weights.bits=4", "activations.bits=8", *FEW, f"ptq=[{stage}]"])
    found = quantize(
        QuantizeRequest(classifier, recipe, tmp_path / "run", spec(photos / "train"), spec(photos / "flat"))
    )
    assert found["evaluation"]["quantized"]["likeness"]["cosine"] > 0.9


TRAINED = ["training.batch_size=4", "training.phases=[{epochs: 2, lr: 0.001}]", *FEW]


def trained(model, photos, output, recipe="ofq/backbone_w4a4", data="flat", **changed):
    request = TrainRequest(model, catalogue.load(recipe, TRAINED), spec(photos / data), output=output)
    return train(replace(request, **changed))


def test_training_needs_no_labels(photos, classifier, tmp_path):
    result = trained(classifier, photos, tmp_path / "run", val_data=spec(photos / "val"))
    first, last = result["training"]["epochs"]
    assert last["loss"] < first["loss"]
    assert "train_top1" not in last
    assert {"val_cosine", "val_knn", "val_recall1"} <= last.keys()
    assert result["evaluation"]["float"]["features"] == 48
    found = evaluate(EvaluateRequest(ModelRequest(str(tmp_path / "run")), spec(photos / "val")))
    assert found["likeness"]["cosine"] == pytest.approx(last["val_cosine"], abs=1e-5)
    assert found["knn"] == last["val_knn"]


def test_a_recipe_that_learns_from_labels_needs_some(photos, classifier, tmp_path):
    whole = replace(classifier, features=False, num_classes=7)
    with pytest.raises(DataError, match="no labels, which `labels` of the recipe learns from"):
        trained(whole, photos, tmp_path / "run", recipe="ofq/vit_w4a4")


@pytest.mark.parametrize(("features", "recipe"), [(True, "ofq/vit_w4a4"), (False, "ofq/backbone_w4a4")])
def test_a_recipe_is_for_what_the_model_gives(photos, classifier, tmp_path, features, recipe):
    model = replace(classifier, features=features, num_classes=None if features else 7)
    with pytest.raises(RecipeError, match="learns from"):
        trained(model, photos, tmp_path / "run", recipe=recipe, data="train")


def test_queries_must_be_found_in_the_index(run, photos):
    request = EvaluateRequest(ModelRequest(str(run[0])), spec(photos / "val"))
    for index, fault in (("other", "has no class 'a'"), ("val", "would find itself"), ("flat", "have no labels")):
        with pytest.raises(DataError, match=fault):
            evaluate(replace(request, index=spec(photos / index)))


def test_what_is_saved_is_what_the_model_gives(run, photos, classifier, tmp_path):
    with pytest.raises(ModelError, match="--save-logits"):
        predict(PredictRequest(ModelRequest(str(run[0])), (photos / "flat",), save_logits=tmp_path / "x.npy"))
    whole = replace(classifier, features=False, num_classes=7)
    with pytest.raises(ModelError, match="--save-embeddings"):
        predict(PredictRequest(whole, (photos / "flat",), save_embeddings=tmp_path / "x.npy"))
    with pytest.raises(DataError, match="unknown kind"):
        predict(PredictRequest(classifier, (photos / "flat",), save_embeddings=tmp_path / "x.csv"))


def test_images_need_not_be_square(photos, tmp_path):
    request = ModelRequest("vit_tiny_patch16_224", pretrained=False, features=True, img_size=(48, 32), kwargs=SMALL)
    output = quantize(QuantizeRequest(request, AT_8_BITS, tmp_path / "run", spec(photos / "train")))["output"]
    found = predict(PredictRequest(ModelRequest(output), (photos / "flat",)))
    assert found["images"][0]["features"] == 48
    exported = export_onnx(ExportRequest(ModelRequest(output), tokens=True, images=2, batch=2))
    assert exported["verification"]["exactness"]["exact"]


def test_a_model_for_any_image_size_has_one_step_where_others_have_one_for_each_token(photos, classifier, tmp_path):
    recipe = catalogue.load("ptq/minmax", ["activations.granularity=token", *FEW])
    dynamic = replace(classifier, kwargs=TINY | {"dynamic_img_size": True})
    result = quantize(QuantizeRequest(dynamic, recipe, tmp_path / "run", spec(photos / "train")))
    assert any("dynamic_img_size" in note for note in result["notes"])
    run = ModelRequest(result["output"])
    own, larger = (
        evaluate(EvaluateRequest(replace(run, img_size=size), spec(photos / "flat"))) for size in (None, (48, 40))
    )
    assert own["preprocessing"]["input_size"] == [3, 32, 32]
    assert larger["preprocessing"]["input_size"] == [3, 48, 40]
    assert larger["likeness"]["cosine"] > 0.95
    fixed = quantize(QuantizeRequest(classifier, recipe, tmp_path / "fixed", spec(photos / "train")))
    assert not any("dynamic_img_size" in note for note in fixed["notes"])
