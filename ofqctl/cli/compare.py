"""``ofqctl compare``."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ofqctl.cli import options
from ofqctl.cli.groups import group, option
from ofqctl.cli.output import Table, megabytes

if TYPE_CHECKING:
    from ofqctl.results.compare import Comparison

EXAMPLES = (
    "ofqctl compare runs/lsq runs/statsq runs/ofq --html compared.html",
    "ofqctl compare runs/float runs/deit_small-w4a4 --json",
)


@group("Output")
class _Output:
    html: Path | None = option("FILE", "Write an HTML page: one self-contained file.")


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(metavar="RUN ...", help="Run directories, written by any command.", show_default=False),
    ],
    *,
    output: _Output,
    printing: options.PrintOptions,
) -> None:
    """Compare runs side by side: bits, size, accuracy, oscillation and training time."""
    from ofqctl.jobs.compare import CompareRequest
    from ofqctl.jobs.compare import compare as run

    html = output.html
    with printing.sink() as sink:
        sink.show(run(CompareRequest(runs, html)), lambda shown: _render(shown, html))


def _render(result: "Comparison", html: Path | None) -> Iterator[Table | str]:
    columns = [
        "run",
        "-model",
        "-recipe",
        ">bits",
        ">size",
        ">top-1",
        ">oscillating",
        "->changed a step",
        "->training s",
    ]
    table = Table(columns)
    for run in result.runs:
        table.add(
            run.run,
            run.model,
            run.recipe,
            f"W{run.weight_bits}A{run.activation_bits}",
            megabytes(run.bytes),
            "" if run.top1 is None else f"{run.top1:.2f} %",
            "" if run.oscillating is None else f"{100 * run.oscillating:.3g} %",
            "" if run.flips_per_step is None else f"{100 * run.flips_per_step:.3g} %",
            "" if run.seconds is None else f"{run.seconds:.0f}",
        )
    yield table
    if html is not None:
        yield f"\nwritten   to {html}"
