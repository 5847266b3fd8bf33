"""From a file that was opened to what is said about it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ofqctl.diagnosis.between import Snapshot, snapshot_of
from ofqctl.diagnosis.layers import Layer
from ofqctl.diagnosis.opening import Opened
from ofqctl.diagnosis.result import Epoch, Report
from ofqctl.diagnosis.static import codes_of, latents_of, steps_of
from ofqctl.diagnosis.summing import summary_of
from ofqctl.diagnosis.tracked import TrackerState, history_of, paths_of, tracked_of
from ofqctl.diagnosis.weights import Weight
from ofqctl.errors import ArtifactError, did_you_mean
from ofqctl.oscillation import Role


@dataclass(frozen=True)
class Selection:
    """Which layers, and how much of each.

    Attributes:
        pattern: Shell-style, of module names.
        top: Channels of a layer, and trajectories of a model, that are reported.
    """

    pattern: str = "*"
    top: int = 5

    def of(self, weights: Sequence[Weight]) -> list[Weight]:
        """The weights whose module matches.

        Raises:
            ArtifactError: None does.
        """
        chosen = [weight for weight in weights if fnmatchcase(weight.name, self.pattern)]
        if not chosen:
            names = [weight.name for weight in weights]
            raise ArtifactError(
                f"--layers {self.pattern}: matches no quantized layer",
                hint=did_you_mean(self.pattern, names) or f"layers are named like '{names[0]}'",
            )
        return chosen


def report_on(
    opened: Opened, selection: Selection, on_layer: Callable[[int, int], None] = lambda _done, _total: None
) -> tuple[Report, Snapshot]:
    """Everything that one file says, and what the comparison with the next one needs.

    Args:
        opened: The file.
        selection: Which layers.
        on_layer: Told how many layers are done, and their number.

    Raises:
        ArtifactError: The tracker's state is of another model, or no layer is chosen.
    """
    weights = list(opened.read_weights())
    chosen = selection.of(weights)
    tracker, missing = None, dict(opened.missing)
    if opened.tracker is not None:
        tracker = TrackerState(opened.tracker, opened.tracking.threshold, selection.top)
    layers = []
    for done, weight in enumerate(chosen):
        on_layer(done, len(chosen))
        layers.append(_layer(weight, opened.boundary_range, tracker))
    history = None if tracker is None else history_of(weights, tracker)
    if tracker is not None and history is None:
        missing["history"] = "the tracker's state holds no history"
    report = Report(
        path=str(opened.path),
        kind=opened.kind,
        model=opened.architecture,
        recipe=None if opened.recipe is None else opened.recipe.name,
        steps=None if tracker is None else tracker.steps,
        threshold=opened.tracking.threshold,
        boundary_range=opened.boundary_range,
        missing=missing,
        total=summary_of(layers),
        roles={role: summary_of([la for la in layers if la.role == role]) for role in _roles(layers)},
        layers=tuple(layers),
        epochs=tuple(Epoch.model_validate({key: row.get(key) for key in Epoch.model_fields}) for row in opened.epochs),
        annealing=opened.annealing,
        history=history,
        paths=() if tracker is None else paths_of(chosen, tracker),
    )
    return report, snapshot_of(chosen)


def _layer(weight: Weight, boundary_range: float, tracker: TrackerState | None) -> Layer:
    return Layer(
        name=weight.name,
        role=weight.role,
        shape=tuple(weight.encoded.codes.shape),
        weights=weight.encoded.codes.numel(),
        bits=weight.encoded.grid.range.bits,
        method=weight.method,
        step=steps_of(weight),
        codes=codes_of(weight),
        latents=None if weight.latent is None else latents_of(weight, boundary_range),
        tracked=None if tracker is None else tracked_of(weight, tracker),
    )


def _roles(layers: Sequence[Layer]) -> list[Role]:
    return list(dict.fromkeys(layer.role for layer in layers))
