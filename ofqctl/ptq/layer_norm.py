"""LayerNorm reparameterization: give all channels the same range, exactly (Li et al., ICCV 2023, arXiv 2212.08254).

Of RepQ-ViT. A quantizer with one grid step for all channels of a LayerNorm's output loses the information in channels
of small range. The ranges are therefore moved from the affine parameters of the LayerNorm into the weights of the
Linear layers that read its output, which are quantized for each output channel. It takes seconds and costs nothing when
the model runs.

The float model computes the same function, up to float32 rounding.
"""

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from functools import partial

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ofqctl.hooks import attached
from ofqctl.layers.attention import open_products
from ofqctl.models.outputs import every_output
from ofqctl.ptq.exact import together_or_alone
from ofqctl.ptq.task import Task
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.registry import Frozen

Edit = Callable[[Tensor], Tensor]
Change = Callable[..., Tensor]  # of a tensor and ``other``

_SMALLEST = 1e-3  # smallest range of a channel that is used, relative to the mean range
_TOLERANCE = 1e-3  # largest rounding error of a shift and its inverse, relative to the largest output


class FoldLayerNorm(Frozen):
    """LayerNorm reparameterization (RepQ-ViT); runs before calibration, wherever it stands in the list.

    Attributes:
        strength: Exponent of the ratios between channel ranges that are moved into the next layer: 1 moves all of them.
        narrower: Whether ranges are also moved into weights that have fewer bits than the layer's input.
    """

    strength: float = Field(default=1.0, gt=0.0, le=1.0)
    narrower: bool = True


@dataclass(frozen=True)
class Pair:
    """A LayerNorm and the Linear layers that read its output.

    Attributes:
        norm: Name of the LayerNorm.
        readers: Names of the Linear layers.
        shifts: Whether a shift can be moved as well as a factor; not if a layer has no bias, or if zeros are padded in
            between.
    """

    norm: str
    readers: tuple[str, ...]
    shifts: bool


@PTQ_STAGES.register("layer_norm", FoldLayerNorm, traits=["prepares"])
def fold_as_planned(task: Task, settings: FoldLayerNorm) -> None:
    """Fold the LayerNorms of a float model into the layers that read them, where the plan allows.

    Without ``narrower``, a layer takes ranges only if its weights have at least as many bits as its input. The plan
    lists a merged query and key under its attention block, not under its Linear.
    """

    def can_take(name: str) -> bool:
        module = task.plan.modules.get(name) or task.plan.modules.get(name.rpartition(".")[0])
        if settings.narrower or module is None or module.weight is None:
            return True
        inputs = module.operands.get("x") or module.operands.get("input")
        return inputs is not None and module.weight.bits >= inputs.bits

    task.progress("fold layer norms", 0, None)
    fold_layer_norms(task.model, task.images, strength=settings.strength, can_take=can_take)


def fold_layer_norms(
    model: nn.Module,
    images: Iterable[Tensor],
    *,
    strength: float = 1.0,
    can_take: Callable[[str], bool] = lambda _name: True,
) -> list[Pair]:
    """Give every channel of a LayerNorm's output the same range, and compensate in the Linear layers that read it.

    Args:
        model: A float timm model in evaluation mode; changed in place, but computes the same function.
        images: Normalized images, (B, 3, H, W) each; read twice.
        strength: Exponent of the ratios between ranges that are moved, 0-1.
        can_take: Takes the name of a Linear; says whether ranges may be moved into it.

    Returns:
        The pairs that were folded.
    """
    pairs = find_pairs(model, next(iter(images))[:1])
    pairs = [pair for pair in pairs if all(can_take(name) for name in pair.readers)]
    if not pairs:
        return []
    ranges = _ranges(model, [pair.norm for pair in pairs], images)
    for pair in pairs:
        low, high = ranges[pair.norm]
        width = high - low
        width = width.clamp(min=_SMALLEST * float(width.mean()) or 1.0)
        factor = (width / width.mean()) ** strength
        shift = (low + high) / 2 if pair.shifts else torch.zeros_like(low)
        _fold(model, pair, factor, shift)
    return pairs


def find_pairs(model: nn.Module, image: Tensor) -> list[Pair]:
    """Every LayerNorm whose output is read by Linear layers and by nothing else.

    This is found by trial: the output is multiplied by powers of two, which change no mantissa. A Linear reads it if
    the Linear's input changes by exactly these factors, whatever windows, rolls and reshapes lie in between. Nothing
    else reads it if dividing those inputs again gives the model's original outputs, to the bit: patch tokens included
    where there is no classifier, because a last norm that only the pooling reads is what users take as tokens.

    Args:
        model: A float model in evaluation mode.
        image: One image, (1, 3, H, W).
    """
    for module in model.modules():
        open_products(module)
    norms = {n: m for n, m in model.named_modules() if isinstance(m, nn.LayerNorm) and m.weight is not None}
    linears = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear)}
    with torch.no_grad():
        expected, inputs = _run(model, image, linears)
        found = (_pair_of(model, image, name, norms[name], linears, inputs) for name in norms)
        pairs = together_or_alone([p for p in found if p], lambda pairs: _scales_alone(model, image, pairs, expected))
        shifting = [pair for pair in pairs if pair.shifts]
        shifting = together_or_alone(shifting, lambda pairs: _shifts_alone(model, image, pairs, expected))
        return [replace(pair, shifts=pair in shifting) for pair in pairs]


def _pair_of(
    model: nn.Module,
    image: Tensor,
    name: str,
    norm: nn.LayerNorm,
    linears: dict[str, nn.Linear],
    inputs: dict[str, Tensor],
) -> Pair | None:
    """The Linear layers that read a LayerNorm; None if there are none. Whatever else reads it is yet unknown."""
    channels = norm.weight.numel()
    alike = {n: m for n, m in linears.items() if m.in_features == channels and n in inputs}
    if norm.normalized_shape != (channels,) or not alike:
        return None
    factor = _factor(norm)
    with _edited(norm, lambda y: y * factor if y.shape[-1] == channels else y):
        _, moved = _run(model, image, alike)
    readers = {n: m for n, m in alike.items() if n in moved and torch.equal(moved[n], inputs[n] * factor)}
    biased = norm.bias is not None and all(m.bias is not None for m in readers.values())
    return Pair(name, tuple(readers), biased) if readers else None


def _factor(norm: nn.LayerNorm) -> Tensor:
    """Powers of two, (C,)."""
    exponents = torch.randint(1, 4, norm.weight.shape, generator=torch.Generator().manual_seed(0))
    return torch.exp2(exponents.float()).to(norm.weight.device)


def _scales_alone(model: nn.Module, image: Tensor, pairs: list[Pair], expected: tuple[Tensor, ...]) -> bool:
    """Whether nothing but its readers sees that the output of a LayerNorm is multiplied."""
    outputs = _changed_and_undone(model, image, pairs, torch.mul, torch.div)
    return all(map(torch.equal, outputs, expected))


def _shifts_alone(model: nn.Module, image: Tensor, pairs: list[Pair], expected: tuple[Tensor, ...]) -> bool:
    """Whether nothing but its readers sees that something is added to the output of a LayerNorm."""
    outputs = _changed_and_undone(model, image, pairs, torch.add, torch.sub)
    return all(
        bool((output - wanted).abs().max() <= _TOLERANCE * wanted.abs().max())
        for output, wanted in zip(outputs, expected, strict=True)
    )


def _changed_and_undone(
    model: nn.Module, image: Tensor, pairs: list[Pair], change: Change, undo: Change
) -> tuple[Tensor, ...]:
    """The model's outputs if LayerNorms are changed, and their readers' inputs changed back."""
    with ExitStack() as edits:
        for pair in pairs:
            norm = model.get_submodule(pair.norm)
            assert isinstance(norm, nn.LayerNorm)
            edits.enter_context(_edited(norm, partial(change, other=_factor(norm))))
            readers = {name: model.get_submodule(name) for name in pair.readers}
            edits.enter_context(_undone(readers, partial(undo, other=_factor(norm))))
        return _run(model, image, {})[0]


def _run(
    model: nn.Module, image: Tensor, linears: dict[str, nn.Linear]
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """The model's outputs, and the inputs of those ``linears`` that are called exactly once."""
    seen: dict[str, list[Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        return lambda _module, args: seen.setdefault(name, []).append(args[0])

    with attached(m.register_forward_pre_hook(note(n)) for n, m in linears.items()):
        outputs = every_output(model, image)
    return outputs, {n: calls[0] for n, calls in seen.items() if len(calls) == 1}


def _edited(norm: nn.Module, edit: Edit) -> RemovableHandle:
    """Apply ``edit`` to the output of ``norm`` in a ``with`` block."""
    return norm.register_forward_hook(lambda _module, _args, output: edit(output))


def _undone(readers: dict[str, nn.Module], edit: Edit) -> AbstractContextManager[None]:
    """Apply ``edit`` to the inputs of ``readers`` in a ``with`` block."""
    return attached(m.register_forward_pre_hook(lambda _module, args: (edit(args[0]),)) for m in readers.values())


def _ranges(model: nn.Module, norms: list[str], images: Iterable[Tensor]) -> dict[str, tuple[Tensor, Tensor]]:
    """Smallest and largest output of each channel, (C,) each."""
    ranges: dict[str, tuple[Tensor, Tensor]] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple[Tensor, ...], output: Tensor) -> None:
            rows = output.flatten(0, -2)
            low, high = ranges.get(name, (rows[0], rows[0]))
            ranges[name] = torch.minimum(low, rows.amin(0)), torch.maximum(high, rows.amax(0))

        return hook

    with attached(model.get_submodule(name).register_forward_hook(note(name)) for name in norms), torch.no_grad():
        for batch in images:
            model(batch)
    return ranges


def _fold(model: nn.Module, pair: Pair, factor: Tensor, shift: Tensor) -> None:
    """Make the LayerNorm return ``(y - shift) / factor`` and let its readers compensate."""
    norm = model.get_submodule(pair.norm)
    assert isinstance(norm, nn.LayerNorm)
    with torch.no_grad():
        norm.weight.div_(factor)
        if norm.bias is not None:
            norm.bias.sub_(shift).div_(factor)
        for name in pair.readers:
            reader = model.get_submodule(name)
            assert isinstance(reader, nn.Linear)
            if pair.shifts:
                moved = reader.weight.cpu().double() @ shift.cpu().double()  # not every device has float64
                reader.bias.add_(moved.to(reader.bias))
            reader.weight.mul_(factor)
