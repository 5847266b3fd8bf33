"""``ofqctl analyze-oscillation``."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ofqctl.cli import options
from ofqctl.cli.groups import group, option
from ofqctl.cli.output import Table
from ofqctl.cli.printing import tell

if TYPE_CHECKING:
    from ofqctl.results.analyze_oscillation import Analysis, Change, Gate, Live, Report
    from ofqctl.results.layers import AnalyzedLayer, LiveWeights

EXAMPLES = (
    "ofqctl analyze-oscillation runs/deit_tiny-w2a2 --html report.html",
    "ofqctl analyze-oscillation epoch10.pt epoch20.pt epoch30.pt --layers 'blocks.*.mlp.*'",
    "ofqctl analyze-oscillation runs/deit_tiny-w2a2 --data imagenet/train --steps 50",
    "ofqctl analyze-oscillation runs/deit_tiny-w2a2 --max-oscillating 2 --max-flip-rate 0.0005 --json",
)


@group("Data")
class _Data:
    data: str | None = option("DATA", "Labelled training images, for live steps.")
    steps: int | None = option(
        "N", "Optimizer steps to take from the last checkpoint; by default 30. They are not saved.", min=1
    )


@group("Data")
class _Reading(options.DataOptions):
    split: str | None = option(
        "NAME", "Split of --data to train on, or a part such as 'train[:80%]'; by default its training split."
    )


@group("Output")
class _Output:
    layers: str = option("PATTERN", "Shell-style pattern of module names.", default="*")
    top: int = option("K", "Number of layers, channels and weights to show.", default=5, min=1)
    html: Path | None = option("FILE", "Write an HTML report: one self-contained file.")


@group("Options")
class _File:
    wbits: int | None = option(
        "N", "Bits of the weights of an OFQ .pth.tar; by default those in its name.", min=2, max=8
    )


@group("Gates")
class _Gates:
    max_oscillating: float | None = option(
        "PCT", "Exit with 1 if more than this percentage of the weights of any layer oscillates.", min=0.0, max=100.0
    )
    max_flip_rate: float | None = option(
        "R", "Exit with 1 if a larger share (0 to 1) of the codes of any layer flips in a step.", min=0.0, max=1.0
    )


def analyze_oscillation(
    sources: Annotated[
        list[Path],
        typer.Argument(
            metavar="CKPT|RUN|FILE ...",
            help="Run directory, hf-hub:ORG/NAME, last.pt, model.safetensors or OFQ .pth.tar; several of one model, "
            "oldest first.",
            show_default=False,
        ),
    ],
    *,
    data: _Data,
    reading: _Reading,
    output: _Output,
    file: _File,
    printing: options.PrintOptions,
    gates: _Gates,
    execution: options.ExecutionOptions,
    seed: options.Seed = 0,
) -> None:
    """Show whether, where and why weights oscillate, and how to stop it."""
    from ofqctl.cli.failures import InterruptionError
    from ofqctl.diagnosis.report import Selection
    from ofqctl.jobs.analyze import AnalyzeRequest, analyze
    from ofqctl.training import Interrupted

    limit, top, html = gates.max_oscillating, output.top, output.html
    request = AnalyzeRequest(
        sources=sources,
        data=None if data.data is None else reading.labelled(data.data),
        steps=data.steps,
        selection=Selection(output.layers, top),
        wbits=file.wbits,
        html=html,
        max_oscillating=None if limit is None else limit / 100.0,
        max_flip_rate=gates.max_flip_rate,
        device=execution.device,
        workers=execution.workers,
        seed=seed,
    )
    with printing.sink() as sink:
        try:
            result = analyze(request, sink.progress)
        except Interrupted:
            raise InterruptionError from None
        sink.show(result, lambda shown: _render(shown, top, html))
    _judge(result.gates)


def _judge(gates: "Sequence[Gate]") -> None:
    """Print a line for each exceeded limit, and return exit code 1 if there is one."""
    words = {"oscillating": "of its weights oscillate", "flips_per_step": "of its codes flip in a step"}
    failed = [gate for gate in gates if not gate.met]
    for gate in failed:
        figure = f"{_share(gate.value)} {words[gate.figure]}"
        tell(f"gate: {gate.layer}: {figure}, the limit is {_share(gate.limit)}")
    if failed:
        raise typer.Exit(1)


def _render(result: "Analysis", top: int, html: Path | None) -> Iterator[Table | str]:
    for report in result.checkpoints:
        yield from _checkpoint(report, top)
    for change in result.changes:
        yield from _change(change, top)
    if result.live:
        yield from _live(result.live, top)
    yield "Found:"
    for finding in result.findings:
        yield f"- {finding.text}"
        option = f" ({finding.option})" if finding.option else ""
        yield f"  {finding.advice}{option}"
    if html is not None:
        yield f"\nwritten   to {html}"


def _checkpoint(report: "Report", top: int) -> Iterator[Table | str]:
    about = [report.kind, report.model, report.recipe and f"recipe {report.recipe}"]
    about += [f"{report.steps} steps tracked" if report.steps else None]
    yield f"{report.path}: {', '.join(part for part in about if part)}"
    for what, reason in report.missing.items():
        yield f"  {what}: unknown: {reason}"
    yield ""
    together = [*report.roles.items(), ("all", report.total)]
    yield _table(["role", ">layers"], {(role, str(one.layers)): dict(one) for role, one in together})
    yield ""
    layers = sorted(report.layers, key=_rank, reverse=True)[:top]
    what = "that oscillate most" if layers[0].tracked else "nearest to thresholds" if layers[0].latents else ""
    flat: dict[tuple[str, str], dict[str, Any]] = {(layer.name, layer.role): _flat(layer) for layer in layers}
    yield _table([f"layers {what}".strip(), "role"], flat)
    yield ""


def _flat(layer: "AnalyzedLayer") -> dict[str, Any]:
    """The figures of a layer, under the names that those of a role have."""
    return dict(layer) | dict(layer.tracked or ()) | dict(layer.latents or ()) | dict(layer.codes)


def _table(head: list[str], rows: dict[tuple[str, str], dict[str, Any]]) -> Table:
    """A table with the figures that at least one row has."""
    columns: dict[str, Callable[[Mapping[str, Any]], str]] = {
        "->weights": lambda row: str(row["weights"]),
        ">oscillating": lambda row: _share(row.get("oscillating")),
        ">changed a step": lambda row: _share(row.get("flips_per_step")),
        ">moved": lambda row: _share(row.get("moved")),
        "->signs": lambda row: _share(row.get("signs_moved")),
        "->magnitudes": lambda row: _share(row.get("magnitudes_moved")),
        ">never changed": lambda row: _share(row.get("never_flipped")),
        "->within 0.005": lambda row: _share((row.get("within") or {}).get("0.005")),
        "->clipped": lambda row: _share(row.get("clipped")),
        "->dead codes": lambda row: _share(row["unused"]),
        "->bits used": lambda row: f"{row['entropy']:.2f} of {row['bits']:.2g}",
    }
    shown = {title: cell for title, cell in columns.items() if any(cell(row) for row in rows.values())}
    table = Table([*head, *shown])
    for first, row in rows.items():
        table.add(*first, *(cell(row) for cell in shown.values()))
    return table


def _rank(layer: "AnalyzedLayer") -> float:
    """Sort key of layers: share of oscillating weights, else of weights near thresholds."""
    if layer.tracked:
        return layer.tracked.oscillating
    return layer.latents.within["0.005"] if layer.latents else 0.0


def _change(change: "Change", top: int) -> Iterator[Table | str]:
    trend = f", {change.trend} than before" if change.trend in ("more", "less") else ""
    title = f"{change.before} -> {change.after}: {_share(change.codes_changed)} of the codes changed{trend}"
    table = Table(
        ["layer", "role", ">codes changed", ">mean distance", ">step drift 10 %", ">median", ">90 %"], title=title
    )
    for layer in sorted(change.layers, key=lambda row: -row.codes_changed)[:top]:
        drift = [f"{100 * value:+.2f} %" for value in layer.step_drift.values()]
        table.add(layer.name, layer.role, _share(layer.codes_changed), f"{layer.distance:.2f}", *drift)
    yield table
    yield ""


def _live(live: "Live", top: int) -> Iterator[Table | str]:
    title = (
        f"{len(live.steps)} live steps, phase {live.phase}, learning rate {live.lr:.2g}, "
        f"batches of {live.batch_size}, {live.data}"
    )
    table = Table(["layers that flip most", "role", ">flips a step", ">back", ">gradients keep sign"], title=title)
    for layer in sorted(live.layers, key=lambda row: -row.flips_per_step)[:top]:
        table.add(layer.name, layer.role, *_moves(layer))
    table.add("all", "", *_moves(live.total))
    yield table
    yield ""
    title = f"activation codes on {live.probe_images} fixed images"
    acts = Table(["that change most", "operand", ">bits", ">changed a step"], title=title)
    for activation in sorted(live.activations, key=lambda row: -row.changed)[:top]:
        acts.add(activation.name, activation.operand, activation.bits, _share(activation.changed))
    acts.add("all", "", "", _share(live.activations_changed))
    yield acts
    yield ""


def _moves(figures: "LiveWeights") -> list[str]:
    return [_share(share) for share in (figures.flips_per_step, figures.oscillations_per_step, figures.sign_agreement)]


def _share(value: float | None) -> str:
    """A share in percent, with three significant digits."""
    return "" if value is None else f"{100 * value:.3g} %"
