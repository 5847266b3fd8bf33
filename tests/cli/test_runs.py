"""From a float model to a run directory and back, as a person types it."""

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ofqctl.cli.summary import training_hint
from ofqctl.results.run import Bits, ModelBits

from .conftest import QUICK, TINY, quantize_tiny

SHARED = Path(__file__).resolve().parents[3] / "shared"
SMALL = ("--model-kwargs", "embed_dim=48", "depth=2", "num_heads=3", "img_size=32", "patch_size=8")


@pytest.fixture
def picture(tmp_path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8)).save(path)
    return path


def tensors(path: Path) -> bytes:
    return (path / "model.safetensors").read_bytes()


def test_quantize_ends_with_a_table_and_the_next_commands(ofqctl, tmp_path):
    ended = ofqctl(*quantize_tiny("--calib-data", "digits", "--data", "digits", "--output", "out dir/a"))
    assert ended.code == 0
    for words in ("weight bits", "top-1 accuracy", "images/s", "size", "Next:", "ofqctl evaluate 'out dir/a'"):
        assert words in ended.out
    assert "ofqctl export 'out dir/a' --onnx" in ended.out
    assert "ofqctl train" not in ended.out
    assert "calibrate 8/8" in ended.err
    assert "evaluate 360/360" in ended.err
    assert (tmp_path / "out dir" / "a" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("bits", "recipe"),
    [
        ((2, 2), "ofq/vit_w2a2"),
        ((3, 8), "ofq/vit_w3a3 --set activations.bits=8"),
        ((1, 2), "ofq/vit_w2a2 --set weights.bits=1"),
        ((2.6, 8), "ofq/vit_w3a3 --set activations.bits=8"),
    ],
)
def test_below_4_bits_the_command_that_brings_accuracy_back_is_told(bits, recipe):
    ends = Bits(weights=8, activations=8)
    model = ModelBits(first=ends, last=ends, weights=bits[0], activations=bits[1])
    hint = "\n".join(training_hint(model, "deit small"))
    assert f"calibration alone leaves little of it at {min(bits)} bits" in hint
    assert f"ofqctl train 'deit small' --recipe {recipe} --data DATA" in hint


def test_calibration_images_are_not_those_that_are_measured_on(ofqctl):
    result = ofqctl(*quantize_tiny("--calib-data", "digits", "--data", "digits", "--json")).json
    assert result["calibration"]["data"] == "digits/train"
    assert result["evaluation"]["data"] == "digits/test"


def test_without_images_quantize_works_and_says_that_accuracy_cannot_be_expected(ofqctl):
    ended = ofqctl(*quantize_tiny("--json"))
    assert ended.code == 0
    assert ended.json["output"] == "runs/vit_tiny_patch16_224-w4a4"
    assert any("synthetic" in note and "do not expect accuracy" in note for note in ended.json["notes"])
    assert "note: calibrated on synthetic images" in ended.err


def test_strict_refuses_what_was_left_undone_and_writes_nothing(ofqctl, tmp_path):
    ended = ofqctl(*quantize_tiny("--strict", "--output", tmp_path / "a"))
    assert ended.code == 1
    assert "synthetic" in ended.err
    assert not (tmp_path / "a").exists()


def test_the_same_command_and_seed_write_the_same_bytes(ofqctl):
    for name in ("a", "b"):
        assert ofqctl(*quantize_tiny("--calib-data", "digits", "--seed", 3, "--output", name)).code == 0
    assert tensors(Path("a")) == tensors(Path("b"))
    assert ofqctl(*quantize_tiny("--calib-data", "digits", "--seed", 4, "--output", "c")).code == 0
    assert tensors(Path("a")) != tensors(Path("c"))


def test_evaluate_measures_a_run_as_quantize_did(ofqctl):
    measured = ofqctl(*quantize_tiny("--calib-data", "digits", "--data", "digits", "--output", "a", "--json")).json
    again = ofqctl("evaluate", "a", "--data", "digits", "--batch-size", 100, "--json").json
    assert again["top1"] == measured["evaluation"]["quantized"]["top1"]
    assert again["loss"] == pytest.approx(measured["evaluation"]["quantized"]["loss"], rel=1e-6)
    assert again["classes"] == {"present": 10, "model": 10}
    assert again["images"] == 360
    assert again["preprocessing"]["input_size"] == [3, 32, 32]


@pytest.mark.parametrize("form", ["{}", "{}/model.safetensors", "local-dir:{}"])
def test_a_run_is_found_by_its_folder_or_its_weights(ofqctl, run, form):
    assert ofqctl("evaluate", form.format(run), "--data", "digits", "--limit", 5, "--json").json["images"] == 5


def test_evaluate_takes_a_float_model(ofqctl):
    ended = ofqctl("evaluate", "vit_tiny_patch16_224", *TINY, "--data", "digits", "--limit", 20)
    assert ended.code == 0
    assert "(float)" in ended.out
    assert "preprocessing  32x32 pixels" in ended.out


def test_options_of_a_float_model_are_noted_as_unused_on_a_run(ofqctl, run):
    ended = ofqctl("evaluate", run, "--data", "digits", "--limit", 5, "--num-classes", 3)
    assert "note: --num-classes: no effect on a run directory" in ended.err


def test_predict_names_labels_with_falling_probabilities(ofqctl, run, picture):
    ended = ofqctl("predict", run, picture, "--top", 3, "--json")
    [image] = ended.json["images"]
    probabilities = [guess["probability"] for guess in image["top"]]
    assert image["image"] == str(picture)
    assert len(probabilities) == 3
    assert probabilities == sorted(probabilities, reverse=True)
    assert "picture.png" in ofqctl("predict", run, picture.parent).out


def test_predict_skips_and_names_a_corrupt_image(ofqctl, run, picture, tmp_path):
    (tmp_path / "bad.png").write_bytes(picture.read_bytes()[:60])
    ended = ofqctl("predict", run, tmp_path / "bad.png", picture, "--json")
    assert [image["image"] for image in ended.json["images"]] == [str(picture)]
    assert ended.json["skipped"][0]["image"] == str(tmp_path / "bad.png")
    alone = ofqctl("predict", run, tmp_path / "bad.png")
    assert alone.code == 1
    assert "bad.png" in alone.err


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 3, 16, 16), np.float32), "takes (N, 3, 32, 32)"),
        (np.zeros((3, 32, 32), np.float32), "takes (N, 3, 32, 32)"),
        (np.zeros((0, 3, 32, 32), np.float32), "N >= 1"),
        (np.zeros((1, 3, 32, 32), np.uint8), "values of type uint8"),
        (np.full((1, 3, 32, 32), np.nan), "3072 of its 3072 values are NaN"),
        (np.array([{"a": 1}], dtype=object), "not a .npy file of plain numbers"),
    ],
)
def test_an_array_that_does_not_fit_is_refused(ofqctl, run, tmp_path, array, message):
    np.save(tmp_path / "x.npy", array)
    ended = ofqctl("predict", run, "--array", tmp_path / "x.npy", "--save-logits", tmp_path / "y.npy")
    assert ended.code == 1
    assert message in ended.err
    assert not (tmp_path / "y.npy").exists()


def test_logits_do_not_depend_on_the_batch_size(ofqctl, run, tmp_path):
    np.save("x.npy", np.random.default_rng(0).normal(size=(7, 3, 32, 32)))
    saved = []
    for size in (1, 7):
        assert ofqctl("predict", run, "--array", "x.npy", "--save-logits", "y.npy", "--batch-size", size).code == 0
        saved.append(np.load("y.npy"))
    assert saved[0].dtype == np.float32
    assert saved[0].shape == (7, 10)
    assert np.abs(saved[0] - saved[1]).max() < 1e-5
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "x.npy", "y.npy"]


@pytest.mark.parametrize("arguments", [(), ("nosuch.png",), (".", "--array", "x.npy"), ("run",)])
def test_predict_without_exactly_one_kind_of_input_is_refused(ofqctl, run, arguments):
    ended = ofqctl("predict", run, *arguments)
    assert ended.code == 1
    assert ended.err.startswith("error:")


def test_inspect_tells_bits_grids_and_bytes(ofqctl, run):
    result = ofqctl("inspect", run, "--json").json
    modules = {module["name"]: module for module in result["modules"]}
    weight = modules["blocks.0.mlp.fc1"]["weight"]
    assert (weight["bits"], weight["shape"], weight["bytes"]) == (4, [192, 48], 192 * 48 // 2)
    assert weight["grid"] == {"low": -8, "high": 7, "offset": [0.0, 0.0]}
    attention = modules["blocks.0.attn"]["activations"]
    assert set(attention) == {"q", "k", "softmax", "v"}
    assert attention["softmax"]["dynamic"] is False
    assert result["size"]["codes"] == sum(m["weight"]["bytes"] for m in result["modules"] if m["weight"])
    assert result["size"]["total"] == (run / "model.safetensors").stat().st_size
    names = list(modules)
    assert names[:3] == ["patch_embed.proj", "blocks.0.attn", "blocks.0.attn.qkv"]
    assert names[-1] == "head"
    fc1 = result["roles"]["fc1"]
    assert (fc1["modules"], fc1["weight_bits"], fc1["weights"], fc1["bytes"]) == (2, [4], 2 * 192 * 48, 192 * 48)
    assert sum(role["modules"] for role in result["roles"].values()) == len(modules)
    text = ofqctl("inspect", run / "model.safetensors").out
    assert text.startswith("role ")
    assert "blocks.0.mlp.fc1" in text
    assert "float model / file" in text


def test_inspect_tells_which_rows_are_dynamic(ofqctl, tmp_path):
    output = tmp_path / "run"
    made = ofqctl(*quantize_tiny("--calib-data", "digits", "--set", "activations.dynamic=true", "--output", output))
    assert made.code == 0
    result = ofqctl("inspect", output, "--json").json
    modules = {module["name"]: module["activations"] for module in result["modules"]}
    assert modules["blocks.0.mlp.fc1"]["input"]["dynamic"]
    assert not modules["patch_embed.proj"]["input"]["dynamic"]
    assert " dynamic" in ofqctl("inspect", output).out


def test_models_tells_the_coverage_of_a_family(ofqctl):
    result = ofqctl("models", "swin_tiny*", "--json").json
    assert {model["name"] for model in result["models"]} >= {"swin_tiny_patch4_window7_224"}
    [family] = result["families"]
    assert (family["family"], family["attention"], family["qkr"]) == ("swin_transformer", "products", True)
    assert "vision_transformer" in ofqctl("models").out
    assert ofqctl("models", "nosuchmodel").code == 1


@pytest.mark.skipif(not (SHARED / "reference").is_dir(), reason="needs ../shared/reference")
@pytest.mark.parametrize(("name", "bits"), [("ofq_w2a2_qkr_a", 2), ("ofq_w3a3_b", 3)])
def test_an_imported_checkpoint_gives_the_logits_of_its_authors(ofqctl, name, bits):
    expected = torch.load(SHARED / "reference" / f"{name}.io.pt", weights_only=True)
    np.save("x.npy", expected["input"].numpy())
    file = SHARED / "reference" / f"{name}.pth.tar"
    typed = ("import", file, "--model", "deit_tiny_distilled_patch16_224", "--wbits", bits, "--abits", bits)
    ended = ofqctl(*typed, *SMALL, "--output", "run", "--json")
    assert ended.code == 0, ended.err
    assert ended.json["bits"]["weights"] == bits
    assert ofqctl("predict", "run", "--array", "x.npy", "--save-logits", "y.npy").code == 0
    wanted = expected["logits"].numpy()
    assert np.abs(np.load("y.npy") - wanted).max() <= 1e-4 * np.abs(wanted).max()


@pytest.mark.parametrize("content", [{"epoch": 1}, {"state_dict": {"head.weight": torch.zeros(2, 2)}}, [1]])
def test_a_file_that_is_no_ofq_checkpoint_is_refused(ofqctl, content):
    torch.save(content, "x.pth.tar")
    ended = ofqctl("import", "x.pth.tar", "--model", "vit_tiny", "--wbits", 2, "--abits", 2)
    assert ended.code == 1
    assert "OFQ" in ended.err
    assert not Path("runs").exists()


class RunsCode:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


def test_a_checkpoint_that_wants_to_run_code_is_refused(ofqctl):
    torch.save({"state_dict": RunsCode()}, "x.pth.tar")
    ended = ofqctl("import", "x.pth.tar", "--model", "vit_tiny", "--wbits", 2, "--abits", 2)
    assert ended.code == 1
    assert "could run code" in ended.err
    assert not Path("pwned").exists()


def test_an_existing_output_is_refused_before_any_work_and_replaced_when_asked(ofqctl, run):
    before = tensors(run)
    refused = ofqctl(*quantize_tiny("--seed", 5, "--output", run))
    assert refused.code == 1
    assert "already exists" in refused.err
    assert "load the model" not in refused.err
    assert tensors(run) == before
    assert ofqctl(*quantize_tiny("--seed", 5, "--output", run, "--overwrite")).code == 0
    assert tensors(run) != before


def test_a_folder_that_is_no_run_is_never_overwritten(ofqctl, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.txt").write_text("dear")
    ended = ofqctl(*quantize_tiny("--output", tmp_path / "photos", "--overwrite"))
    assert ended.code == 1
    assert "not a run directory" in ended.err
    assert (tmp_path / "photos" / "a.txt").read_text() == "dear"


def test_an_output_below_a_file_or_in_a_read_only_folder_is_refused(ofqctl, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    assert ofqctl(*quantize_tiny("--output", tmp_path / "file" / "a")).code == 1

    def refused(*_args, **_kwargs):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(Path, "mkdir", refused)  # root may write everywhere
    ended = ofqctl(*quantize_tiny("--output", tmp_path / "a"))
    assert ended.code == 1
    assert "cannot be written" in ended.err
    assert "calibrate" not in ended.err


def test_a_full_disk_is_told_and_leaves_the_old_run(ofqctl, run, tmp_path, monkeypatch):
    before = tensors(run)

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    ended = ofqctl(*quantize_tiny("--output", run, "--overwrite"))
    assert ended.code == 1
    assert "No space left on device" in ended.err
    assert tensors(run) == before
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_cuda_is_refused_where_there_is_none(ofqctl, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ended = ofqctl(*quantize_tiny("--device", "cuda"))
    assert ended.code == 1
    assert "--device cuda: not present" in ended.err


def test_a_run_cannot_be_quantized_again(ofqctl, run):
    for name in (run, f"local-dir:{run}"):
        ended = ofqctl("quantize", name)
        assert ended.code == 1
        assert "already quantized" in ended.err


def test_a_run_at_32_bits_is_quantized_as_the_float_model_it_is(ofqctl):
    all_float = [f"{part}{kind}.bits=32" for part in ("", "first.", "last.") for kind in ("weights", "activations")]
    assert ofqctl(*quantize_tiny("--set", *all_float, "--output", "float")).code == 0
    low = ("quantize", "float", "--wbits", 4, "--abits", 4, *QUICK, "--data", "digits", "--output", "low", "--json")
    ended = ofqctl(*low)
    assert ended.code == 0, ended.err
    alone = ofqctl("evaluate", "float", "--data", "digits", "--json").json
    assert ended.json["evaluation"]["float"]["loss"] == pytest.approx(alone["loss"], rel=1e-5)
    assert ended.json["bits"]["weights"] == 4
    assert ofqctl("sensitivity", "float", *QUICK, "--bits", 4, "--json").code == 0


def test_weights_out_of_reach_are_told(ofqctl):
    ended = ofqctl("quantize", "deit_small", "--wbits", 2, "--abits", 2)
    assert ended.code == 1
    assert "could not be downloaded" in ended.err
    assert "--no-pretrained" in ended.err


def truncate(run: Path) -> None:
    (run / "model.safetensors").write_bytes(tensors(run)[:-100])


def tamper(run: Path) -> None:
    content = bytearray(tensors(run))
    content[-1] ^= 1
    (run / "model.safetensors").write_bytes(content)


def replace_by_foreign(run: Path) -> None:
    from safetensors.torch import save_file

    save_file({"a": torch.zeros(3)}, run / "model.safetensors")


def lose_weights(run: Path) -> None:
    (run / "model.safetensors").unlink()


def change_config(run: Path, **values: object) -> None:
    config = json.loads((run / "config.json").read_text())
    config["quantization_config"] |= {"config_sha256": None} | values
    (run / "config.json").write_text(json.dumps(config))


def come_from_the_future(run: Path) -> None:
    change_config(run, format_version=99)


def be_foreign(run: Path) -> None:
    change_config(run, quant_method="gptq")


def lose_plan(run: Path) -> None:
    change_config(run, plan={})


def break_config(run: Path) -> None:
    (run / "config.json").write_text("{")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "truncated"),
        (tamper, "changed after it was written"),
        (replace_by_foreign, "not written by ofqctl"),
        (lose_weights, "cannot be read"),
        (come_from_the_future, "format version 99"),
        (be_foreign, "not written by ofqctl"),
        (lose_plan, "plan.modules"),
        (break_config, "cannot be read"),
    ],
)
@pytest.mark.parametrize("command", [("inspect",), ("evaluate", "--data", "digits")], ids=["inspect", "evaluate"])
def test_a_damaged_run_is_refused(ofqctl, run, damage, message, command):
    damage(run)
    ended = ofqctl(*command, run)
    assert ended.code == 1
    assert message in ended.err
    assert str(run) in ended.err


def test_another_file_than_the_weights_of_a_run_is_refused(ofqctl, run):
    ended = ofqctl("evaluate", run / "results.json", "--data", "digits")
    assert ended.code == 1
    assert "not the model.safetensors of a run" in ended.err


def test_a_path_that_is_not_there_is_told_as_a_path(ofqctl):
    ended = ofqctl("evaluate", "runs/nosuch", "--data", "digits")
    assert ended.code == 1
    assert "no such run directory or file" in ended.err


@pytest.mark.slow
def test_processes_that_share_the_images_measure_what_one_does(ofqctl, torchrun, run, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (34, 20, 20, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        path = tmp_path / "images" / f"class{number % 10}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    path.write_bytes(path.read_bytes()[:60])
    command = ("evaluate", run, "--data", tmp_path / "images", "--batch-size", 4, "--device", "cpu", "--json")
    alone = ofqctl(*command).json
    shared = torchrun(2, "-m", "ofqctl", *command)
    assert shared.returncode == 0, shared.stderr
    together = json.loads(shared.stdout)  # only one of them prints
    assert (alone["images"], alone["processes"], together["processes"]) == (33, 1, 2)
    assert len(together["skipped"]) == 1
    for result in (alone, together):
        del result["images_per_second"], result["processes"]
    assert together == alone


@pytest.mark.slow
def test_an_error_ends_all_processes(torchrun, run, tmp_path):
    for number in range(10):
        (tmp_path / "images" / f"class{number}").mkdir(parents=True)
        (tmp_path / "images" / f"class{number}" / "0.png").write_bytes(b"nothing")
    ended = torchrun(2, "-m", "ofqctl", "evaluate", run, "--data", tmp_path / "images")
    assert ended.returncode != 0
    assert "none of its 10 images can be used; the first" in ended.stderr
    assert ended.stdout == ""
