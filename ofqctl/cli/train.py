"""``ofqctl train``."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ofqctl.cli import options
from ofqctl.cli.groups import flag, given, group, option
from ofqctl.cli.output import Sink, Table, megabytes
from ofqctl.cli.printing import tell
from ofqctl.cli.summary import left_float_lines, next_commands

if TYPE_CHECKING:
    from ofqctl.recipe import Recipe
    from ofqctl.results.train import TrainResult

EXAMPLES = (
    "ofqctl train deit_tiny_distilled --recipe ofq/vit_w2a2 --data imagenet/train --val-data imagenet/val",
    "ofqctl train local-dir:models/vit --recipe bench/imagenette_float --num-classes 10 --img-size 112 "
    "--data imagenette/train --val-data imagenette/val --output runs/float",
    "ofqctl train runs/float --recipe bench/imagenette_ofq_w2a2 --data imagenette/train --resume auto",
    "ofqctl train --resume runs/deit_tiny_distilled_patch16_224-w2a2",
)


class _Log(StrEnum):  # the parser does not accept lists of literals
    TENSORBOARD = "tensorboard"
    WANDB = "wandb"


@group("Recipe")
class _Recipe:
    recipe: str | None = option("NAME|FILE", "Recipe with a training part, or a YAML file; by default that of the run.")
    epochs: str | None = option("N", "Number of epochs in the first phase.")
    scale_lr: bool = flag("Scale the learning rates with the batch size, if --set changes it.", "--scale-lr")


@group("Data")
class _Images:
    data: str | None = option("DATA", "Labelled training images.")
    val_data: str | None = option("DATA", "Labelled images, measured after every epoch.")
    val_split: str | None = option("NAME", "Split of --val-data, or a part such as 'train[80%:]'.")
    soft_labels: Path | None = option(
        "FILE", "Soft labels that `ofqctl distill-cache` wrote: train on their crops, without asking the teacher."
    )
    check_data: bool = flag("Look at the headers of all images first, and end if some are no images.", "--check-data")


@group("Data")
class _Reading(options.StreamedDataOptions):
    split: str | None = option(
        "NAME", "Split of --data to train on, or a part such as 'train[:80%]'; by default its training split."
    )


@group("Output")
class _Output(options.RunOptions):
    resume: str | None = option(
        "RUN|auto", "Continue an interrupted run with its options; `auto`: the one in --output, if there is one."
    )
    force_recipe: bool = flag(
        "Continue although the recipe is not that of the interrupted run, with the new one.", "--force-recipe"
    )
    checkpoint_every: int | None = option(
        "N", "Optimizer steps between checkpoints; by default only after epochs.", min=0
    )
    log: list[_Log] | None = option(
        "tensorboard|wandb", "Also log figures with this program, in the run directory; may be given twice."
    )


@group("Execution")
class _Execution:  # a resumed run has these options already: without a value here its own hold
    device: options.Device | None = option("auto|cpu|cuda|mps", "Device to compute on.")
    amp: Literal["bf16"] | None = option(
        "bf16", "Compute in 16 bits where they suffice: faster on a GPU; weights stay in 32 bits."
    )
    compiled: bool = flag(
        "Compile the quantizers: about half a minute first, then faster steps; needs a C++ compiler.", "--compile"
    )
    time_budget: float | None = option(
        "SECONDS",
        "Time limit in seconds: at most half for stages ahead of training, then as many of the recipe's epochs as fit.",
    )
    grad_accum: int | None = option(
        "N", "Cut each batch into N parts, one after another: less memory, the same steps; by default 1.", min=1
    )
    workers: int | None = option(
        "N", "Processes that read and decode images beside this one; by default 0: this one reads them itself.", min=0
    )
    seed: int | None = option(
        "N", "Number that all random choices start from; the same number gives the same run; by default 0.", min=0
    )


def train(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="timm name, hf-hub:ORG/NAME, local-dir:PATH or a run directory; by default that of --resume RUN.",
            show_default=False,
        ),
    ] = None,
    *,
    recipe: _Recipe,
    settings: options.RecipeOptions,
    images: _Images,
    reading: _Reading,
    weights: options.ModelOptions,
    output: _Output,
    printing: options.PrintOptions,
    execution: _Execution,
) -> None:
    """Train a float or quantized model as a recipe says; it can be interrupted and resumed exactly."""
    run = None if output.resume in (None, "auto") else Path(str(output.resume))
    validation = ["--val-data"] * bool(images.val_data)
    _check_usage(
        {"MODEL": model, "--data": images.data, "--val-data": images.val_data},
        {
            "MODEL": given(weights),
            "--data": [*validation, *given(reading)],
            "--val-data": ["--val-split"] * bool(images.val_split),
        },
        resumed=run is not None,
    )

    from ofqctl.cli.failures import InterruptionError
    from ofqctl.jobs.train import TrainRequest, recorded_request
    from ofqctl.jobs.train import train as execute
    from ofqctl.training import Interrupted

    recorded = None if run is None else recorded_request(run)
    changes = settings.changes(("training.phases.0.epochs", recipe.epochs))
    validated = reading.labelled(images.val_data) if images.val_data else None
    asked: dict[str, Any] = {
        "model": weights.request(model) if model else None,
        "recipe": _recipe(recipe, changes, model, None if recorded is None else recorded.recipe),
        "data": reading.labelled(images.data) if images.data else None,
        "val_data": validated and replace(validated, split=images.val_split),
        "output": output.output,
        "overwrite": output.overwrite or None,
        "resume": run or output.resume,
        "force_recipe": output.force_recipe or None,
        "check_data": images.check_data or None,
        "soft_labels": images.soft_labels,
        "time_budget": execution.time_budget,
        "seed": execution.seed,
        "device": execution.device,
        "amp": execution.amp and True,
        "compiled": execution.compiled or None,
        "grad_accum": execution.grad_accum,
        "checkpoint_every": output.checkpoint_every,
        "workers": execution.workers,
        "logs": tuple(dict.fromkeys(name.value for name in output.log)) if output.log else None,
    }
    changed = {name: value for name, value in asked.items() if value is not None}
    request = TrainRequest(**changed) if recorded is None else replace(recorded, **changed)
    with printing.sink() as sink:
        try:
            result = execute(request, sink.progress, lambda row, total: _tell(sink, row, total))
        except Interrupted as interruption:
            command = f"ofqctl train --resume {shlex.quote(str(interruption.directory))}"
            left = f"interrupted; the state is saved, `{command}` continues"
            raise InterruptionError(left, interruption.signum) from None
        sink.show(result, lambda shown: _render(shown, None if request.val_data is None else request.val_data.path))


def _check_usage(has: dict[str, str | None], needs: dict[str, list[str]], *, resumed: bool) -> None:
    """Check that model and data are given unless a run is resumed, and that options do not refer to missing ones."""
    missing = [name for name in ("MODEL", "--data") if has[name] is None]
    if missing and not resumed:
        raise typer.BadParameter(f"{' and '.join(missing)}: missing; only --resume RUN needs neither")
    for name, useless in needs.items():
        if has[name] is None and useless:
            raise typer.BadParameter(f"{', '.join(useless)}: no effect without {name}")


def _recipe(asked: _Recipe, changes: list[str], model: str | None, of_run: "Recipe | None") -> "Recipe":
    """The named recipe, else that of the run to continue or to start from, with changes."""
    from ofqctl.recipe import catalogue
    from ofqctl.recipe.reading import build, change

    if asked.recipe is not None:
        base = catalogue.load(asked.recipe)
    elif of_run is not None:
        base = of_run
    else:
        from ofqctl.jobs.starting import recipe_of_run

        base = recipe_of_run(str(model))
    changed = build(change(base.model_dump(mode="json"), changes), where=f"recipe '{base.name}'")
    return _for_batch(base, changed, asked.scale_lr)


def _for_batch(shipped: "Recipe", resolved: "Recipe", scale_lr: bool) -> "Recipe":
    """Scale the learning rates to a batch size that is not the recipe's, or note that they are not scaled."""
    if shipped.training is None or resolved.training is None:
        return resolved
    factor = resolved.training.batch_size / shipped.training.batch_size
    if factor != 1.0 and scale_lr:
        return resolved.model_copy(update={"training": resolved.training.scaled(factor)})
    if factor != 1.0:
        sizes = (
            f"{resolved.training.batch_size} images, the recipe's learning rates are for {shipped.training.batch_size}"
        )
        tell(f"note: the batch has {sizes}; --scale-lr scales them")
    return resolved


def _tell(sink: Sink, row: dict[str, Any], total: int) -> None:
    """Report one optimizer step."""
    right = f"top-1 {row['train_top1']:.1f} %, " if "train_top1" in row else ""
    figures = f"loss {row['loss']:.3f}, {right}lr {row['lr']:.2g}"
    if "oscillating" in row:
        figures += f", {100 * row['oscillating']:.2f} % oscillating"
    speed = f"{row['images_per_second']:.0f} images/s"
    sink.progress("train", row["step"], total, f"{row['phase']} epoch {row['epoch']}: {figures}, {speed}")


def _render(result: "TrainResult", data: str | None) -> Iterator[Any]:
    training = result.training
    rows = [row.model_dump() for row in training.epochs] if training else []
    columns = {
        "phase": "phase",
        ">epoch": "epoch",
        ">loss": "loss",
        ">train top-1": "train_top1",
        ">val top-1": "val_top1",
        ">val kNN": "val_knn",
        ">val recall@1": "val_recall1",
        ">val cosine": "val_cosine",
        ">oscillating": "oscillating",
        ">codes changed a step": "flips_per_step",
        ">moved": "moved",
        ">seconds": "seconds",
    }
    shown = {title: key for title, key in columns.items() if any(key in row for row in rows)}
    table = Table(list(shown))
    for row in rows:
        table.add(*(_cell(key, row.get(key)) for key in shown.values()))
    if rows:
        yield table
        yield ""
    yield f"size      {megabytes(result.size.float_model)} in float, {megabytes(result.size.total)} now"
    yield from left_float_lines(result.left_float)
    if training and training.skipped:
        first = training.skipped[0]
        yield f"skipped   {len(training.skipped)} training images, first {first.image}: {first.reason}"
    yield from next_commands(Path(str(result.output)), data)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in ("oscillating", "flips_per_step", "moved"):
        return f"{100 * value:.3f} %"
    if key in ("train_top1", "val_top1", "val_knn", "val_recall1"):
        return f"{value:.2f} %"
    if key == "val_cosine":
        return f"{value:.4f}"
    return f"{value:.3f}" if key == "loss" else f"{value:.1f}" if isinstance(value, float) else str(value)
