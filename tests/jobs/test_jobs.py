"""What the commands do not show of the jobs behind them."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ofqctl.data import DataSpec
from ofqctl.errors import ArtifactError, DataError, ModelError, RecipeError
from ofqctl.jobs.evaluate import EvaluateRequest, evaluate
from ofqctl.jobs.importing import ImportRequest, import_checkpoint
from ofqctl.jobs.inspect import InspectRequest, inspect
from ofqctl.jobs.predict import PredictRequest, predict
from ofqctl.jobs.quantize import QuantizeRequest, quantize
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load
from ofqctl.results.data import CalibratedOn
from ofqctl.results.inspect import InspectedGrid

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
FLOAT = ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY)


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def quick(**changes):
    recipe = load("ptq/minmax", ["weights.bits=2", "calibration.images=4", "calibration.batch_size=2"])
    return QuantizeRequest(FLOAT, recipe, **changes)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for seed in range(3):
        pixels = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{seed}.png")
    return folder


def test_what_quantize_returns_is_what_lies_in_the_run(tmp_path):
    told = []
    result = quantize(quick(output=tmp_path / "run"), lambda *step: told.append(step))
    written = json.loads((tmp_path / "run" / "results.json").read_text())
    assert len(written.pop("sha256")) == 64 and written.pop("digested") is True
    about = {"format": 1, "command": "quantize", "output": str(tmp_path / "run")}
    assert about | written == result.model_dump(mode="json")
    assert inspect(InspectRequest(tmp_path / "run")).results == written
    assert told[0] == ("load the model", 0, None)
    assert told[-1] == ("calibrate", 4, 4)
    assert result.bits.weights == 2
    assert result.bits.first.weights == 8


def test_a_recipe_for_another_architecture_is_refused(tmp_path):
    recipe = load("ptq/minmax", ["model=deit_*"])
    with pytest.raises(RecipeError, match="is for deit_\\*, not for vit_tiny_patch16_224"):
        quantize(QuantizeRequest(FLOAT, recipe, output=tmp_path / "run"))


def test_a_folder_without_splits_is_calibrated_on_as_it_is(tmp_path, pictures):
    result = quantize(quick(output=tmp_path / "run", calibration=DataSpec(str(pictures))))
    assert result.calibration == CalibratedOn(data=str(pictures), images=3, turned=0)
    assert any("3 images, 4 were requested" in note for note in result.notes)


def test_a_calibration_set_that_is_missing_is_told(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        quantize(quick(output=tmp_path / "run", calibration=DataSpec(str(tmp_path / "nosuch"))))
    assert not (tmp_path / "run").exists()


def test_images_without_labels_cannot_be_measured_on(pictures):
    with pytest.raises(DataError, match="no labels"):
        evaluate(EvaluateRequest(FLOAT, DataSpec(str(pictures))))


def test_labels_that_do_not_fit_the_model_are_told_before_any_work(tmp_path):
    request = QuantizeRequest(
        ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=7, kwargs=TINY),
        load("ptq/minmax"),
        output=tmp_path / "run",
        data=DataSpec("digits"),
    )
    told = []
    with pytest.raises(DataError, match="7 classes"):
        quantize(request, lambda *step: told.append(step[0]))
    assert told == ["load the model"]


def test_predict_takes_the_images_of_a_folder_in_the_order_of_their_names(pictures):
    result = predict(PredictRequest(FLOAT, (pictures,), batch_size=2))
    assert [image.image for image in result.images] == [str(pictures / f"{i}.png") for i in range(3)]
    json.dumps(result.model_dump(mode="json"))


@pytest.mark.parametrize("target", ["nosuch/y.npy", "."])
def test_logits_that_cannot_be_saved_are_told_before_any_work(pictures, target, tmp_path):
    told = []
    with pytest.raises(ArtifactError, match="cannot be written"):
        request = PredictRequest(FLOAT, (pictures,), save_logits=tmp_path / target)
        predict(request, lambda *step: told.append(step))
    assert told == []


def test_an_array_is_predicted_like_the_images_it_was_made_of(pictures, tmp_path):
    from ofqctl.evaluation import open_subject
    from ofqctl.jobs.predict import _loader

    torch.manual_seed(0)
    run = quantize(quick(output=tmp_path / "run")).output
    request = PredictRequest(ModelRequest(run), (pictures,))
    paths = sorted(pictures.iterdir())
    [(images, _)] = _loader(paths, open_subject(request.model), request)
    np.save("x.npy", images.numpy())
    by_array = predict(PredictRequest(ModelRequest(run), array=tmp_path / "x.npy")).images
    by_images = predict(request).images
    assert [image.top for image in by_array] == [image.top for image in by_images]


@pytest.fixture
def reference(shared):
    return torch.load(shared / "reference" / "ofq_w2a2_qkr_a.pth.tar", weights_only=True)


def test_an_import_reads_architecture_and_classes_off_the_file(reference, tmp_path):
    state = {f"module.{name}": tensor for name, tensor in reference["state_dict"].items()}
    torch.save(reference | {"state_dict": state}, "x.pth.tar")
    result = import_checkpoint(ImportRequest(tmp_path / "x.pth.tar", 2, 2, kwargs=TINY))
    assert result.output == "runs/deit_tiny_distilled_patch16_224-w2a2"
    inside = inspect(InspectRequest(tmp_path / result.output))
    assert inside.num_classes == 7
    merged = next(module for module in inside.modules if module.kind == "qkr").weight
    assert (merged.shape, merged.bytes) == ((3, 48, 48), 3 * 48 * 48 * 2 // 8)
    assert merged.grid == InspectedGrid(low=-2, high=1, offset=(0.5, 0.5))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda content: content.pop("arch"), ArtifactError, "does not name its architecture"),
        (lambda content: content["state_dict"].pop("cls_token"), ArtifactError, "cls_token: not in the file"),
        (lambda content: content["state_dict"]["cls_token"].fill_(torch.nan), ModelError, "NaN"),
        (lambda content: content["state_dict"].update(best=1.0), ArtifactError, "'best' in its state_dict"),
    ],
)
def test_a_faulty_checkpoint_is_refused_and_nothing_is_written(reference, tmp_path, change, error, message):
    change(reference)
    torch.save(reference, "x.pth.tar")
    with pytest.raises(error, match=message):
        import_checkpoint(ImportRequest(tmp_path / "x.pth.tar", 2, 2, kwargs=TINY))
    assert not (tmp_path / "runs").exists()


def test_an_import_into_another_size_says_what_does_not_fit(reference, tmp_path):
    torch.save(reference, "x.pth.tar")
    with pytest.raises(ArtifactError, match="does not fit the model"):
        import_checkpoint(ImportRequest(tmp_path / "x.pth.tar", 2, 2, kwargs=TINY | {"depth": 3}))


class TestLeftOut:
    """What is left out or guessed is in the result, and refused by ``strict``."""

    @pytest.fixture
    def labelled(self, tmp_path):
        """Ten class folders of two images."""
        for number in range(20):
            folder = tmp_path / "labelled" / str(number % 10)
            folder.mkdir(parents=True, exist_ok=True)
            pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
        return tmp_path / "labelled"

    @pytest.fixture
    def calibration(self, pictures):
        """As many images as are wanted, in no class folders."""
        Image.open(pictures / "0.png").transpose(Image.Transpose.ROTATE_180).save(pictures / "3.png")
        return pictures

    def strict(self, calibration, **options):
        return quantize(quick(calibration=DataSpec(str(calibration)), strict=True, **options))

    def test_is_nothing_in_a_usual_job(self, calibration, labelled):
        for path in labelled.rglob("*.png"):
            Image.open(path).rotate(90).save(path)  # other images than those calibrated on
        result = self.strict(calibration, data=DataSpec(str(labelled)))
        assert result.calibration == CalibratedOn(data=str(calibration), images=4, turned=0)
        assert (result.notes, result.evaluation.data_notes) == ((), ())

    def test_names_calibration_images_that_cannot_be_read(self, labelled):
        for path in (labelled / "0").iterdir():
            path.write_bytes(b"")
        sets = ["calibration.images=20", "calibration.batch_size=20"]
        request = QuantizeRequest(FLOAT, load("ptq/minmax", sets), calibration=DataSpec(str(labelled)))
        (note,) = [note for note in quantize(request).notes if "skipped" in note]
        assert note.startswith("calibration: 2 images were skipped: ")
        assert str(labelled / "0" / "10.png") in note

    @pytest.mark.parametrize(
        ("left", "told"),
        [
            ("3/13.png", "3/13.png: is not an image of a known format"),
            ("3/notes.txt", "1 with extension .txt"),
            ("13.png", "1 images beside the class folders"),
        ],
    )
    def test_is_refused_among_the_images_measured_on(self, calibration, labelled, tmp_path, left, told):
        (labelled / left).write_bytes(b"")
        with pytest.raises(RecipeError, match="--strict: not everything was done as asked") as caught:
            self.strict(calibration, data=DataSpec(str(labelled)))
        assert told in str(caught.value)
        assert not (tmp_path / "runs").exists()

    def test_hidden_files_are_not_predicted(self, pictures):
        (pictures / "._0.png").write_bytes(b"attributes")
        (pictures / "readme.txt").write_bytes(b"text")
        result = predict(PredictRequest(FLOAT, (pictures,)))
        assert (len(result.images), result.skipped) == (3, ())
        assert result.notes == (f"1 files in {pictures} were left out, as no images: 1 with extension .txt",)

    def test_a_turned_photo_is_predicted_upright_and_counted(self, pictures):
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.open(pictures / "0.png").transpose(Image.Transpose.ROTATE_90).save(pictures / "9.png", exif=exif)
        result = predict(PredictRequest(FLOAT, (pictures,)))
        assert result.images[0].top == result.images[-1].top
        assert result.turned == 1


def test_a_model_with_one_class_is_not_measured(pictures, tmp_path):
    (tmp_path / "data").mkdir()
    pictures.rename(tmp_path / "data" / "cat")
    model = ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=1, kwargs=TINY)
    with pytest.raises(DataError, match="one class: every image is right"):
        evaluate(EvaluateRequest(model, DataSpec(str(tmp_path / "data"))))


def test_a_thousand_classes_alone_are_not_called_imagenets(pictures):
    model = ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=1000, kwargs=TINY)
    names = {guess.name for image in predict(PredictRequest(model, (pictures,))).images for guess in image.top}
    assert all(name.startswith("class ") for name in names)
