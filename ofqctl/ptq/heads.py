"""New bases and origins for what attention multiplies, head by head; the float model computes the same.

Logits stay if queries are multiplied by a matrix and keys by its inverse. What is subtracted from every key moves all
logits of a query alike, which the softmax drops. The output stays if values are multiplied by a matrix and what reads
them by its inverse; what is subtracted from every value is added to the bias behind, as the rows of the softmax output
sum to 1. Everything is folded into the projections.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ofqctl.layers.attention import why_no_qkr
from ofqctl.ptq.exact import holds, together_or_alone
from ofqctl.ptq.task import Task

Side = Literal["keys", "values"]
SIDES: tuple[Side, ...] = ("keys", "values")

_SHOWN = 2
_ELSEWHERE = "something else than their projections and their product changes or reads them"


@dataclass(frozen=True)
class Basis:
    """A new basis for the keys (and queries) or the values of every head of a block.

    Attributes:
        matrix: What keys or values are multiplied by, (H, d, d), float64 on the CPU.
        origin: What is subtracted from them ahead of that, (H, d), or None.
    """

    matrix: Tensor
    origin: Tensor | None = None


def heads_of(attention: nn.Module) -> tuple[int, int] | None:
    """Number and width of the heads of an attention block with query, key and value in one Linear; None for others."""
    heads, qkv, proj = (getattr(attention, name, None) for name in ("num_heads", "qkv", "proj"))
    if not (isinstance(heads, int) and isinstance(qkv, nn.Linear) and isinstance(proj, nn.Linear)):
        return None
    together = proj.in_features
    return (heads, together // heads) if qkv.out_features == 3 * together and together % heads == 0 else None


def takes_origin(attention: Any, side: Side) -> bool:
    """Whether there are biases to take up what is subtracted from the keys or values of a block."""
    return attention.qkv.bias is not None and (side == "keys" or attention.proj.bias is not None)


def change_heads(
    task: Task, stage: str, side: Side, basis_of: Callable[[str, int, int], Basis | str]
) -> tuple[str, ...]:
    """Give the heads of every attention block new bases, where that leaves the model's function as it is.

    Args:
        task: A task whose model is the float one.
        stage: Name of the stage, for notes.
        side: Whether keys, with the queries, or values change.
        basis_of: Takes name of a block, number and width of its heads; gives their basis, or says why there is none.

    Returns:
        Names of the blocks that were changed. Notes say which others were not, and why.
    """
    model, image = task.model, task.images[0][:1]
    bases: dict[str, Basis] = {}
    left: dict[str, list[str]] = defaultdict(list)
    for name, plan in task.plan.modules.items():
        if plan.kind not in ("attention", "qkr"):
            continue
        size = heads_of(model.get_submodule(name))
        if side == "keys" and plan.kind == "qkr":
            left["query and key are merged, so that it would cancel"].append(name)
        elif size is None:
            left["query, key and value are not one Linear"].append(name)
        elif isinstance(basis := basis_of(name, *size), Basis):
            bases[name] = basis
        else:
            left[basis].append(name)
    kept = together_or_alone(list(bases), lambda names: holds(model, image, lambda m: _change(m, side, bases, names)))
    for name in (name for name in bases if name not in kept):
        reason = why_no_qkr(model.get_submodule(name)) if side == "keys" else None
        left[reason or _ELSEWHERE].append(name)
    _change(model, side, bases, kept)
    for reason, names in left.items():
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        task.notes.append(f"{stage}: {side} of {', '.join(names[:_SHOWN])}{more} stay as they are: {reason}")
    return tuple(kept)


def _change(model: nn.Module, side: Side, bases: Mapping[str, Basis], names: Sequence[str]) -> None:
    for name in names:
        attention: Any = model.get_submodule(name)
        heads, matrix = len(bases[name].matrix), bases[name].matrix
        inverse, origin = torch.linalg.inv(matrix), bases[name].origin
        query, key, value = (_rows(attention.qkv, heads, part) for part in range(3))
        with torch.no_grad():
            if side == "keys":
                query.change(inverse)
                key.change(matrix.mT, origin)
                continue
            value.change(matrix.mT, origin)
            reader = attention.proj.weight.cpu().double().reshape(-1, *matrix.shape[:2])
            if origin is not None:
                attention.proj.bias += torch.einsum("ohd,hd->o", reader, origin).to(attention.proj.bias)
            changed = torch.einsum("ohd,hed->ohe", reader, inverse).flatten(1)
            attention.proj.weight.copy_(changed)


@dataclass(frozen=True)
class _Rows:
    """The part of a projection that gives the queries, keys or values of all heads; views of its parameters."""

    weight: Tensor  # (H, d, in)
    bias: Tensor | None  # (H, d)

    def change(self, matrix: Tensor, origin: Tensor | None = None) -> None:
        """Subtract ``origin`` (H, d) from the rows' outputs, and multiply them as columns by ``matrix`` (H, d, d)."""
        self.weight.copy_(matrix @ self.weight.cpu().double())
        if self.bias is not None:
            moved = self.bias.cpu().double() if origin is None else self.bias.cpu().double() - origin
            self.bias.copy_((matrix @ moved[..., None])[..., 0])


def _rows(qkv: nn.Linear, heads: int, part: int) -> _Rows:
    weight = qkv.weight.detach().chunk(3)[part]
    rows = weight.view(heads, -1, weight.shape[1])
    return _Rows(rows, None if qkv.bias is None else qkv.bias.detach().chunk(3)[part].view(heads, -1))
