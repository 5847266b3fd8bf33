"""Runs that were changed by hand, through the commands."""

import json


def change(run, **data_config):
    config = json.loads((run / "config.json").read_text())
    config["data_config"] |= data_config
    (run / "config.json").write_text(json.dumps(config))


def test_a_changed_config_stops_every_command_until_inspect_accepts_it(ofqctl, run):
    change(run, mean=[0.1, 0.2, 0.3])
    for command in (("evaluate", run, "--data", "digits"), ("inspect", run), ("compare", run)):
        ended = ofqctl(*command)
        assert ended.code == 1
        assert "config.json: changed after it was written" in ended.err
        assert f"hint: `ofqctl inspect {run} --accept-config` accepts it as it is now" in ended.err
    assert ofqctl("inspect", run, "--accept-config").code == 0
    ended = ofqctl("inspect", run, "--json")
    assert ended.code == 0
    assert ended.json["notes"] == []


def test_a_config_that_cannot_be_used_is_not_accepted(ofqctl, run):
    change(run, std=[0.0, 0.2, 0.3])
    ended = ofqctl("inspect", run, "--accept-config")
    assert ended.code == 1
    assert "data_config: std.0" in ended.err


def test_inspect_shows_what_a_training_measured_on_its_validation_images(ofqctl, run):
    (run / "results.json").write_text('{"evaluation": {"data": "digits", "val_top1": 50.0, "val_loss": 1.0}}')
    assert "measured  top-1 50.00 % on digits" in ofqctl("inspect", run).out


def test_changed_weights_are_not_compared(ofqctl, run):
    (run / "model.safetensors").write_bytes(b"")
    ended = ofqctl("compare", run)
    assert ended.code == 1
    assert "changed after it was written" in ended.err


def test_damaged_results_stop_neither_inspect_nor_compare(ofqctl, run):
    (run / "results.json").write_text("[" * 100000)
    for command in (("inspect", run), ("compare", run)):
        ended = ofqctl(*command)
        assert ended.code == 0
        assert "its figures are left out" in ended.err
