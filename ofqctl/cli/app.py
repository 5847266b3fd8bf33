"""The program ``ofqctl``: its commands and exit codes.

Exit codes: 0 success, 1 an error that the user can fix, 2 wrong usage, 70 a bug, 130 interrupted.
"""

import os
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from typer.core import TyperGroup
from typer.main import get_command

from ofqctl import __version__
from ofqctl.cli import (
    analyze_oscillation,
    bench,
    compare,
    evaluate,
    export,
    importing,
    inspect,
    models,
    predict,
    quantize,
    recipe,
    sensitivity,
    train,
)
from ofqctl.cli.arguments import spread
from ofqctl.cli.examples import examples
from ofqctl.cli.printing import finish, give_up_stdout, prepare_streams, say, tell
from ofqctl.errors import OfqctlError, OutputError, disk_fault

FAULT, BUG, INTERRUPTED = 1, 70, 130


class _Commands(TyperGroup):
    """The group of commands, which handles Ctrl-C with a message."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            tell("\ninterrupted; nothing was written")
            raise typer.Exit(INTERRUPTED) from None


app = typer.Typer(
    cls=_Commands,
    name="ofqctl",
    help="Quantize any timm vision transformer to 2-8 bits, measure it, and store it at its real bit-width.",
    epilog=examples(quantize.EXAMPLES[0], evaluate.EXAMPLES[0], inspect.EXAMPLES[0], predict.EXAMPLES[0]),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("quantize", epilog=examples(*quantize.EXAMPLES))(quantize.quantize)
app.command("train", epilog=examples(*train.EXAMPLES))(train.train)
app.command("evaluate", epilog=examples(*evaluate.EXAMPLES))(evaluate.evaluate)
app.command("predict", epilog=examples(*predict.EXAMPLES))(predict.predict)
app.command("inspect", epilog=examples(*inspect.EXAMPLES))(inspect.inspect)
app.command("export", epilog=examples(*export.EXAMPLES))(export.export)
app.command("models", epilog=examples(*models.EXAMPLES))(models.models)
app.command("sensitivity", epilog=examples(*sensitivity.EXAMPLES))(sensitivity.sensitivity)
app.command("import", epilog=examples(*importing.EXAMPLES))(importing.import_)
app.command("analyze-oscillation", epilog=examples(*analyze_oscillation.EXAMPLES))(
    analyze_oscillation.analyze_oscillation
)
app.command("compare", epilog=examples(*compare.EXAMPLES))(compare.compare)
app.add_typer(recipe.app, name="recipe")
app.add_typer(bench.app, name="bench")


def _print_version(wanted: bool) -> None:
    if wanted:
        say(f"ofqctl {__version__}")
        raise typer.Exit


@app.callback()
def _program(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
    ] = False,
) -> None:
    pass


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Arguments after the program's name; None uses those of the process.

    Returns:
        The exit code.
    """
    prepare_streams()
    try:
        code = _run(spread(sys.argv[1:] if arguments is None else arguments))
        finish()
    except Exception as error:  # noqa: BLE001
        return _failed(error)
    return code


def _failed(error: Exception) -> int:
    """Tell what went wrong, and return the exit code."""
    if not isinstance(error, OfqctlError) and (fault := disk_fault(error)) is not None:
        error = OutputError(f"a file cannot be read or written: {fault}")
    if isinstance(error, BrokenPipeError | OutputError):
        give_up_stdout()
    if isinstance(error, BrokenPipeError):  # a reader that goes away, as `head` does, is no news
        return FAULT
    if not isinstance(error, OfqctlError) or os.environ.get("OFQCTL_DEBUG") == "1":
        tell("".join(traceback.format_exception(error)))
    if not isinstance(error, OfqctlError):
        tell("ofqctl: this is a bug; please report it with the lines above")
        return BUG
    tell(f"error: {error.message}")
    if error.hint:
        tell(f"hint: {error.hint}")
    return FAULT


def _run(arguments: Sequence[str]) -> int:
    try:
        get_command(app).main(args=list(arguments), prog_name="ofqctl")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0
