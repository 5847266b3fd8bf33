"""The optimizer, its schedule in a phase, and the parameters that a phase trains."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from itertools import chain
from typing import Any

from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer

from ofqctl.convert import operands, weight_site
from ofqctl.errors import ArtifactError, RecipeError
from ofqctl.quantizers import Quantizer
from ofqctl.recipe import Plan
from ofqctl.recipe.training import Phase, Training

_OF_THE_PHASE = {"weight_decay", "lr", "initial_lr"}  # numbers of a group that are not restored
_MOMENTS = {"exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer"}
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def select_trainable(model: nn.Module, *phases: Phase) -> None:
    """Make only those parameters trainable that match a pattern of one of ``phases``.

    Raises:
        RecipeError: A pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for phase in phases:
        for pattern in phase.trainable:
            if not any(fnmatchcase(name, pattern) for name in names):
                raise RecipeError(
                    f"training phase '{phase.name}': trainable '{pattern}' matches no parameter",
                    hint=f"parameters are named like '{names[0]}'",
                )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(_trains(phase, name) for phase in phases))


def switched_off(model: nn.Module, plan: Plan, phase: Phase) -> list[Quantizer]:
    """The quantizers that are switched off in a phase; their parameters are not trained in it."""
    off: list[Quantizer] = []
    for module in map(model.get_submodule, plan.modules):
        site = weight_site(module)
        if phase.quantized in ("activations", "none") and site is not None and site.weight_quantizer is not None:
            off.append(site.weight_quantizer)
        if phase.quantized in ("weights", "none"):
            off += operands(module).values()
    for quantizer in off:
        quantizer.requires_grad_(False)
    return off


def frozen_batch_norms(model: nn.Module, phase: Phase) -> list[nn.Module]:
    """The BatchNorm modules without trainable parameters in a phase, whose running statistics must not change."""
    found: list[nn.Module] = []
    for name, module in model.named_modules():
        if isinstance(module, _BATCH_NORMS):
            own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
            if not any(_trains(phase, f"{name}.{tensor}") for tensor, _ in own):
                found.append(module)
    return found


def make_optimizer(model: nn.Module, training: Training) -> Optimizer:
    """Create timm's optimizer for all parameters that any phase trains; a phase gives no gradient to the others.

    Biases, vectors, and parameters that a module lists in its ``no_weight_decay()`` get no weight decay. The
    optimizer's state contains the parameters' names.
    """
    from timm.optim import (  # type: ignore[attr-defined]  # loads torch's compiler, which evaluation does without
        create_optimizer_v2,
        param_groups_weight_decay,
    )

    settings = training.optimizer
    select_trainable(model, *training.phases)
    groups = param_groups_weight_decay(model, settings.weight_decay, no_weight_decay_list=set(_undecayed(model)))
    optimizer: Optimizer = create_optimizer_v2(
        groups, opt=settings.name, lr=settings.lr, weight_decay=settings.weight_decay
    )
    names = {parameter: name for name, parameter in model.named_parameters()}
    for group in optimizer.param_groups:
        group["param_names"] = [names[parameter] for parameter in group["params"]]
    return optimizer


def restore_optimizer(optimizer: Optimizer, saved: dict[str, Any], model: nn.Module) -> None:
    """Restore a saved state for each parameter; parameters that are not in it start without state.

    Args:
        optimizer: Result of :func:`make_optimizer`.
        saved: Its state dict, or one of an earlier version without names, for the parameters that ``model`` trains.
        model: The model, with the trainable parameters of the current phase selected.

    Raises:
        ArtifactError: The state has no names, and another number of parameters than are trained; or a value of it is
            none that an optimizer has.
    """
    if any("param_names" not in group for group in saved["param_groups"]):
        saved = _with_names(saved, model)
    known = {name: (number, group) for group in saved["param_groups"] for name, number in _numbered(group)}
    state: dict[int, Any] = {}
    groups = []
    for group in optimizer.state_dict()["param_groups"]:
        found = {number: known[name] for name, number in _numbered(group) if name in known}
        state |= {number: saved["state"][old] for number, (old, _) in found.items() if old in saved["state"]}
        theirs: dict[str, Any] = next((theirs for _, theirs in found.values()), {})
        groups.append(group | {key: value for key, value in theirs.items() if _counted(key, value, group)})
    optimizer.load_state_dict({"state": state, "param_groups": groups})
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            _check_moments(optimizer.state.get(parameter, {}), name, parameter)


def _counted(key: str, value: Any, group: dict[str, Any]) -> bool:
    """Whether a value of a saved group is what some optimizers count there, such as steps; all else is the recipe's."""
    both = (value, group.get(key, value))
    numbers = all(isinstance(each, int | float | Tensor) and not isinstance(each, bool) for each in both)
    return numbers and key not in _OF_THE_PHASE


def _check_moments(state: dict[str, Any], name: str, parameter: Tensor) -> None:
    """Check that moments can be broadcast to their parameter, as they can in all optimizers."""
    for key in state.keys() & _MOMENTS:
        shape = state[key].shape if isinstance(state[key], Tensor) else None
        pairs = zip(reversed(shape or ()), reversed(parameter.shape), strict=False)
        if shape is None or len(shape) > parameter.dim() or any(own not in (1, whole) for own, whole in pairs):
            raise ArtifactError(f"last.pt: the {key} of {name} in the optimizer's state does not fit it")


def warmup_steps(phase: Phase, steps_per_epoch: int) -> int:
    """Optimizer steps of the warm-up of a phase."""
    return phase.warmup_steps + phase.warmup_epochs * steps_per_epoch


def make_schedule(optimizer: Optimizer, training: Training, phase: Phase, steps_per_epoch: int) -> CosineLRScheduler:
    """Create the schedule of a phase: warm-up and cosine over optimizer steps; a constant rate is a flat cosine.

    With ``warmup_prefix`` the cosine covers the optimizer steps after the warm-up, so that it also ends with the phase.
    """
    steps = phase.epochs * steps_per_epoch
    warmup = warmup_steps(phase, steps_per_epoch)
    peak = phase.lr or training.optimizer.lr
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] = peak
    return CosineLRScheduler(
        optimizer,
        t_initial=max(1, steps - warmup) if phase.warmup_prefix else steps,
        lr_min=peak if phase.schedule == "constant" else min(phase.min_lr, peak),  # scaled rates
        warmup_t=warmup,
        warmup_lr_init=phase.warmup_lr if warmup else 0.0,
        warmup_prefix=phase.warmup_prefix,
        t_in_epochs=False,
    )


def _trains(phase: Phase, name: str) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in phase.trainable)


def _numbered(group: dict[str, Any]) -> Iterator[tuple[str, int]]:
    """Names and numbers of the parameters of a group in a state dict."""
    return zip(group["param_names"], group["params"], strict=True)


def _undecayed(model: nn.Module) -> Iterator[str]:
    """Names, or patterns of names, of parameters that modules exclude from weight decay, as in timm's models."""
    for name, module in model.named_modules():
        yield from (f"{name}.{own}" if name else own for own in getattr(module, "no_weight_decay", set)())


def _with_names(saved: dict[str, Any], model: nn.Module) -> dict[str, Any]:
    """Add names to a state of an earlier version: two groups in the order of the model, undecayed parameters first."""
    quantizers = {parameter for m in model.modules() if isinstance(m, Quantizer) for parameter in m.parameters()}
    listed = set(getattr(model, "no_weight_decay", set)())
    groups: list[list[str]] = [[], []]
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            spared = parameter in quantizers or name in listed or parameter.dim() < 2
            groups[0 if spared else 1].append(name)
    if [len(group["params"]) for group in saved["param_groups"]] != [len(names) for names in groups]:
        raise ArtifactError(
            "the training state is of an optimizer whose parameters were not named, and others are trained now",
            hint="continue it with the `trainable` of its recipe",
        )
    named = [group | {"param_names": names} for group, names in zip(saved["param_groups"], groups, strict=True)]
    return saved | {"param_groups": named}
