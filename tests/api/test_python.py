"""``import ofqctl``: models and images in memory."""

import copy
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

import ofqctl
from ofqctl.errors import ArtifactError, DataError, ModelError
from ofqctl.jobs.predict import PredictRequest, predict
from ofqctl.models import ModelRequest
from ofqctl.results.onnx import InspectOnnxResult

ROOT = Path(__file__).resolve().parents[2]
FEW = {"calibration.images": 8, "calibration.batch_size": 4}
NAMES = ("load", "quantize", "train", "evaluate", "export", "analyze_oscillation", "inspect", "register_attention")


class Attention(nn.Module):
    def __init__(self, explicit=False):
        super().__init__()
        self.explicit = explicit
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x):
        q, k, v = self.qkv(x).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        if self.explicit:
            out = (q @ k.transpose(-2, -1) * 8**-0.5).softmax(dim=-1) @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(1, 2).flatten(2))


class Own(nn.Module):
    """Patches, attention and a classifier, (B, 3, 32, 32) -> (B, 10)."""

    def __init__(self, attention=Attention):
        super().__init__()
        self.patches, self.attention, self.head = nn.Conv2d(3, 32, 8, 8), attention(), nn.Linear(32, 10)

    def forward(self, images):
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        return self.head((tokens + self.attention(tokens)).mean(dim=1))


@pytest.fixture
def batches():
    return [torch.randn(4, 3, 32, 32) for _ in range(3)]


def test_importing_loads_neither_torch_nor_timm_and_lists_the_functions():
    said = "import sys, ofqctl; assert not {'torch', 'timm', 'pydantic'} & set(sys.modules); print(*dir(ofqctl))"
    done = subprocess.run([sys.executable, "-c", said], capture_output=True, text=True, check=True)
    assert set(NAMES) <= set(done.stdout.split())
    with pytest.raises(AttributeError, match="has no attribute 'quantise'"):
        ofqctl.quantise  # noqa: B018


def test_a_package_of_the_same_name_does_not_hide_a_function():
    import ofqctl.export
    from ofqctl.export import write_graph

    assert callable(write_graph)
    with pytest.raises(ModelError, match="no such run directory"):
        ofqctl.export("runs/nothing", "x.onnx")


def test_ones_own_model_is_quantized_as_a_copy(batches):
    model = Own().train()
    before = copy.deepcopy(model.state_dict())
    found = ofqctl.quantize(model, "ptq/minmax", calibration=batches, set=FEW | {"weights.bits": 8})
    assert model.training and type(model.head) is nn.Linear
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert found.result.quantized_modules == 4
    assert found.result.calibration.images == 8
    assert found.result.notes == () and found.result.output is None
    assert [left.module for left in found.result.left_float] == ["attention"]
    assert found.model.recipe.name == "ptq/minmax" and found.model.recipe.weights.bits == 8
    with torch.inference_mode():
        float_logits, logits = model.eval()(batches[0]), found.model(batches[0])
    assert 0 < float((logits - float_logits).norm() / float_logits.norm()) < 0.1


def test_the_result_is_that_of_the_command_for_the_same_images(tmp_path):
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    model = ofqctl.load("vit_tiny_patch16_224", pretrained=False, num_classes=10, **tiny)
    written = ofqctl.quantize(model, "ptq/minmax", calibration="digits", set=FEW, output=tmp_path / "run").result
    assert written.output == str(tmp_path / "run")
    looked = ofqctl.inspect(tmp_path / "run")
    assert looked.results["calibration"]["data"] == "digits/train"
    again = ofqctl.load(tmp_path / "run")
    assert again.recipe.name == "ptq/minmax"
    by_path = ofqctl.evaluate(tmp_path / "run", "digits", limit=50)
    assert (by_path.kind, by_path.images) == ("run", 50)
    assert ofqctl.evaluate(again, "digits", limit=50).top1 == by_path.top1
    assert again.preprocess(Image.new("RGB", (40, 50))).shape == (3, 32, 32)


def test_figures_of_pairs_are_those_counted_by_hand(batches):
    model = Own().train()
    labels = [model(batch).argmax(dim=1) for batch in batches]
    labels[0] = (labels[0] + 1) % 10
    found = ofqctl.evaluate(model, list(zip(batches, labels, strict=True)))
    assert (found.images, found.top1) == (12, pytest.approx(100 * 8 / 12, abs=1e-3))
    assert model.training


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([{"pixel_values": torch.zeros(1, 3, 32, 32), "labels": 1}], "element 0 is a dict with the keys pixel_values"),
        ([torch.zeros(4, dtype=torch.int64)], r"element 0 is a tensor of shape \(4,\)"),
        ([torch.zeros(3, 32, 32)], r"element 0 is a tensor of shape \(3, 32, 32\)"),
        (
            [torch.zeros(1, 3, 32, 32, dtype=torch.uint8)],
            "element 0 has values of type uint8; expected normalized",
        ),
        ([torch.full((1, 3, 32, 32), torch.nan)], "element 0 has values that are NaN or infinite"),
        ([torch.zeros(1, 3, 32, 32), torch.zeros(1, 3, 16, 16)], r"element 1 has images of \(3, 16, 16\)"),
        ([(1, 2, 3)], "element 0 is a tuple of 3: int, int, int"),
        ([], "gives nothing"),
        (7, "is of type int; expected a path, or batches of images"),
    ],
)
def test_what_gives_no_images_is_told(given, message):
    with pytest.raises(DataError, match=f"calibration: {message}"):
        ofqctl.quantize(Own(), "ptq/minmax", calibration=given, set=FEW)


def test_pairs_of_images_and_labels_and_too_few_images_are_taken():
    pairs = ((torch.randn(2, 3, 32, 32), torch.zeros(2)) for _ in range(2))
    found = ofqctl.quantize(Own(), "ptq/minmax", calibration=pairs, set=FEW)
    assert found.result.notes == ("calibration: the images given has 4 images, 8 were requested",)


def test_labels_that_are_none_are_told(batches):
    with pytest.raises(DataError, match="data: element 0 is a tensor of shape"):
        ofqctl.evaluate(Own(), batches)


def test_a_part_that_fails_is_named(batches):
    model = Own()
    model.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(31, 10))
    with pytest.raises(ModelError, match=r"Own: head.1 \(Linear\): fails on two blank images of 3x32x32"):
        ofqctl.quantize(model, "ptq/minmax", calibration=batches, set=FEW)


def test_a_model_without_anything_to_quantize_is_refused(batches):
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ModelError, match="Sequential: has no weights"):
        ofqctl.quantize(model, "ptq/minmax", calibration=batches, set=FEW)
    model.append(nn.LayerNorm(3))
    with pytest.raises(ModelError, match="nothing in it can be quantized: it has no Linear"):
        ofqctl.quantize(model, "ptq/minmax", calibration=batches, set=FEW)


def test_a_model_that_gives_no_logits_is_refused(batches):
    with pytest.raises(ModelError, match=r"Conv2d: gives \(2, 4, 32, 32\) for 2 images"):
        ofqctl.quantize(nn.Conv2d(3, 4, 1), "ptq/minmax", calibration=batches, set=FEW)


@pytest.fixture
def backbone():
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    return ofqctl.load("vit_tiny_patch16_224", pretrained=False, features=True, **tiny)


def test_embeddings_are_measured_beside_the_float_model_by_paths_and_by_batches(backbone, batches, tmp_path):
    found = ofqctl.quantize(backbone, "ptq/minmax", calibration=batches, set=FEW, output=tmp_path / "run")
    assert found.model(batches[0]).shape == (4, 48)
    by_path = ofqctl.evaluate_embeddings(tmp_path / "run", "digits", against=backbone, tokens=True, limit=40)
    assert (by_path.gives, by_path.features, by_path.images, by_path.float.images) == ("embeddings", 48, 40, 40)
    assert 0.9 < by_path.likeness.cosine < 1 and by_path.tokens is not None and by_path.paired is not None
    figures = ofqctl.evaluate_embeddings(found.model, batches, against=backbone)
    with torch.inference_mode():
        cosines = [F.cosine_similarity(found.model(batch), backbone(batch)) for batch in batches]
    assert figures.likeness.cosine == pytest.approx(float(torch.cat(cosines).mean()), abs=1e-5)
    assert (figures.knn, figures.tokens) == (None, None)


def test_neighbours_among_batches_are_those_of_the_same_class(backbone):
    images, labels = torch.randn(6, 3, 32, 32), torch.tensor([0, 1, 2, 3, 4, 5])
    found = ofqctl.evaluate_embeddings(backbone, [(images, labels)], index=[(images + 1e-3, labels)])
    assert found.recall1 == 100.0
    with pytest.raises(DataError, match="index: digits is a path, and data is none"):
        ofqctl.evaluate_embeddings(backbone, [images], index="digits")


def test_a_float_model_of_ones_own_is_exported_and_measured_at_its_size(tmp_path):
    size = (3, 32, 32)
    assert ofqctl.export(Own(), tmp_path / "own.onnx", input_size=size).verification.end_to_end.images
    assert ofqctl.evaluate(Own(), "digits", input_size=size, limit=8).images == 8


def test_rows_of_images_are_saved_for_a_path_and_refused_for_batches(backbone, batches, tmp_path):
    classes, embeddings = tmp_path / "classes.csv", str(tmp_path / "embeddings.parquet")
    found = ofqctl.evaluate(Own(), "digits", input_size=(3, 32, 32), limit=8, save_predictions=classes)
    assert found.saved_predictions == str(classes) and len(classes.read_text().splitlines()) == 9
    found = ofqctl.evaluate_embeddings(backbone, "digits", limit=8, save_predictions=embeddings)
    assert found.saved_predictions == embeddings and Path(embeddings).is_file()
    labelled = [(batches[0], torch.zeros(4, dtype=torch.int64))]
    for measure, model in ((ofqctl.evaluate, Own()), (ofqctl.evaluate_embeddings, backbone)):
        with pytest.raises(DataError, match="images of batches have no names"):
            measure(model, labelled, save_predictions=classes)


def test_what_a_model_gives_decides_how_it_is_measured(backbone, batches):
    labelled = [(batches[0], torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(ModelError, match="this model gives embeddings"):
        ofqctl.evaluate(backbone, labelled)
    with pytest.raises(ModelError, match="has a classifier"):
        ofqctl.evaluate_embeddings(Own(), batches)


def test_a_model_that_timm_does_not_know_cannot_be_a_run_and_says_why(batches, tmp_path):
    found = ofqctl.quantize(Own(), "ptq/minmax", calibration=batches, set=FEW)
    with pytest.raises(ArtifactError, match="cannot be: model 'Own'"):
        found.save(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_timm_model_in_memory_is_saved_if_its_arguments_are_given(tiny_vit, batches, tmp_path):
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    with pytest.raises(ArtifactError, match=r"cannot be: timm's vit_tiny_patch16_224 with the arguments \{\} has"):
        ofqctl.quantize(tiny_vit, "ptq/minmax", calibration=batches, set=FEW).save(tmp_path / "no")
    found = ofqctl.quantize(tiny_vit, "ptq/minmax", calibration=batches, set=FEW, model_kwargs=tiny)
    found.save(tmp_path / "run")
    with torch.inference_mode():
        assert torch.equal(ofqctl.load(tmp_path / "run")(batches[0]), found.model(batches[0]))


@pytest.mark.parametrize("explicit", [False, True])
def test_a_registered_attention_class_has_its_products_quantized_and_exported(batches, tmp_path, explicit):
    cls = type("Registered", (Attention,), {})
    assert ofqctl.register_attention(cls, ("query_key", "softmax_value") if explicit else ()) is cls
    found = ofqctl.quantize(Own(lambda: cls(explicit)), "ptq/minmax", calibration=batches, set=FEW)
    assert found.result.left_float == () and found.result.quantized_modules == 5
    result = ofqctl.export(found.model, tmp_path / "x.onnx", images=4)
    assert result.verification.exactness.exact and result.verification.exactness.products == 6
    looked = ofqctl.inspect(tmp_path / "x.onnx")
    assert isinstance(looked, InspectOnnxResult) and looked.description.architecture == "Own"


def test_a_product_that_is_unknown_is_told():
    with pytest.raises(ModelError, match="product 'query_keys' is unknown") as caught:
        ofqctl.register_attention(Attention, ("query_keys",))
    assert caught.value.hint == "did you mean 'query_key'?"


def test_training_takes_names_and_analysis_paths(tmp_path):
    tiny = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
    sets = {"training.phases.0.epochs": 1, "training.steps_per_epoch": 2, "training.batch_size": 8}
    result = ofqctl.train(
        "vit_tiny_patch16_224", "demo/digits_float", data="digits", set=sets, output=tmp_path / "run", device="cpu",
        pretrained=False, num_classes=10, model_kwargs=tiny,
    )  # fmt: skip
    assert result.training.epochs[-1].step == 2
    json.dumps(result.model_dump(mode="json"))
    with pytest.raises(ofqctl.OfqctlError):
        ofqctl.analyze_oscillation(tmp_path / "nothing")


@pytest.mark.parametrize("name", ["own_model", "own_attention", "run"])
def test_the_examples_in_the_docs_run(name, tmp_path, monkeypatch, capsys):
    import runpy

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [name])
    runpy.run_path(str(ROOT / "docs" / "examples" / f"{name}.py"), run_name="__main__")
    assert capsys.readouterr().out


def test_the_search_in_the_docs_finds_a_picture_among_its_like(backbone, batches, tmp_path, monkeypatch, capsys):
    import runpy

    drawn = np.random.default_rng(0)
    for number in range(6):
        Image.fromarray(drawn.integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(tmp_path / f"{number}.png")
    ofqctl.quantize(backbone, "ptq/minmax", calibration=batches, set=FEW, output=tmp_path / "run")
    collection, pictures = tmp_path / "photos.parquet", sorted(tmp_path.glob("*.png"))
    predict(PredictRequest(ModelRequest(str(tmp_path / "run")), tuple(pictures), save_embeddings=collection))
    monkeypatch.setattr(sys, "argv", ["search", str(tmp_path / "run"), str(collection), str(pictures[3])])
    runpy.run_path(str(ROOT / "docs" / "examples" / "search.py"), run_name="__main__")
    found = capsys.readouterr().out.splitlines()
    assert found[0] == "1.000  3.png" and len(found) == 5
