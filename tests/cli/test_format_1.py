"""Commands take runs that format 1 wrote."""

import shutil
from pathlib import Path

FORMAT_1 = Path(__file__).parents[1] / "artifact" / "format_1"


def test_training_starts_from_a_run_and_its_oscillation_is_seen(tmp_path, ofqctl):
    run = tmp_path / "run"
    shutil.copytree(FORMAT_1 / "qat", run)
    short = ["training.phases.0.epochs=1", "training.steps_per_epoch=1", "training.phases.0.warmup_steps=0"]
    to = ["--data", "digits", "--output", tmp_path / "next", "--set", *short, "training.distillation=null"]
    result = ofqctl("train", run, *to, "--json").json
    assert not [note for note in result["notes"] if "get new start values" in note]
    assert ofqctl("analyze-oscillation", run, "--json").json["checkpoints"][0]["layers"]
