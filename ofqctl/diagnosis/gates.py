"""Limits on the worst layer, for use in pipelines."""

from typing import Literal

from ofqctl.errors import ArtifactError
from ofqctl.results.analyze_oscillation import Gate, Live, Report

Figure = Literal["oscillating", "flips_per_step"]


def gate_on(figure: Figure, limit: float, report: Report, live: Live | None) -> Gate:
    """Compare the layer with the largest share with a limit; uses the tracker, else live steps.

    Raises:
        ArtifactError: There is neither tracker state nor live steps.
    """
    values = {layer.title: getattr(layer.tracked, figure) for layer in report.layers if layer.tracked}
    if not values and live is not None:
        values = {layer.title: getattr(layer, figure) for layer in live.layers}
    if not values:
        raise ArtifactError(
            f"{report.path}: {report.missing['tracked']}; there is no figure to compare with the limit",
            hint="--data DATA --steps N takes live steps" if report.kind == "training state" else "name a training run",
        )
    layer = max(values, key=lambda name: values[name])
    return Gate(figure=figure, limit=limit, layer=layer, value=values[layer], met=values[layer] <= limit)
