"""Row by row, where massive tokens leave the others nothing of the grid (Sun et al., COLM 2024, arXiv 2402.17762).

One grid step for a whole tensor is what runtimes multiply fastest. In a few layers of many vision transformers single
tokens are a hundred times as large as the others, which then all fall on a handful of codes. There each row is
quantized relative to its largest magnitude instead, which costs a few small operators in these layers alone.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from ofqctl.hooks import attached
from ofqctl.ptq.task import Task
from ofqctl.quantizers import build_quantizer
from ofqctl.recipe import Plan, QuantizerPlan
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.registry import Frozen

_BATCH = 16  # images in one pass


class Rows(Frozen):
    """Quantize the inputs of a few Linear layers row by row; runs before calibration, wherever it stands in the list.

    Attributes:
        gain: How many times smaller the mean relative error of a row has to become.
        images: Number of calibration images: one half gives the ranges, the errors are those of the other.
    """

    gain: float = Field(default=10.0, gt=1.0)
    images: int = Field(default=32, ge=2)


@PTQ_STAGES.register("rows", Rows, traits=["prepares"])
def choose_rows(task: Task, settings: Rows) -> None:
    """Find the layers, and change the plan for them."""
    task.progress("choose rows", 0, None)
    one_step = {name: plan for name, plan in _inputs(task.plan).items() if _has_one_step(plan)}
    by_row = {name: plan.model_copy(update={"dynamic": True}) for name, plan in one_step.items()}
    images = list(islice((image for batch in task.images for image in torch.split(batch, 1)), settings.images))
    half = (len(images) + 1) // 2
    seen, held_out = images[:half], images[half:] or images  # of a single image, there is nothing to hold out
    errors, relative = _errors(task.model, [one_step, by_row], _batches(seen), _batches(held_out))
    chosen = [name for name in errors if errors[name] > settings.gain * relative[name]]
    modules = dict(task.plan.modules)
    for name in chosen:
        modules[name] = modules[name].model_copy(update={"operands": {"input": by_row[name]}})
    task.plan = task.plan.model_copy(update={"modules": modules})
    task.figures["rows"] = {
        "chosen": chosen,
        "errors": {name: {"one_step": errors[name], "rows": relative[name]} for name in errors},
    }


def _inputs(plan: Plan) -> dict[str, QuantizerPlan]:
    return {n: m.operands["input"] for n, m in plan.modules.items() if m.kind == "linear" and "input" in m.operands}


def _has_one_step(plan: QuantizerPlan) -> bool:
    return not plan.dynamic and plan.shift_shape is None and all(length == 1 for length in plan.step_shape)


def _errors(
    model: nn.Module, choices: list[dict[str, QuantizerPlan]], seen: Sequence[Tensor], held_out: Sequence[Tensor]
) -> list[dict[str, float]]:
    """For each choice of quantizers, by layer, the mean over all rows of the squared error relative to the square.

    The quantizers get their ranges from the images ``seen``; the errors are those on the images ``held_out``.
    """
    device = next(model.parameters()).device
    quantizers = [{name: build_quantizer(plan).to(device) for name, plan in plans.items()} for plans in choices]
    found: list[dict[str, list[Tensor]]] = [defaultdict(list) for _ in choices]

    def observe(name: str, x: Tensor) -> None:
        for by_name in quantizers:
            by_name[name].observe(x)

    def measure(name: str, x: Tensor) -> None:
        square = x.square().sum(-1).clamp(min=torch.finfo(x.dtype).tiny)
        for by_name, errors in zip(quantizers, found, strict=True):
            errors[name].append((by_name[name](x) - x).square().sum(-1).div(square).mean())

    for use, images in ((observe, seen), (measure, held_out)):
        with _watched(model, choices[0], use), torch.no_grad():
            for batch in images:
                model(batch.to(device))
        if use is observe:
            for quantizer in (quantizer for by_name in quantizers for quantizer in by_name.values()):
                quantizer.finish()
    return [{name: float(torch.stack(parts).mean()) for name, parts in errors.items()} for errors in found]


def _batches(images: list[Tensor]) -> Sequence[Tensor]:
    """Images of one each, (1, 3, H, W), in batches."""
    return torch.split(torch.cat(images), _BATCH)


@contextmanager
def _watched(model: nn.Module, names: Iterable[str], use: Callable[[str, Tensor], None]) -> Iterator[None]:
    """Within the block, ``use`` gets the input of each layer with its name."""

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        return lambda _module, args: use(name, args[0].detach())

    with attached(model.get_submodule(name).register_forward_pre_hook(hook(name)) for name in names):
        yield
