"""Training as a whole: what it writes, that it learns, and that it goes on exactly where it stopped."""

import csv
import json
import os
import signal
import subprocess
import time
from dataclasses import replace
from multiprocessing import active_children, current_process
from pathlib import Path

import numpy as np
import pytest
import torch

from ofqctl.artifact import load_run
from ofqctl.data import DataSpec
from ofqctl.errors import ArtifactError, DataError, ModelError, RecipeError
from ofqctl.jobs.train import recorded_request, train
from ofqctl.models import ModelRequest
from ofqctl.training import FILE, Interrupted, read_checkpoint_state
from tests.interrupting import StopAfter

WEIGHTS_IN_FLOAT = [f"{part}weights.bits=32" for part in ("", "first.", "last.")]


OTHER_STEPS = [[1], [3], [6], [13], [18], [2, 5, 4, 3]]


def weights_of(directory):
    return (directory / "model.safetensors").read_bytes()


def same_state(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_state, one, other))
    return one == other


def exact(checkpoint):
    """What must be bit-identical: everything but the clock and how often to save."""
    values = vars(checkpoint) | {"meter": None, "request": None}
    clock = ("seconds", "images_per_second")
    values["history"] = [{k: v for k, v in row.items() if k not in clock} for row in values["history"]]
    return values


def test_a_float_model_learns_and_its_run_is_a_teacher(request_for, folder):
    request = request_for("float", "demo/digits_float", ["training.phases.0.epochs=6"], val_data=DataSpec(str(folder)))
    result = train(request)
    assert result.training.epochs[-1].val_top1 > 60
    student = replace(request_for("student"), model=ModelRequest(str(request.output)))
    assert train(student).training.epochs[-1].loss < 5


def test_a_run_holds_everything_and_evaluates_without_flags(request_for, folder):
    request = request_for(val_data=DataSpec(str(folder)))
    result = train(request)
    names = {path.name for path in request.output.iterdir()}
    assert names == {
        "config.json",
        "model.safetensors",
        "recipe.yaml",
        "results.json",
        "summary.csv",
        "last.pt",
        "oscillation.safetensors",
    }
    rows = list(csv.DictReader((request.output / "summary.csv").open()))
    assert [row["phase"] for row in rows] == ["train", "train", "cga"]
    assert json.loads((request.output / "results.json").read_text())["recipe"] == "demo/digits_ofq_w2a2"
    run = load_run(request.output)
    assert run.config.label_names == ["class0", "class1", "class2"]
    assert {"oscillating", "flips_per_step"} <= result.training.epochs[0].model_dump().keys()


def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(request_for):
    outputs = [request_for("a"), request_for("b"), request_for("c", seed=1)]
    for request in outputs:
        train(request)
    a, b, c = (weights_of(request.output) for request in outputs)
    assert a == b
    assert a != c


@pytest.mark.parametrize("steps", [[7], *(pytest.param(s, marks=pytest.mark.slow) for s in OTHER_STEPS)])
def test_a_killed_run_goes_on_to_the_same_bits(request_for, steps):
    whole = request_for("whole")
    train(whole)
    request = request_for("killed", checkpoint_every=2, resume="auto")
    for count in steps:
        with pytest.raises(MemoryError):
            train(request, on_step=StopAfter(count))
    train(request)
    assert weights_of(request.output) == weights_of(whole.output)
    one, other = read_checkpoint_state(whole.output), read_checkpoint_state(request.output)
    for key, value in exact(one).items():
        assert same_state(value, exact(other)[key]), key


def test_a_finished_run_resumes_to_itself(request_for):
    request = request_for()
    train(request)
    before, names = weights_of(request.output), set(request.output.iterdir())
    (request.output / ".ofqctl-run").mkdir()  # as a process leaves it that is killed at the very end
    train(replace(request, resume="auto"))
    assert weights_of(request.output) == before
    assert set(request.output.iterdir()) == names


@pytest.mark.parametrize("signum", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_a_signal_saves_the_state_and_leaves(request_for, signum):
    whole = request_for("whole")
    train(whole)
    request = request_for("stopped")

    def stop(row, _total):
        if row["step"] == 4:
            os.kill(os.getpid(), signum)

    with pytest.raises(Interrupted):
        train(request, on_step=stop)
    assert read_checkpoint_state(request.output).position["total_steps"] in (4, 5)
    train(replace(request, resume="auto"))
    assert weights_of(request.output) == weights_of(whole.output)


def test_a_signal_to_loader_processes_too_saves_the_state_and_leaves(request_for):
    request = request_for("stopped", workers=2)
    signalled = []

    def stop(row, _total):
        if row["step"] == 2:
            signalled.extend(active_children())
            subprocess.run(
                ["kill", "-TERM", *(str(process.pid) for process in (*signalled, current_process()))], check=True
            )
            time.sleep(1)  # a loader process that ends is noticed

    with pytest.raises(Interrupted):
        train(request, on_step=stop)
    assert len(signalled) >= 2
    assert read_checkpoint_state(request.output).position["total_steps"] in (2, 3)


def test_gradient_accumulation_takes_the_same_steps(request_for):
    plain = train(request_for("plain"))
    accumulated = train(request_for("accumulated", grad_accum=2))
    for one, other in zip(plain.training.epochs, accumulated.training.epochs, strict=True):
        assert one.loss == pytest.approx(other.loss, rel=0.05)
    assert one.step == other.step


def test_a_loss_that_is_not_finite_names_the_layer_and_keeps_the_checkpoint(request_for):
    request = request_for(sets=["training.optimizer.lr=1e30", "training.phases.0.lr=1e30"])
    with pytest.raises(ModelError, match="the first output that is not finite is that of"):
        train(request)


def test_a_full_disk_leaves_the_previous_checkpoint(request_for, monkeypatch):
    request = request_for(checkpoint_every=1)
    save, calls = torch.save, []

    def full(*args, **kwargs):
        calls.extend(arg for arg in args if "last.pt" in str(arg))
        if len(calls) > 3:
            raise OSError(28, "No space left on device")
        return save(*args, **kwargs)

    monkeypatch.setattr("torch.save", full)
    with pytest.raises(ArtifactError, match="No space left on device"):
        train(request)
    assert read_checkpoint_state(request.output).position["total_steps"] == 2


def test_resuming_with_another_recipe_lists_what_differs(request_for):
    request = request_for()
    train(request)
    other = request_for(sets=["training.optimizer.weight_decay=0.1"], resume="auto")
    with pytest.raises(RecipeError, match=r"training\.optimizer\.weight_decay: 0\.05 in the run, 0\.1 now"):
        train(other)
    train(replace(other, force_recipe=True))


@pytest.mark.parametrize(
    ("sets", "options", "error", "told"),
    [
        (["training.batch_size=64"], {}, DataError, "fewer than the batch"),
        ([], {"grad_accum": 3}, DataError, "cannot be divided"),
        (
            ["training.augmentation.mixup=0.8"],
            {"grad_accum": 8},
            DataError,
            "1 images in a forward pass cannot be mixed",
        ),
        (["training.steps_per_epoch=7"], {}, DataError, "7 steps of 8 images are more than its 48"),
        (["training.phases.0.trainable=[nothing.*]"], {}, RecipeError, "matches no parameter"),
        (["training.phases.1.cga.target=[nothing.*]"], {}, RecipeError, r"cga\.target: 'nothing\.\*' matches no"),
        (
            [*WEIGHTS_IN_FLOAT, "training.phases.1.cga=null", "training.phases.1.freezing={}"],
            {},
            RecipeError,
            "IterativeFreezing acts on quantized weights",
        ),
        ([*WEIGHTS_IN_FLOAT, "training.phases.1.cga=null"], {}, RecipeError, r"training\.tracking: follows the codes"),
        ([], {"resume": "must"}, ArtifactError, "nothing to resume"),
        (["training=null"], {}, RecipeError, "no training part"),
    ],
)
def test_what_cannot_be_done_is_said(request_for, sets, options, error, told):
    with pytest.raises(error, match=told):
        train(request_for(sets=sets, **options))


def test_zero_epochs_are_refused():
    from ofqctl.recipe.catalogue import load

    with pytest.raises(RecipeError, match=r"training\.phases\.0\.epochs"):
        load("demo/digits_float", ["training.phases.0.epochs=0"])


def test_an_existing_run_is_not_overwritten_unasked(request_for):
    request = request_for()
    train(request)
    with pytest.raises(ArtifactError, match="already exists"):
        train(request)
    train(replace(request, overwrite=True))


def test_a_truncated_checkpoint_is_refused(request_for):
    request = request_for()
    train(request)
    path = request.output / FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises((ArtifactError, ModelError)):
        train(replace(request, resume="auto"))


def test_only_the_trainable_parameters_move(request_for):
    request = request_for(sets=[f"training.phases.{i}.trainable=[head.*]" for i in (0, 1)], checkpoint_every=1)
    with pytest.raises(MemoryError):
        train(request, on_step=StopAfter(4))
    before = read_checkpoint_state(request.output).model
    train(replace(request, resume="auto"))
    after = read_checkpoint_state(request.output).model
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all(name.startswith("head.") for name in moved)


def test_a_recipe_for_another_model_is_refused(request_for):
    with pytest.raises(RecipeError, match="is for swin_tiny_patch4_window7_224, not for vit_tiny_patch16_224"):
        train(request_for(sets=["model=swin_tiny_patch4_window7_224"]))


def test_stages_of_post_training_quantization_come_before_training_and_never_again(request_for):
    sets = ["ptq=[{stage: layer_norm}, {stage: erq}]", "training.distillation=null"]
    first = train(request_for(sets=sets))
    assert not any("training starts without" in note for note in first.notes)
    again = train(
        replace(request_for(sets=sets), model=ModelRequest(first.output), output=Path(first.output + "-again"))
    )
    assert any("training starts without layer_norm, erq" in note for note in again.notes)


def test_a_phase_that_ends_within_its_warm_up_is_told(request_for):
    result = train(request_for(sets=["training.phases.0.warmup_steps=13"]))
    assert "phase 'train' ends within its warm-up: it has 12 of 13 steps" in result.notes


def test_mixing_needs_soft_labels_and_gets_them(request_for):
    result = train(request_for(sets=["training.augmentation.mixup=0.8", "training.distillation=null"]))
    assert result.training.epochs[-1].loss < 5


def test_mixing_is_decided_by_the_seed(request_for):
    sets = ["training.augmentation.mixup=0.8", "training.distillation=null"]
    outputs = []
    for name in "ab":
        np.random.rand()  # whatever else has drawn numbers before
        outputs.append(weights_of(Path(train(request_for(name, sets=sets)).output)))
    assert outputs[0] == outputs[1]


def test_a_teacher_of_other_classes_is_refused(request_for, tmp_path):
    teacher = request_for("teacher", "demo/digits_float")
    train(replace(teacher, model=replace(teacher.model, num_classes=10), data=DataSpec("digits")))
    with pytest.raises(ModelError, match="has 10 classes, the student 3"):
        train(request_for(sets=[f"training.distillation.teacher={teacher.output}"]))


def test_policies_that_posterize_to_nothing_run_with_every_pillow():
    from PIL import Image
    from timm.data.auto_augment import AugmentOp

    image = Image.new("RGB", (8, 8), (200, 100, 50))
    black = AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=10)(image)
    assert black.getextrema() == ((0, 0), (0, 0), (0, 0))
    assert AugmentOp("PosterizeIncreasing", prob=1.0, magnitude=5)(image).getextrema()[0] == (192, 192)


def test_data_that_cannot_be_read_leaves_the_old_run(request_for, tmp_path):
    request = request_for()
    train(request)
    before = weights_of(request.output)
    with pytest.raises(DataError):
        train(replace(request, overwrite=True, data=DataSpec(str(tmp_path / "nowhere"))))
    assert weights_of(request.output) == before


@pytest.mark.parametrize("quantized", ["all", "weights", "activations", "none"])
def test_a_phase_computes_with_what_it_says_quantized_and_is_evaluated_whole(quantized, request_for, monkeypatch):
    from ofqctl.jobs import train as job

    used = set()

    class Watched(job.Engine):
        def _gradients(self, *args):
            before = {name: p.detach().clone() for name, p in self.model.named_parameters()}
            seen = super()._gradients(*args)
            for name, module in self.model.named_modules():
                for own, parameter in module.named_parameters(recurse=False):
                    if own == "step" and parameter.grad is not None and f"{name}.{own}" in before:
                        used.add("weights" if name.endswith("weight_quantizer") else "activations")
            return seen

    monkeypatch.setattr(job, "Engine", Watched)
    sets = [f"training.phases.{n}.quantized={quantized}" for n in (0, 1)]
    result = job.train(
        request_for(recipe="demo/digits_ofq_w2a2", sets=[*sets, "weights.method=lsq", "training.phases.1.cga=null"])
    )
    assert used == {"all": {"weights", "activations"}, "none": set()}.get(quantized, {quantized})
    assert result.quantized_modules > 0


def test_a_target_that_a_late_phase_cannot_find_leaves_the_old_run(request_for):
    request = request_for()
    train(request)
    before = weights_of(request.output)
    with pytest.raises(RecipeError, match="matches no module"):
        train(replace(request_for(sets=["training.phases.1.cga.target=[blocks]"]), overwrite=True))
    assert weights_of(request.output) == before


def test_a_run_that_stopped_while_annealing_goes_on_under_a_recipe_without_the_target(request_for):
    """As runs were written before there was one."""
    request = request_for(checkpoint_every=1)
    whole = request_for("whole")
    train(whole)

    def stop(row, _total):
        if row["step"] == 15:  # in the phase with CGA
            raise MemoryError

    with pytest.raises(MemoryError):
        train(request, on_step=stop)
    state = read_checkpoint_state(request.output)
    del state.recipe["training"]["phases"][1]["cga"]["target"]
    state.save(request.output)
    train(recorded_request(request.output))
    assert weights_of(request.output) == weights_of(whole.output)
    state.save(request.output)
    train(replace(request, resume="auto"))
    assert weights_of(request.output) == weights_of(whole.output)


def test_an_earlier_run_stays_until_an_epoch_of_the_new_one_is_done(request_for):
    old = request_for()
    train(old)
    (old.output / "thesis.txt").write_text("mine")
    before, seen = weights_of(old.output), []
    request = replace(old, seed=1, overwrite=True, checkpoint_every=2)
    train(request, on_step=lambda row, _total: seen.append((row["epoch"], weights_of(old.output) == before)))
    assert all(kept == (epoch == 1) for epoch, kept in seen)
    whole = request_for("whole", seed=1)
    train(whole)
    assert weights_of(request.output) == weights_of(whole.output)
    assert {path.name for path in request.output.iterdir()} - {path.name for path in whole.output.iterdir()} == {
        "thesis.txt"
    }


def test_a_training_killed_before_it_replaced_the_run_goes_on_to_the_same_bits(request_for):
    old = request_for()
    train(old)
    before = weights_of(old.output)
    request = replace(old, seed=1, overwrite=True, checkpoint_every=2)
    with pytest.raises(MemoryError):
        train(request, on_step=StopAfter(4))
    assert weights_of(old.output) == before
    assert read_checkpoint_state(old.output).request["seed"] == 0
    with pytest.raises(MemoryError):
        train(recorded_request(old.output), on_step=StopAfter(1))  # of the new training, and killed again
    train(replace(request, resume="auto", overwrite=False))
    whole = request_for("whole", seed=1)
    train(whole)
    assert weights_of(request.output) == weights_of(whole.output)
    assert read_checkpoint_state(old.output).request["seed"] == 1


def test_a_float_model_is_not_emptied_by_the_training_that_starts_from_it(request_for, tmp_path, tiny_vit):
    model = tmp_path / "m"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architecture": "vit_tiny_patch16_224", "num_classes": 10}))
    (model / "model.safetensors").write_bytes(b"weights")
    request = request_for("m", overwrite=True)
    with pytest.raises(ArtifactError, match="not a run directory"):
        train(request)
    assert weights_of(model) == b"weights"


def test_a_teacher_is_not_replaced_by_its_student(request_for):
    teacher = request_for("teacher", "demo/digits_float")
    train(teacher)
    sets = [f"training.distillation.teacher={teacher.output}"]
    with pytest.raises(ArtifactError, match="starts from this run"):
        train(request_for("teacher", sets=sets, overwrite=True))


@pytest.mark.parametrize("resume", [None, "auto"])
def test_a_second_training_of_a_run_is_refused(request_for, resume):
    request = request_for(checkpoint_every=2)
    refused = []

    def second(_row, _total):
        if not refused:
            child = os.fork()
            if child == 0:
                try:
                    train(replace(request, resume=resume, overwrite=resume is None))
                except ArtifactError as error:
                    os._exit("another process is writing it" in str(error))
                finally:
                    os._exit(2)
            refused.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

    train(request, on_step=second)
    assert refused == [1]


def test_all_files_of_a_training_get_the_umask_of_the_user(request_for):
    before = os.umask(0o027)
    try:
        request = request_for()
        train(request)
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in request.output.iterdir()} == {0o640}
