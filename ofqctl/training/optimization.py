"""timm's optimizer and schedule for a phase."""

from fnmatch import fnmatchcase
from typing import Any, cast

from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from torch import nn
from torch.optim import Optimizer

from ofqctl.errors import RecipeError
from ofqctl.quantizers import Quantizer
from ofqctl.recipe.training import Optimizer as OptimizerSettings
from ofqctl.recipe.training import Phase


def select_trainable(model: nn.Module, phase: Phase) -> None:
    """Let exactly the parameters that match the phase's patterns learn.

    Raises:
        RecipeError: A pattern matches nothing.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in phase.trainable:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise RecipeError(
                f"training phase '{phase.name}': trainable '{pattern}' matches no parameter",
                hint=f"parameters are named like '{names[0]}'",
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatchcase(name, pattern) for pattern in phase.trainable))


def make_optimizer(model: nn.Module, settings: OptimizerSettings, phase: Phase) -> Optimizer:
    """The optimizer from timm; biases, norms, steps and learned shifts get no weight decay."""
    quantizers = {
        f"{name}.{own}"
        for name, module in model.named_modules()
        if isinstance(module, Quantizer)
        for own, _ in module.named_parameters(recurse=False)
    }
    listed = set(cast("Any", model).no_weight_decay()) if hasattr(model, "no_weight_decay") else set()
    lr = phase.lr or settings.lr
    learning = {name: p for name, p in model.named_parameters() if p.requires_grad}
    spared = {name for name, p in learning.items() if name in quantizers | listed or p.dim() < 2}
    undecayed = [p for name, p in learning.items() if name in spared]
    decayed = [p for name, p in learning.items() if name not in spared]
    groups = [{"params": undecayed, "weight_decay": 0.0}, {"params": decayed, "weight_decay": settings.weight_decay}]
    optimizer: Optimizer = create_optimizer_v2(groups, opt=settings.name, lr=lr, weight_decay=settings.weight_decay)
    return optimizer


def make_schedule(optimizer: Optimizer, phase: Phase, steps_per_epoch: int) -> CosineLRScheduler:
    """Warm-up and cosine over the optimizer steps of a phase; a constant rate is a flat cosine."""
    warmup = phase.warmup_steps + phase.warmup_epochs * steps_per_epoch
    peak = optimizer.param_groups[0]["lr"]
    return CosineLRScheduler(
        optimizer,
        t_initial=phase.epochs * steps_per_epoch,
        lr_min=peak if phase.schedule == "constant" else min(phase.min_lr, peak),
        warmup_t=warmup,
        warmup_lr_init=phase.warmup_lr if warmup else 0.0,
        t_in_epochs=False,
    )
