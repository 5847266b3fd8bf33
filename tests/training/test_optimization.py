"""What an optimizer decays, what it remembers from phase to phase, its schedule, and statistics that have to stay."""

import math

import pytest
import timm
import torch
from torch import nn

from ofqctl.convert import apply_plan, make_plan
from ofqctl.errors import ArtifactError, RecipeError
from ofqctl.recipe.catalogue import load
from ofqctl.recipe.training import Optimizer, Phase, Training
from ofqctl.training.optimization import (
    frozen_batch_norms,
    make_optimizer,
    make_schedule,
    restore_optimizer,
    select_trainable,
)


def quantized(model, recipe="ofq/vit_w2a2"):
    apply_plan(model, make_plan(model, load(recipe), (3, 32, 32)))
    return model


def decayed(optimizer):
    """Names of the parameters with weight decay."""
    return {name for group in optimizer.param_groups if group["weight_decay"] for name in group["param_names"]}


def rates(training, steps_per_epoch, phase=0):
    """The learning rate of every step of a phase."""
    optimizer = make_optimizer(nn.Linear(2, 2), training)
    schedule = make_schedule(optimizer, training, training.phases[phase], steps_per_epoch)
    found = []
    for step in range(training.phases[phase].epochs * steps_per_epoch):
        schedule.step_update(step)
        found.append(optimizer.param_groups[0]["lr"])
    return found


def test_the_term_of_the_query_bias_is_not_decayed_as_biases_are_not(tiny_vit):
    names = decayed(make_optimizer(quantized(tiny_vit), Training()))
    assert {"blocks.0.attn.products.qk.q", "blocks.0.mlp.fc1.weight", "head.weight"} <= names
    assert "blocks.0.attn.products.key_term" not in names


def test_only_weights_of_layers_are_decayed(tiny_vit):
    names = decayed(make_optimizer(quantized(tiny_vit), Training()))
    assert {name.rpartition(".")[2] for name in names} == {"weight", "q", "k"}
    assert not any("norm" in name for name in names)


def test_a_module_says_which_of_its_parameters_are_not_decayed(tiny_vit):
    class Gate(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.weight = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2, 2))

        def no_weight_decay(self):
            return {"table"}

    tiny_vit.gate = Gate()
    optimizer = make_optimizer(tiny_vit, Training())
    assert {name for name in decayed(optimizer) if name.startswith("gate")} == {"gate.weight"}


def test_what_the_model_itself_lists_is_not_decayed():
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=32, window_size=4, embed_dim=12, depths=[1, 1])
    assert not any("relative_position_bias_table" in name for name in decayed(make_optimizer(model, Training())))


def test_a_pattern_of_a_later_phase_that_matches_nothing_is_told_before_the_first(tiny_vit):
    training = Training(phases=(Phase(), Phase(name="second", trainable=("nothing.*",))))
    with pytest.raises(RecipeError, match="phase 'second': trainable 'nothing"):
        make_optimizer(tiny_vit, training)


def unnamed(model, optimizer):
    """The state of an optimizer as it was before parameters were named in it: two groups, undecayed ones first."""
    values = {
        name: optimizer.state[parameter]
        for group in optimizer.param_groups
        for name, parameter in zip(group["param_names"], group["params"], strict=True)
    }
    shifts_and_steps = (".before", ".after", ".step")
    spared = [
        parameter.dim() < 2 or name in ("pos_embed", "cls_token") or name.endswith(shifts_and_steps)
        for name, parameter in model.named_parameters()
    ]
    names = [name for name, _ in model.named_parameters()]
    names = [[n for n, undecayed in zip(names, spared, strict=True) if undecayed is wanted] for wanted in (True, False)]
    order = [name for group in names for name in group if name in values]
    groups = [[order.index(name) for name in group if name in values] for group in names]
    return {
        "state": {number: values[name] for number, name in enumerate(order)},
        "param_groups": [{"lr": 1.0, "params": numbers} for numbers in groups],
    }


@pytest.mark.parametrize("decay", [0.05, 0.0])
@pytest.mark.parametrize("trainable", [("*",), ("*.step", "head.*", "*.q", "*key_term")])
def test_a_state_from_before_parameters_were_named_goes_to_the_same_parameters(tiny_vit, decay, trainable):
    model, training = quantized(tiny_vit), Training(optimizer=Optimizer(weight_decay=decay))
    select_trainable(model, Phase(trainable=trainable))
    training = training.model_copy(update={"phases": (Phase(trainable=trainable),)})
    optimizer, again = make_optimizer(model, training), make_optimizer(model, training)
    for number, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, number) if parameter.requires_grad else None
    optimizer.step()
    restore_optimizer(again, unnamed(model, optimizer), model)
    assert optimizer.state.keys() == again.state.keys()
    for parameter, state in optimizer.state.items():
        assert all(torch.equal(state[key], again.state[parameter][key]) for key in state)


def test_a_state_without_names_is_not_guessed_for_other_parameters(tiny_vit):
    model, training = quantized(tiny_vit), Training()
    optimizer = make_optimizer(model, training)
    saved = unnamed(model, optimizer)
    select_trainable(model, Phase(trainable=("head.*",)))
    with pytest.raises(ArtifactError, match="others are trained now"):
        restore_optimizer(optimizer, saved, model)


def test_settings_that_changed_meanwhile_are_those_asked_for_now(tiny_vit):
    before, now = (make_optimizer(tiny_vit, Training(optimizer=Optimizer(weight_decay=d))) for d in (0.05, 0.2))
    restore_optimizer(now, before.state_dict(), tiny_vit)
    assert [group["weight_decay"] for group in now.param_groups] == [0.0, 0.2]


def test_counts_of_steps_that_an_optimizer_keeps_for_a_group_go_on(tiny_vit):
    before, now = (make_optimizer(tiny_vit, Training(optimizer=Optimizer(name="lamb"))) for _ in range(2))
    for parameter in tiny_vit.parameters():
        parameter.grad = torch.ones_like(parameter)
    before.step()
    before.step()
    restore_optimizer(now, before.state_dict(), tiny_vit)
    assert [float(group["step"]) for group in now.param_groups] == [2.0, 2.0]


@pytest.mark.parametrize("damage", ["\u00b2", True, None])
def test_what_a_saved_group_says_besides_counts_is_left_to_the_recipe(tiny_vit, damage):
    before, now = (make_optimizer(tiny_vit, Training()) for _ in range(2))
    saved, fresh = before.state_dict(), now.state_dict()
    saved["param_groups"][0] |= {"capturable": damage, "betas": damage, "eps": damage}
    restore_optimizer(now, saved, tiny_vit)
    assert now.state_dict() == fresh


def cosine(step, steps, peak, end):
    return end + (peak - end) * (1 + math.cos(math.pi * step / steps)) / 2


def test_a_cosine_behind_the_warm_up_starts_at_the_peak_and_ends_with_the_phase():
    phase = Phase(epochs=2, min_lr=0.1, warmup_steps=4, warmup_lr=0.2, warmup_prefix=True)
    expected = [0.2, 0.4, 0.6, 0.8, *(cosine(step, 6, 1.0, 0.1) for step in range(6))]
    training = Training(optimizer=Optimizer(lr=1.0), phases=(phase,))
    assert rates(training, 5) == pytest.approx(expected)
    assert cosine(6, 6, 1.0, 0.1) == pytest.approx(0.1)


def test_a_cosine_from_the_first_step_on_has_come_down_when_the_warm_up_ends():
    phase = Phase(epochs=2, min_lr=0.1, warmup_steps=4, warmup_lr=0.2)
    expected = [0.2, 0.4, 0.6, 0.8, *(cosine(step, 10, 1.0, 0.1) for step in range(4, 10))]
    assert rates(Training(optimizer=Optimizer(lr=1.0), phases=(phase,)), 5) == pytest.approx(expected)


def test_a_warm_up_may_take_the_whole_phase():
    phase = Phase(warmup_epochs=1, warmup_lr=0.2, warmup_prefix=True)
    assert rates(Training(optimizer=Optimizer(lr=1.0), phases=(phase,)), 4) == pytest.approx([0.2, 0.4, 0.6, 0.8])


def test_each_phase_has_its_own_peak_rate():
    phases = (Phase(schedule="constant"), Phase(lr=0.25, schedule="constant"))
    training = Training(optimizer=Optimizer(lr=1.0), phases=phases)
    optimizer, seen = make_optimizer(nn.Linear(2, 2), training), []
    for phase in (*phases, phases[0]):
        make_schedule(optimizer, training, phase, 3).step_update(1)
        seen.append(optimizer.param_groups[0]["lr"])
    assert seen == [1.0, 0.25, 1.0]


@pytest.mark.parametrize(
    ("trainable", "still"),
    [("*", ""), ("0.*", "123"), ("1.weight", "23"), ("2.bias", "13"), ("*.weight", "3")],
)
def test_statistics_stay_where_nothing_of_their_norm_is_trained(trainable, still):
    norms = nn.BatchNorm1d(3), nn.BatchNorm2d(3), nn.BatchNorm2d(3, affine=False)
    model = nn.Sequential(nn.Linear(3, 3), *norms)
    frozen = frozen_batch_norms(model, Phase(trainable=(trainable,)))
    assert "".join(name for name, module in model.named_modules() if module in frozen) == still


@pytest.mark.parametrize("damage", ["x", torch.zeros(3, 7)])
def test_moments_that_fit_no_parameter_are_refused(tiny_vit, damage):
    before, now = (make_optimizer(tiny_vit, Training()) for _ in range(2))
    for parameter in tiny_vit.parameters():
        parameter.grad = torch.ones_like(parameter)
    before.step()
    saved = before.state_dict()
    saved["state"][0]["exp_avg_sq"] = damage
    with pytest.raises(ArtifactError, match=r"exp_avg_sq of .* does not fit it"):
        restore_optimizer(now, saved, tiny_vit)
