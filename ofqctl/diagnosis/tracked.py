"""Figures from the tracker's state: which weights oscillate, in each layer and over training."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ofqctl.diagnosis.static import quantiles
from ofqctl.diagnosis.weights import AnalyzedWeight
from ofqctl.errors import ArtifactError
from ofqctl.oscillation import MOVED, Role, count_moved, in_parts
from ofqctl.results.analyze_oscillation import History, Path, RoleHistory
from ofqctl.results.layers import Channel, Tracked

FREQUENCY_LEVELS = (0.5, 0.9, 0.99, 1.0)
_PATH_STEPS = 300  # number of the latest steps of a trajectory that are shown


@dataclass(frozen=True)
class TrackerState:
    """The saved state of a tracker, and its settings.

    Attributes:
        tensors: Result of ``OscillationTracker.state_dict``.
        threshold: Frequency above which a weight oscillates.
        top: Largest number of channels of a layer, and of trajectories of the model, to report.
    """

    tensors: Mapping[str, Tensor]
    threshold: float
    top: int

    @property
    def steps(self) -> int:
        """Number of optimizer steps that were tracked."""
        return int(self.tensors["steps"])

    def of(self, weight: AnalyzedWeight, key: str) -> Tensor:
        """One tensor of a weight's state.

        Raises:
            ArtifactError: The state belongs to a model without this weight.
        """
        name = f"{weight.name}.weight.{key}"
        if name not in self.tensors:
            raise ArtifactError(
                f"tracker state: {name} is missing: the state belongs to another model",
                hint="name the run that it belongs to",
            )
        return self.tensors[name]

    def part(self, weight: AnalyzedWeight, key: str) -> Tensor:
        """One tensor of a weight's state, reduced to the rows of the part, in the shape of its codes.

        Raises:
            ArtifactError: The weight in the state has another shape.
        """
        whole, shape = self.of(weight, key), weight.encoded.codes.shape
        parts = whole.shape[0] // shape[0]
        if (parts * shape[0], *shape[1:]) != tuple(whole.shape):
            raise ArtifactError(
                f"tracker state: {weight.name}: {tuple(whole.shape)}, but {tuple(shape)} in the model",
                hint="name the run that it belongs to",
            )
        return in_parts(whole, max(1, parts))[weight.part]

    def rows(self, weight: AnalyzedWeight, key: str) -> Tensor:
        """The same, (channels, weights of a channel)."""
        return weight.rows(self.part(weight, key))


def tracked_of(weight: AnalyzedWeight, state: TrackerState) -> Tracked:
    """The tracker's figures of one weight."""
    frequency = state.rows(weight, "frequency")
    oscillates = frequency > state.threshold
    order = frequency.mean(1).argsort(descending=True, stable=True)[: state.top].tolist()
    channels = [
        Channel(index=row, oscillating=float(oscillates[row].double().mean()), frequency=float(frequency[row].mean()))
        for row in order
    ]
    return Tracked(
        oscillating=float(oscillates.double().mean()),
        flips_per_step=_recent_flips(weight, state),
        never_flipped=float((state.rows(weight, "direction") == 0).double().mean()),
        **_moved(weight, state),
        frequency=quantiles(frequency, FREQUENCY_LEVELS),
        channels=tuple(channel for channel in channels if channel.frequency > 0.0),
    )


def _moved(weight: AnalyzedWeight, state: TrackerState) -> dict[str, float]:
    """Shares of codes, signs and magnitudes that are not those at the start, if the state has it."""
    if f"{weight.name}.weight.start" not in state.tensors:
        return {}
    counts = count_moved(state.part(weight, "start"), weight.encoded) / weight.encoded.codes.numel()
    return dict(zip(MOVED, counts.tolist(), strict=True))


def _recent_flips(weight: AnalyzedWeight, state: TrackerState) -> float:
    """Share of the codes that flip in an optimizer step, mean of the last 30."""
    codes, recent = state.of(weight, "codes"), state.of(weight, "recent_flips")
    recent = recent.view(-1, state.of(weight, "flips").numel()).double()
    parts = codes.shape[0] // weight.encoded.codes.shape[0]
    counted = recent[:, weight.part] * parts if recent.shape[1] == parts else recent.sum(1)
    return float(counted.mean()) / codes.numel() if len(counted) else 0.0


def history_of(weights: Sequence[AnalyzedWeight], state: TrackerState) -> History | None:
    """The history of every role, or None if the tracker recorded none.

    Args:
        weights: All weights of the model; the history has their parts in the alphabetical order of their names.
        state: State of the tracker.
    """
    steps, table = state.tensors.get("history_steps"), state.tensors.get("history")
    if steps is None or table is None or not len(steps):
        return None
    ordered = sorted(weights, key=lambda weight: (f"{weight.name}.weight", weight.part))
    if table.shape[1] != len(ordered):
        return None
    counts = torch.tensor([weight.encoded.codes.numel() for weight in ordered], dtype=torch.float64)
    relative = table[:, :, 0] / table[:1, :, 0]
    gone = torch.diff(table[:, :, 2], dim=0, prepend=torch.zeros(1, len(ordered), dtype=table.dtype))
    spans = torch.diff(steps, prepend=torch.zeros(1, dtype=steps.dtype)).double()
    roles: dict[Role, RoleHistory] = {}
    for role in dict.fromkeys(weight.role for weight in weights):
        own = torch.tensor([weight.role == role for weight in ordered])
        share = counts[own] / counts[own].sum()
        roles[role] = RoleHistory(
            step=tuple((relative[:, own] @ share).tolist()),
            oscillating=tuple((table[:, own, 1] @ share).tolist()),
            flips_per_step=tuple((gone[:, own].sum(1) / counts[own].sum() / spans).tolist()),
        )
    return History(steps=tuple(steps.tolist()), roles=roles)


def paths_of(weights: Sequence[AnalyzedWeight], state: TrackerState) -> tuple[Path, ...]:
    """Trajectories of the sampled weights whose codes flipped most recently; one of each role first, then any.

    Weights with many bits are used only if there are no others, because nearly all of them flip all the time.
    """
    fewest = min(weight.encoded.grid.range.bits for weight in weights)
    coarse = [weight for weight in weights if weight.encoded.grid.range.bits == fewest]
    found = [(flips, path) for weight in coarse for flips, path in _paths(weight, state)]
    found.sort(key=lambda pair: -pair[0])
    first: dict[Role, Path] = {}
    for _, path in found:
        first.setdefault(path.role, path)
    leading = list(first.values())
    others = [path for _, path in found if path not in leading]
    return tuple([*leading, *others][: state.top])


def _paths(weight: AnalyzedWeight, state: TrackerState) -> list[tuple[int, Path]]:
    """The sampled entries of a weight, or of one part of it, that flipped recently, with their numbers of flips."""
    entries, rows = state.of(weight, "entries"), state.of(weight, "trajectory")[-_PATH_STEPS:]
    codes, bounds = weight.encoded.codes, weight.encoded.grid.range
    paths = []
    for column, entry in enumerate(entries.tolist()):
        inside = entry - weight.part * codes.numel()
        if not 0 <= inside < codes.numel():
            continue
        latent, step, code = rows[:, column, 0], rows[:, column, 1], rows[:, column, 2].round().int()
        flips = int((code.diff() != 0).count_nonzero())
        if not flips:
            continue
        own = weight.encoded.grid.map(partial(_entry, codes.shape, inside))
        position = rows[:, column, 4] if rows.shape[2] > 4 else torch.full_like(latent, torch.nan)
        position = position.where(~position.isnan(), own.position(latent / step))  # earlier versions recorded none
        lowest, highest = max(int(code.min()) - 1, bounds.low), min(int(code.max()) + 1, bounds.high)
        path = Path(
            name=weight.name,
            role=weight.role,
            index=entry,
            thresholds=tuple(bound + 0.5 for bound in range(lowest, highest)),
            first_step=state.steps - len(rows) + 1,
            position=tuple(round(value, 5) for value in position.tolist()),
            code=tuple(code.tolist()),
        )
        paths.append((flips, path))
    return paths


def _entry(shape: torch.Size, index: int, tensor: Tensor) -> Tensor:
    """The element of ``tensor`` for one entry of a flattened weight."""
    return tensor.expand(shape).flatten()[index]
