"""Compare consecutive checkpoints of a model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ofqctl.diagnosis.static import quantiles
from ofqctl.diagnosis.weights import AnalyzedWeight
from ofqctl.errors import ArtifactError
from ofqctl.grids import CodeRange
from ofqctl.oscillation import Role
from ofqctl.results.analyze_oscillation import Change, LayerChange

_DRIFT_LEVELS = (0.1, 0.5, 0.9)
_SHOWN = 6


@dataclass(frozen=True)
class Moment:
    """The codes and grid steps of one weight in a checkpoint.

    Attributes:
        codes: Codes, as integers.
        step: Grid steps, broadcast to the codes.
        range: Range of the codes.
        method: Method of the quantizer.
    """

    codes: Tensor
    step: Tensor
    range: CodeRange
    method: str

    @property
    def kind(self) -> str:
        """What must be equal in two checkpoints of one model."""
        return f"{tuple(self.codes.shape)}, {self.method} {self.range.low}..{self.range.high}"


Snapshot = dict[tuple[str, Role], Moment]


def snapshot_of(weights: Sequence[AnalyzedWeight]) -> Snapshot:
    """The part of a checkpoint that is kept for the comparison with the next one."""
    return {
        weight.key: Moment(weight.encoded.codes, weight.encoded.step, weight.encoded.grid.range, weight.method)
        for weight in weights
    }


def change_between(before: Snapshot, after: Snapshot, names: tuple[str, str], earlier: Change | None) -> Change:
    """Compare two checkpoints of one model.

    Args:
        before: The earlier checkpoint.
        after: The later checkpoint.
        names: Names of the two, for messages and results.
        earlier: The previous comparison, for the trend; None for the first pair.

    Raises:
        ArtifactError: They belong to different models; the message says what differs.
    """
    _check(before, after, names)
    layers = tuple(_layer(key, before[key], after[key]) for key in after)
    total = _share(layers)
    trend: Literal["more", "less", "equal"] | None = None
    if earlier is not None:
        trend = "equal" if total == earlier.codes_changed else "more" if total > earlier.codes_changed else "less"
    present: dict[Role, None] = dict.fromkeys(role for _, role in after)
    roles = {role: _share([layer for layer in layers if layer.role == role]) for role in present}
    return Change(before=names[0], after=names[1], codes_changed=total, trend=trend, roles=roles, layers=layers)


def _layer(key: tuple[str, Role], before: Moment, after: Moment) -> LayerChange:
    distance = (after.codes.int() - before.codes.int()).abs()
    changed = int(distance.count_nonzero())
    return LayerChange(
        name=key[0],
        role=key[1],
        weights=distance.numel(),
        codes_changed=changed / distance.numel(),
        distance=int(distance.sum()) / changed if changed else 0.0,
        step_drift=quantiles(after.step / before.step - 1.0, _DRIFT_LEVELS),
    )


def _share(layers: Sequence[LayerChange]) -> float:
    weights = sum(layer.weights for layer in layers)
    return sum(layer.codes_changed * layer.weights for layer in layers) / max(1, weights)


def _check(before: Snapshot, after: Snapshot, names: tuple[str, str]) -> None:
    faults = [f"{name} [{role}]: only in {names[0]}" for name, role in before if (name, role) not in after]
    faults += [f"{name} [{role}]: only in {names[1]}" for name, role in after if (name, role) not in before]
    faults += [
        f"{key[0]} [{key[1]}]: {before[key].kind} in {names[0]}, {moment.kind} in {names[1]}"
        for key, moment in after.items()
        if key in before and before[key].kind != moment.kind
    ]
    if faults:
        shown = [*faults[:_SHOWN], *([f"and {len(faults) - _SHOWN} more"] if len(faults) > _SHOWN else [])]
        raise ArtifactError(
            "\n  ".join(["checkpoints: they belong to different models, so their codes cannot be compared:", *shown]),
            hint="name checkpoints of one model and one recipe; `ofqctl compare` compares different runs",
        )
