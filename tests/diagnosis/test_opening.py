"""What can be analyzed, and what is said about what cannot."""

import pytest
import torch

from ofqctl.data import DataSpec
from ofqctl.diagnosis.opening import open_source
from ofqctl.diagnosis.report import Selection, report_on
from ofqctl.errors import ArtifactError, DataError, OfqctlError
from ofqctl.jobs.analyze import AnalyzeRequest, analyze


def test_a_run_its_state_and_its_weights_file_are_what_they_are(ofq_run, tmp_path):
    assert open_source(ofq_run).kind == "training state"
    assert open_source(ofq_run / "last.pt").kind == "training state"
    packed = open_source(ofq_run / "model.safetensors")
    assert packed.kind == "packed codes" and packed.missing.keys() == {"latents", "tracked"}
    moved = tmp_path / "epoch3.pt"
    (ofq_run / "last.pt").rename(moved)
    alone = open_source(moved)
    assert alone.kind == "training state" and alone.architecture is None
    assert report_on(alone, Selection())[0].total.oscillating > 0


def test_packed_codes_still_say_what_they_can_and_what_is_missing(packed_run):
    report, _ = report_on(open_source(packed_run), Selection())
    assert report.kind == "packed codes"
    assert "last.pt" in report.missing["latents"] and "tracking" in report.missing["tracked"]
    assert report.total.confident is None and report.total.oscillating is None
    assert 1.5 < report.roles["fc1"].entropy <= 2.0
    assert all(layer.codes.counts and layer.step for layer in report.layers)
    assert [row.phase for row in report.epochs] == ["train", "train", "cga"]  # from results.json


def test_a_model_without_quantized_layers_is_refused(float_run):
    for path in (float_run, float_run / "last.pt", float_run / "model.safetensors"):
        with pytest.raises(ArtifactError, match="no quantized layers") as error:
            open_source(path)
        assert "ofqctl train" in error.value.hint


def test_a_pattern_that_matches_nothing_suggests_a_name(ofq_run):
    opened = open_source(ofq_run)
    with pytest.raises(ArtifactError, match=r"--layers blocks\.0\.mlp\.fc9: matches no quantized layer") as error:
        report_on(opened, Selection("blocks.0.mlp.fc9"))
    assert "blocks.0.mlp.fc" in error.value.hint
    report, _ = report_on(opened, Selection("blocks.*.mlp.*"))
    assert {layer.role for layer in report.layers} == {"fc1", "fc2"}
    assert report.total.layers == 4


def test_steps_without_images_are_refused_ahead_of_any_work(tmp_path):
    with pytest.raises(DataError, match="--steps 5: live steps need training images"):
        analyze(AnalyzeRequest([tmp_path / "not there"], steps=5))


def test_a_gate_without_figures_is_an_error_not_a_pass(packed_run):
    with pytest.raises(ArtifactError, match="no figure to compare with the limit"):
        analyze(AnalyzeRequest([packed_run], max_oscillating=0.5))


def test_a_gate_can_be_judged_by_live_steps(ofq_run):
    checkpoint = torch.load(ofq_run / "last.pt", weights_only=True) | {"tracker": None}
    torch.save(checkpoint, ofq_run / "last.pt")
    request = AnalyzeRequest([ofq_run], data=DataSpec("digits"), steps=2, max_flip_rate=1.0, device="cpu")
    (gate,) = analyze(request).gates
    assert gate.met and gate.figure == "flips_per_step"


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "no such file"),
        (b"nonsense", "refused, because"),
        ({"weights": torch.zeros(2)}, "neither a training state of ofqctl nor an OFQ checkpoint"),
        ({"state_dict": {"head.weight": torch.zeros(2, 2)}}, "no OFQ quantizers in it"),
        ({"position": {}, "version": 99}, "version 99"),
    ],
)
def test_foreign_files_are_named_for_what_they_are(tmp_path, content, told):
    path = tmp_path / "some-w2a2.pth.tar"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        torch.save(content, path)
    with pytest.raises(OfqctlError, match=told):
        open_source(path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match=r"a folder without last\.pt and config\.json"):
        open_source(tmp_path)


def test_the_bits_of_an_authors_file_come_from_its_name_or_an_option(shared, tmp_path):
    path = tmp_path / "checkpoint.pth.tar"
    path.write_bytes((shared / "reference" / "ofq_w3a3_b.pth.tar").read_bytes())
    with pytest.raises(ArtifactError, match="does not contain the bits of its weights") as error:
        open_source(path)
    assert error.value.hint == "--wbits N"
    opened = open_source(path, wbits=4)
    assert {weight.encoded.grid.range.bits for weight in opened.read_weights()} == {4, 8}
    assert not opened.notes


def test_a_state_that_does_not_fit_its_plan_is_refused(ofq_run):
    checkpoint = torch.load(ofq_run / "last.pt", weights_only=True)
    del checkpoint["model"]["blocks.1.mlp.fc2.weight"]
    torch.save(checkpoint, ofq_run / "last.pt")
    with pytest.raises(ArtifactError, match=r"blocks\.1\.mlp\.fc2: its weight does not fit the plan in the file"):
        list(open_source(ofq_run).read_weights())


def test_averaged_weights_are_told_from_those_that_are_trained(ofq_run):
    checkpoint = torch.load(ofq_run / "last.pt", weights_only=True)
    torch.save(checkpoint | {"ema": checkpoint["model"]}, ofq_run / "last.pt")
    assert "not the averaged ones" in open_source(ofq_run).notes[0]
