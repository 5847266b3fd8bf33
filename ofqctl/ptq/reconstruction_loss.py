"""The losses of reconstruction: what of a unit's output is compared with the float model's, and how."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ofqctl.ptq.behind import Behind
from ofqctl.ptq.importances import perturbation_hessian, squared_gradients
from ofqctl.ptq.task import Task
from ofqctl.ptq.units import Batches, Piece, find_units, variance_over

Kind = Literal["fisher", "aphq", "mse", "mae", "glfq"]

_OWN, _FEATURES = "own", "features"  # what a term compares, besides units behind
_LOCALLY = 2.0  # weight of the unit's own output beside the features (GLF-Q)


@dataclass
class _Term:
    """One part of the loss of a unit.

    Attributes:
        compared: The unit's own output, the features that classifiers read, or the name of a unit behind.
        targets: What the float model has there.
        weights: Weight of the error in each element, or None.
        power: Of the error.
        divisor: What the mean error is divided by; None takes its first value.
        factor: Weight of the term.
    """

    compared: str
    targets: Batches
    weights: Tensor | None
    power: int
    divisor: float | None
    factor: float

    def value(self, output: Tensor, index: int) -> Tensor:
        """The term for one batch."""
        error = (output - self.targets[index]).abs().pow(self.power)
        mean = (error if self.weights is None else error * self.weights).mean()
        if self.divisor is None:
            self.divisor = float(mean.detach()) or 1.0
        return self.factor * mean / self.divisor


class UnitLoss:
    """The loss of the output of one unit."""

    def __init__(self, unit: str, terms: list[_Term], behind: Behind | None) -> None:
        self._unit, self._terms, self._behind = unit, terms, behind

    def __call__(self, output: Tensor, index: int) -> Tensor:
        """The loss of the output on batch ``index``, a scalar."""
        later = [term.compared for term in self._terms if term.compared not in (_OWN, _FEATURES)]
        seen = {_OWN: output}
        if later:
            assert self._behind is not None
            seen |= dict(zip(later, self._behind.outputs(self._unit, output, later), strict=True))
        if any(term.compared == _FEATURES for term in self._terms):
            assert self._behind is not None
            seen[_FEATURES] = self._behind.features(self._unit, output)
        return torch.stack([term.value(seen[term.compared], index) for term in self._terms]).sum()

    def delete(self) -> None:
        """Delete the targets that are only of this unit's loss."""
        for term in self._terms:
            if term.compared != _OWN:
                term.targets.delete()


class Losses:
    """Makes the loss of every unit of a model.

    Args:
        task: The task.
        kind: Which loss.
        ahead: Number of units behind each unit whose outputs are compared, in place of its own; 0 for its own.
        images: Images that are reconstructed on, (B, 3, H, W) each.
        generator: Random generator, on the CPU.
    """

    def __init__(self, task: Task, kind: Kind, ahead: int, images: Batches, generator: torch.Generator) -> None:
        few = images[0][:2]
        self.units = [unit.name for unit, _ in find_units(task.original, task.plan, few)]
        self._kind, self._ahead, self._beside = kind, ahead, images.beside
        self._behind = Behind(task.original, self.units, few) if ahead or kind in ("glfq", "aphq") else None
        self._weights: dict[str, Tensor] = {}
        if kind == "fisher":
            self._weights = squared_gradients(task, self.units, images, generator)
        elif kind == "aphq":
            assert self._behind is not None
            self._weights = perturbation_hessian(task, self.units, images, self._behind, generator)
        if self._behind is not None and self._behind.others:
            names = ", ".join(self._behind.others[:3]) + (", ..." if len(self._behind.others) > 3 else "")
            task.notes.append(f"reconstruct: of {names} their own output alone is compared; what follows reads more")

    def of(self, piece: Piece) -> UnitLoss:
        """The loss of a unit."""
        return UnitLoss(piece.name, self._terms(piece), self._behind)

    def _terms(self, piece: Piece) -> list[_Term]:
        behind, first = self._behind, piece.number + 1
        later = self.units[first : first + self._ahead]
        if behind is not None and piece.name in behind.alone and self._kind == "glfq":
            (features,) = self._targets(piece, [_FEATURES], lambda y: [behind.features(piece.name, y)])
            return [_Term(_OWN, piece.targets, None, 2, None, _LOCALLY), _Term(_FEATURES, features, None, 2, None, 1.0)]
        if behind is not None and piece.name in behind.alone and later:
            targets = self._targets(piece, later, lambda y: behind.outputs(piece.name, y, later))
            return [self._term(name, name, kept, 1.0 / len(later)) for name, kept in zip(later, targets, strict=True)]
        return [self._term(_OWN, piece.name, piece.targets, 1.0)]

    def _targets(self, piece: Piece, names: list[str], compute: Callable[[Tensor], list[Tensor]]) -> list[Batches]:
        """What the float unit's outputs lead to."""
        kept = [self._beside(f"{piece.number}-{name}") for name in names]
        with torch.no_grad():
            for batch in piece.targets:
                for one, output in zip(kept, compute(batch), strict=True):
                    one.append(output)
        return kept

    def _term(self, compared: str, unit: str, targets: Batches, factor: float) -> _Term:
        """A term that is of one size for every unit: relative to how much its targets vary from image to image."""
        weights, variance = self._weights.get(unit), variance_over(targets)
        if self._kind == "mae":
            return _Term(compared, targets, None, 1, float(variance.sqrt().mean()) or 1.0, factor)
        spread = variance if weights is None else variance * weights
        return _Term(compared, targets, weights, 2, float(spread.mean()) or 1.0, factor)
