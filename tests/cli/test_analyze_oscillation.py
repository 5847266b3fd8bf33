"""``analyze-oscillation`` and ``compare`` as a person, or a pipeline, types them."""

import shutil
from pathlib import Path

import pytest
import torch

from ofqctl.cli.app import main

SHARED = Path(__file__).resolve().parents[3] / "shared"
SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
TRAINED = ("--no-pretrained", "--num-classes", "10", "--set", "training.distillation=null", "calibration.images=16")
TRAINED += ("training.phases=[{name: train, epochs: 1}, {name: cga, epochs: 1, lr: 1.0e-5, cga: {}}]", "--model-kwargs")
TRAINED += ("img_size=32", "patch_size=8", "embed_dim=48", "depth=2", "num_heads=3")


@pytest.fixture(scope="session")
def _trained(_one_thread, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("trained") / "run"
    command = ["train", "vit_tiny_patch16_224", "--recipe", "demo/digits_ofq_w2a2", "--data", "digits", *TRAINED]
    assert main([*command, "--val-data", "digits", "--output", str(output)]) == 0
    return output


@pytest.fixture
def trained(_trained, tmp_path) -> Path:
    """A trained run with its tracker."""
    return Path(shutil.copytree(_trained, tmp_path / "trained"))


def test_tables_for_people_say_where_and_what_to_do(ofqctl, trained):
    ended = ofqctl("analyze-oscillation", trained)
    assert ended.code == 0
    for words in (
        "44 steps tracked",
        "oscillating",
        "within 0.005",
        "qk",
        "fc1",
        "layers that oscillate most",
        "Found:",
    ):
        assert words in ended.out
    assert f"read {trained}" in ended.err


def test_json_holds_every_file_and_change(ofqctl, trained, run):
    result = ofqctl("analyze-oscillation", trained / "last.pt", trained, "--json").json
    assert result["format"] == 1
    assert len(result["checkpoints"]) == 2 and result["changes"][0]["codes_changed"] == 0
    assert ofqctl("compare", trained, run, "--json").json["format"] == 1


def test_the_report_is_written_whole(ofqctl, trained, tmp_path):
    page = tmp_path / "report.html"
    ended = ofqctl("analyze-oscillation", trained, "--html", page)
    assert ended.code == 0 and f"written   to {page}" in ended.out
    assert page.read_text().endswith("</html>\n")
    assert [p.name for p in tmp_path.iterdir() if p.name.endswith(".partial")] == []
    ended = ofqctl("analyze-oscillation", trained, "--html", tmp_path / "no folder" / "report.html")
    assert ended.code == 1 and "cannot be written" in ended.err


def test_gates_that_are_met_exit_with_0_and_say_nothing(ofqctl, trained):
    ended = ofqctl("analyze-oscillation", trained, "--max-oscillating", 100, "--max-flip-rate", 1, "--json")
    assert ended.code == 0 and "gate: " not in ended.err
    assert [gate["met"] for gate in ended.json["gates"]] == [True, True]


@pytest.mark.parametrize(
    ("option", "limit", "words"),
    [
        ("--max-oscillating", "0", "of its weights oscillate, the limit is 0 %"),
        ("--max-flip-rate", "0", "of its codes flip"),
    ],
)
def test_a_gate_that_is_not_met_exits_with_1_and_one_line(ofqctl, trained, option, limit, words):
    ended = ofqctl("analyze-oscillation", trained, option, limit, "--json")
    assert ended.code == 1
    (gate,) = ended.json["gates"]  # the result is whole all the same
    lines = [line for line in ended.err.splitlines() if line.startswith("gate: ")]
    assert len(lines) == 1 and words in lines[0] and gate["layer"] in lines[0]
    worst = max(ended.json["checkpoints"][0]["layers"], key=lambda layer: layer["tracked"][gate["figure"]])
    assert gate["layer"] == worst["name"] and not gate["met"]


def test_a_gate_looks_at_the_layers_that_are_chosen(ofqctl, trained):
    every = ofqctl("analyze-oscillation", trained, "--max-oscillating", 0, "--json").json["gates"][0]
    low = ofqctl("analyze-oscillation", trained, "--max-oscillating", 0, "--layers", "blocks.*", "--json").json[
        "gates"
    ][0]
    assert every["layer"] in ("head", "patch_embed.proj") and low["layer"].startswith("blocks")
    limit = 100 * low["value"] + 0.001
    chosen = ofqctl("analyze-oscillation", trained, "--max-oscillating", limit, "--layers", "blocks.*")
    assert chosen.code == 0


def test_live_steps_are_shown_and_nothing_is_written(ofqctl, trained):
    before = {path.name: path.stat().st_mtime_ns for path in trained.iterdir()}
    ended = ofqctl("analyze-oscillation", trained, "--data", "digits", "--steps", 2, "--device", "cpu")
    assert ended.code == 0
    for words in ("2 live steps, phase cga", "gradients keep sign", "activation codes on 8 fixed images", "operand"):
        assert words in ended.out, words
    assert {path.name: path.stat().st_mtime_ns for path in trained.iterdir()} == before


def test_what_cannot_be_analyzed_is_said_in_one_line(ofqctl, trained, run, tmp_path):
    for arguments, told in (
        ([run, "--steps", 3], "error: --steps 3: live steps need training images"),
        ([run, "--data", "digits"], "packed codes: contains no optimizer, latent weights and recipe"),
        ([run, trained], "belong to different models"),
        ([trained, "--layers", "nothing*"], "--layers nothing*: matches no quantized layer"),
        ([tmp_path / "nowhere"], "no such file or folder"),
        ([run, "--max-oscillating", 1], "no figure to compare with the limit"),
    ):
        ended = ofqctl("analyze-oscillation", *arguments)
        assert (ended.code, ended.out) == (1, ""), arguments
        assert told in ended.err
        assert "hint: " in ended.err
    assert ofqctl("analyze-oscillation", run, "--max-flip-rate", 2).code == 2


def test_a_packed_run_says_what_is_still_possible(ofqctl, run):
    ended = ofqctl("analyze-oscillation", run)
    assert ended.code == 0
    assert "latents: unknown: its weights are packed codes" in ended.out and "bits used" in ended.out
    assert "oscillating" not in ended.out.split("Found:")[0].replace("oscillation", "")


@pytest.mark.parametrize("name", ["ofq_w2a2_qkr_a", "ofq_w3a3_b"])
def test_the_authors_files_are_analyzed_without_further_flags(ofqctl, name):
    path = SHARED / "reference" / f"{name}.pth.tar"
    if not path.is_file():
        pytest.skip("the authors' files are not here")
    ended = ofqctl("analyze-oscillation", path)
    assert ended.code == 0 and "OFQ checkpoint" in ended.out and "within 0.005" in ended.out


def test_runs_of_any_command_are_compared(ofqctl, trained, run, tmp_path):
    page = tmp_path / "compared.html"
    ended = ofqctl("compare", trained, run, "--html", page)
    assert ended.code == 0 and page.is_file()
    for words in ("W2A2", "W4A4", "demo/digits_ofq_w2a2", "oscillating", "training s"):
        assert words in ended.out
    first, second = ofqctl("compare", trained, run, "--json").json["runs"]
    assert first["seconds"] > 0 and first["top1"] is not None and first["oscillating"] > 0
    assert (second["seconds"], second["top1"], second["weight_bits"]) == (None, None, 4)
    assert first["bytes"] == (trained / "model.safetensors").stat().st_size
    ended = ofqctl("compare", trained, tmp_path / "nothing")
    assert ended.code == 1 and "not a run directory" in ended.err


def test_a_large_checkpoint_loads_without_its_model(trained, monkeypatch, ofqctl):
    """Static analysis needs no architecture: a state that lies alone will do."""
    monkeypatch.setattr("timm.create_model", None)
    alone = trained.parent / "alone.pt"
    (trained / "last.pt").rename(alone)
    assert ofqctl("analyze-oscillation", alone, "--json").json["checkpoints"][0]["model"] is None
    assert torch.is_grad_enabled()
