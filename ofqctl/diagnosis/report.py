"""Make the report on an opened file."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

from ofqctl.diagnosis.between import Snapshot, snapshot_of
from ofqctl.diagnosis.opening import Opened
from ofqctl.diagnosis.static import codes_of, latents_of, steps_of
from ofqctl.diagnosis.summing import summary_of
from ofqctl.diagnosis.tracked import TrackerState, history_of, paths_of, tracked_of
from ofqctl.diagnosis.weights import AnalyzedWeight
from ofqctl.errors import ArtifactError, did_you_mean
from ofqctl.oscillation import Role
from ofqctl.results.analyze_oscillation import Epoch, Report
from ofqctl.results.layers import AnalyzedLayer


@dataclass(frozen=True)
class Selection:
    """Which layers to report, and how much of each.

    Attributes:
        pattern: Shell-style pattern of module names.
        top: Largest number of channels of a layer, and of trajectories of a model, to report.
    """

    pattern: str = "*"
    top: int = 5

    def of(self, weights: Sequence[AnalyzedWeight]) -> list[AnalyzedWeight]:
        """The weights in matching modules.

        Raises:
            ArtifactError: No module matches.
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
    """The report on a file, and the snapshot for the comparison with the next file.

    Args:
        opened: The opened file.
        selection: Which layers to report.
        on_layer: Called with the number of layers done and the number of all.

    Raises:
        ArtifactError: The tracker's state belongs to another model, or no layer is selected.
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
        missing["history"] = "the tracker's state contains no history"
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


def _layer(weight: AnalyzedWeight, boundary_range: float, tracker: TrackerState | None) -> AnalyzedLayer:
    return AnalyzedLayer(
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


def _roles(layers: Sequence[AnalyzedLayer]) -> list[Role]:
    return list(dict.fromkeys(layer.role for layer in layers))
