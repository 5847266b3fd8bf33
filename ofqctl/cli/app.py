"""The program ``ofqctl``: its commands and exit codes.

Exit codes: 0 success, 1 an error that the user can fix, 2 wrong usage, 70 a bug, 130 interrupted.
"""

import sys
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
    distill_cache,
    doctor,
    evaluate,
    export,
    garbage,
    importing,
    inspect,
    models,
    predict,
    push,
    quantize,
    recipe,
    sensitivity,
    study,
    train,
)
from ofqctl.cli.arguments import spread
from ofqctl.cli.commands import command, examples
from ofqctl.cli.printing import finish, prepare_streams, say


class _Commands(TyperGroup):
    """The group of commands, which makes Ctrl-C a failure like others."""

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        """Run a command."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            from ofqctl.cli.failures import InterruptionError

            raise InterruptionError from None


app = typer.Typer(
    cls=_Commands,
    name="ofqctl",
    help="Quantize any timm vision transformer to 2-8 bits, measure it, and store it at its real bit-width.",
    epilog=examples(quantize.EXAMPLES[0], evaluate.EXAMPLES[0], inspect.EXAMPLES[0], predict.EXAMPLES[0]),
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
command(app, "quantize", *quantize.EXAMPLES)(quantize.quantize)
command(app, "train", *train.EXAMPLES)(train.train)
command(app, "evaluate", *evaluate.EXAMPLES)(evaluate.evaluate)
command(app, "predict", *predict.EXAMPLES)(predict.predict)
command(app, "inspect", *inspect.EXAMPLES)(inspect.inspect)
command(app, "export", *export.EXAMPLES)(export.export)
command(app, "push", *push.EXAMPLES)(push.push)
command(app, "models", *models.EXAMPLES)(models.models)
command(app, "sensitivity", *sensitivity.EXAMPLES)(sensitivity.sensitivity)
command(app, "import", *importing.EXAMPLES)(importing.import_)
command(app, "analyze-oscillation", *analyze_oscillation.EXAMPLES)(analyze_oscillation.analyze_oscillation)
command(app, "compare", *compare.EXAMPLES)(compare.compare)
command(app, "distill-cache", *distill_cache.EXAMPLES)(distill_cache.distill_cache)
command(app, "doctor", *doctor.EXAMPLES)(doctor.doctor)
app.add_typer(recipe.app, name="recipe")
app.add_typer(bench.app, name="bench")
app.add_typer(study.app, name="study")


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


def parsed(arguments: Sequence[str]) -> Any:
    """Parse the words after the program's name as the program does, and run nothing; gives typer's context.

    Raises:
        Exception: They are no command, or not such options; as typer has it.
    """
    command: Any = get_command(app)
    left = spread(arguments)
    context: Any = None
    while True:
        context = command.make_context(command.name, list(left), parent=context)
        if not hasattr(command, "commands"):
            return context
        _, command, left = command.resolve_command(context, context._protected_args + context.args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the program.

    Args:
        arguments: Arguments after the program's name; None uses those of the process.

    Returns:
        The exit code.
    """
    if arguments is None:
        garbage.pause()
        code = _main(sys.argv[1:])
        garbage.leave()
        return code
    return _main(arguments)


def _main(arguments: Sequence[str]) -> int:
    prepare_streams()
    words = spread(arguments)
    as_json = "--json" in words
    try:
        code = _run(words, as_json=as_json)
        finish()
    except Exception as error:  # noqa: BLE001
        from ofqctl.cli.failures import failed

        return failed(error, as_json=as_json)
    return code


def _run(words: Sequence[str], *, as_json: bool) -> int:
    try:
        get_command(app).main(args=list(words), prog_name="ofqctl")
    except SystemExit as end:
        if end.code == 2:  # as typer ends wrong usage
            from ofqctl.cli.failures import misused

            return misused(end.__context__, as_json=as_json)
        return end.code if isinstance(end.code, int) else 0
    return 0
