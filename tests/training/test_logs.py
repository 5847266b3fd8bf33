"""TensorBoard and Weights & Biases: what reaches them, and that training does not depend on them."""

import sys

import pytest

from ofqctl.errors import PackageError
from ofqctl.jobs.train import train
from ofqctl.training import check_logs, logs, open_logs

ROW = {"phase": "train", "epoch": 1, "step": 7, "loss": 2.5, "train_top1": 12.5, "lr": 1e-3, "images_per_second": 9.0}


def scalars_of(directory):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory))
    events.Reload()
    return {tag: {event.step: event.value for event in events.Scalars(tag)} for tag in events.Tags()["scalars"]}


def test_tensorboard_gets_the_figures_of_steps_and_epochs(request_for, folder):
    from ofqctl.data import DataSpec

    request = request_for(logs=("tensorboard",), val_data=DataSpec(str(folder)))
    rows = train(request).training.epochs
    scalars = scalars_of(request.output / "logs")
    assert {"loss", "train_top1", "lr", "images_per_second", "oscillating", "flips_per_step"} <= scalars.keys()
    assert list(scalars["loss"]) == list(range(1, 19))
    assert scalars["val_top1"] == {row.step: pytest.approx(row.val_top1) for row in rows}
    assert scalars["flips_per_step"][18] == pytest.approx(rows[-1].flips_per_step)
    mean = sum(scalars["loss"][step] for step in range(1, 7)) / 6
    assert mean == pytest.approx(rows[0].loss, rel=1e-6)


def test_steps_that_are_done_again_replace_those_that_were_logged(tmp_path):
    for loss in (1.0, 2.0):
        with open_logs(["tensorboard"], tmp_path, {}, step=6) as opened:
            opened.add(ROW | {"loss": loss})
            opened.add(ROW | {"loss": loss, "step": 8})
    assert scalars_of(tmp_path / "logs")["loss"] == {7: 2.0, 8: 2.0}


def test_weights_and_biases_log_offline_into_the_run(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    check_logs(["wandb"])
    with open_logs(["wandb"], tmp_path, {"seed": 3}, step=0) as opened:
        opened.add(ROW)
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))


def test_a_missing_package_is_told_before_any_work(request_for, monkeypatch):
    monkeypatch.setattr(logs, "find_spec", lambda _name: None)
    request = request_for(logs=("wandb",))
    with pytest.raises(PackageError, match="the package wandb is not installed") as caught:
        train(request)
    assert caught.value.hint == "pip install 'ofqctl[logging]'"
    assert not request.output.exists()


def test_an_unknown_account_is_told_before_any_work(monkeypatch):
    wandb = pytest.importorskip("wandb")

    def refuse():
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", refuse)
    monkeypatch.setattr(wandb.setup().settings, "mode", "online")
    with pytest.raises(PackageError, match="No API key configured") as caught:
        check_logs(["wandb"])
    assert "WANDB_MODE=offline" in caught.value.hint


def test_a_log_that_fails_is_warned_of_once_and_training_goes_on(request_for, monkeypatch):
    def fail(*_):
        raise OSError("no space left")

    opened = logs.Logs({"tensorboard": (fail, lambda: None)})
    monkeypatch.setattr(sys.modules["ofqctl.jobs.train"], "open_logs", lambda *_: opened)
    with pytest.warns(UserWarning, match="--log tensorboard: failed, training continues without it") as caught:
        train(request_for(logs=("tensorboard",)))
    assert len([w for w in caught if "--log" in str(w.message)]) == 1
