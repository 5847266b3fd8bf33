"""The losses of reconstruction, each against its formula computed plainly, with its gradient."""

import copy

import pytest
import torch
from torch.nn import functional as F

from ofqctl.convert import convert
from ofqctl.errors import RecipeError
from ofqctl.progress import silent
from ofqctl.ptq import Task, calibrate, on_disk, walk
from ofqctl.ptq.behind import Behind
from ofqctl.ptq.importances import perturbation_hessian
from ofqctl.ptq.reconstruction_loss import Losses
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.reading import build

SIZE = (3, 32, 32)
RECONSTRUCT = {"stage": "reconstruct", "iterations": 25, "batch_size": 8, "views": 24}
BATCHES = 3


@pytest.fixture
def opened(lively_vit, calibration_images):
    """A task on a quantized model, the float one beside it; calls what is given with the task and its batches."""

    def run(use):
        original = copy.deepcopy(lively_vit)
        plan = convert(lively_vit, load("ptq/mse", ["weights.bits=3", "activations.bits=3"]), SIZE)
        calibrate(lively_vit, plan, [calibration_images])
        with on_disk(calibration_images.split(8), torch.device("cpu")) as images:
            return use(Task(lively_vit, original, plan, images, silent), images)

    return run


def stages_of(original, images):
    """Outputs of both blocks, what the head reads, and logits of the float model from any output of the first."""

    def behind_first(y):
        second = original.blocks[1](y)
        features = original.norm(second)[:, 0]
        return second, features, original.head(features)

    with torch.no_grad():
        first = original.blocks[0](original._pos_embed(original.patch_embed(images)))
        return first, behind_first


def fisher_of(original, images, generator):
    """Mean squared gradient of the loss on a class drawn from the model's own predictions, at the first block."""
    total = 0.0
    for batch in images:
        y, behind = stages_of(original, batch)
        y.requires_grad_()
        logits = behind(y)[2]
        drawn = torch.multinomial(logits.detach().softmax(1), 1, generator=generator)[:, 0]
        (gradient,) = torch.autograd.grad(F.cross_entropy(logits, drawn, reduction="sum"), y)
        total = total + gradient.square().sum(0)
    return total / total.mean()


def spread(targets, weights=1.0):
    return (torch.cat(targets).var(0, unbiased=False) * weights).mean()


def plainly(kind, ahead, original, images, output, index, weights):
    """The loss of the first block's ``output`` on batch ``index``, from the formulas."""
    pairs = [stages_of(original, batch) for batch in images]
    y, behind = pairs[index]
    if kind == "glfq":
        features = behind(y)[1].detach()
        return ((behind(output)[1] - features).square().mean(), 2 * (output - y).square().mean())
    if ahead:
        later = [(behind(output)[0], [b(first)[0].detach() for first, b in pairs])]
        later += [(behind(output)[2], [b(first)[2].detach() for first, b in pairs])] if ahead > 1 else []
    else:
        later = [(output, [first for first, _ in pairs])]
    if kind == "mae":
        terms = [
            (mine - wanted[index]).abs().mean() / torch.cat(wanted).var(0, unbiased=False).sqrt().mean()
            for mine, wanted in later
        ]
    else:
        terms = [((mine - t[index]).square() * weights).mean() / spread(t, weights) for mine, t in later]
    return sum(terms) / len(terms)


@pytest.mark.parametrize(
    ("kind", "ahead"), [("mse", 0), ("mae", 0), ("fisher", 0), ("mse", 1), ("mae", 2), ("glfq", 0)]
)
def test_loss_and_gradient_are_those_of_the_formula(opened, kind, ahead):
    def use(task, images):
        losses = Losses(task, kind, ahead, images, torch.Generator().manual_seed(0))
        weights = fisher_of(task.original, images, torch.Generator().manual_seed(0)) if kind == "fisher" else 1.0
        for piece in walk(task.model, task.original, task.plan, images):
            if piece.name != "blocks.0":
                continue
            loss_of, first = losses.of(piece), None
            for index in range(BATCHES):
                output = piece.run(piece.inputs[index]).detach().requires_grad_()
                loss = loss_of(output, index)
                wanted = plainly(kind, ahead, task.original, list(images), output, index, weights)
                if kind == "glfq":
                    first = first or [
                        float(term.detach()) / factor for term, factor in zip(wanted, (1, 2), strict=True)
                    ]
                    wanted = sum(term / value for term, value in zip(wanted, first, strict=True))
                assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
                found, expected = (torch.autograd.grad(value, output)[0] for value in (loss, wanted))
                assert (found - expected).norm() <= 1e-5 * expected.norm()
            loss_of.delete()

    opened(use)


def test_the_perturbation_hessian_is_what_its_difference_quotient_tends_to(opened):
    """Against the difference of gradients of the divergence at a temperature of 20, in float64."""

    def use(task, images):
        units = ["blocks.0", "head"]
        behind = Behind(task.original, units, images[0][:2])
        found = perturbation_hessian(task, units, images, behind, torch.Generator().manual_seed(0))
        generator = torch.Generator().manual_seed(0)
        exact, d, total, ends = copy.deepcopy(task.original).double(), 1e-6, 0.0, 0.0
        for batch in images:
            y, behind = stages_of(exact, batch.double())
            p = (behind(y)[2].detach() / 20).softmax(1)
            gradients, signs = [], torch.randint(2, y.shape, generator=generator) * 2 - 1
            for sign in (1, -1):
                moved = (y + sign * d * signs).requires_grad_()
                divergence = F.kl_div((behind(moved)[2] / 20).log_softmax(1), p, reduction="sum")
                gradients.append(torch.autograd.grad(divergence, moved)[0])
            total = total + ((gradients[0] - gradients[1]) / (2 * d)).abs().sum(0)
            ends = ends + (p * (1 - p)).sum(0)
        assert torch.allclose(found["blocks.0"].double(), total / total.mean(), rtol=1e-3, atol=1e-4)
        assert torch.allclose(found["head"].double(), ends / ends.mean(), rtol=1e-4)

    opened(use)


@pytest.mark.parametrize("loss", ["mse", "mae", "aphq", "glfq"])
def test_a_model_comes_nearer_by_every_loss_and_only_the_images_are_left_on_disk(quantized, loss):
    result = quantized({**RECONSTRUCT, "loss": loss})
    assert result.error < 0.9 * quantized().error
    assert result.task.notes == []


def test_a_model_comes_nearer_by_the_outputs_of_units_behind(quantized):
    result = quantized({**RECONSTRUCT, "loss": "mae", "ahead": 5})
    assert result.error < 0.9 * quantized().error
    assert result.task.notes == []


def test_nothing_but_the_targets_of_a_unit_is_left_on_disk(opened):
    def use(task, images):
        losses, counts = Losses(task, "glfq", 0, images, torch.Generator()), []
        for piece in walk(task.model, task.original, task.plan, images):
            before = len(list(images._folder.iterdir()))
            loss_of = losses.of(piece)
            counts.append(len(list(images._folder.iterdir())) - before)
            loss_of.delete()
            assert len(list(images._folder.iterdir())) == before
        assert counts == [BATCHES, BATCHES, BATCHES, 0]  # features of each batch, but of the head

    opened(use)


def test_parameters_of_the_float_model_can_be_trained_afterwards(quantized):
    task = quantized({**RECONSTRUCT, "iterations": 1}).task
    assert all(parameter.requires_grad for parameter in task.original.parameters())


def test_units_behind_and_features_at_once_are_refused():
    with pytest.raises(RecipeError, match=r"ptq\.0.*ahead: 2 units behind; glfq compares the features"):
        build({"ptq": [{"stage": "reconstruct", "loss": "glfq", "ahead": 2}]}, where="x")
