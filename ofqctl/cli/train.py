"""``ofqctl train``."""

import shlex
from collections.abc import Iterator
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ofqctl.cli import options
from ofqctl.cli.output import Sink, Table, megabytes
from ofqctl.cli.printing import tell
from ofqctl.cli.summary import left_float_lines, next_commands

if TYPE_CHECKING:
    from ofqctl.recipe import Recipe

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


def train(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="timm name, hf-hub:ORG/NAME, local-dir:PATH or a run directory; by default that of --resume RUN.",
            show_default=False,
        ),
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            help="Recipe with a training part, or a YAML file; by default that of the run.",
            metavar="NAME|FILE",
            rich_help_panel="Recipe",
        ),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="Labelled training images.", metavar="DATA", rich_help_panel="Data")
    ] = None,
    assignments: options.Assignments = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="Number of epochs in the first phase.", metavar="N", rich_help_panel="Recipe"),
    ] = None,
    scale_lr: Annotated[
        bool,
        typer.Option(
            "--scale-lr",
            help="Scale the learning rates with the batch size, if --set changes it.",
            rich_help_panel="Recipe",
        ),
    ] = False,
    split: options.Split = None,
    val_data: Annotated[
        str | None,
        typer.Option(help="Labelled images, measured after every epoch.", metavar="DATA", rich_help_panel="Data"),
    ] = None,
    val_split: Annotated[
        str | None, typer.Option(help="Split of --val-data.", metavar="NAME", rich_help_panel="Data")
    ] = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    class_map: options.ClassMap = None,
    streaming: options.Streaming = False,
    check_data: Annotated[
        bool,
        typer.Option(
            "--check-data",
            help="Look at the headers of all images first, and end if some are no images.",
            rich_help_panel="Data",
        ),
    ] = False,
    checkpoint: options.Checkpoint = None,
    no_pretrained: options.NoPretrained = False,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    model_kwargs: options.ModelKwargs = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    resume: Annotated[
        str | None,
        typer.Option(
            help="Continue an interrupted run with its options; `auto`: the one in --output, if there is one.",
            metavar="RUN|auto",
            rich_help_panel="Output",
        ),
    ] = None,
    force_recipe: Annotated[
        bool,
        typer.Option("--force-recipe", help="Resume even if the recipe differs.", rich_help_panel="Output"),
    ] = False,
    checkpoint_every: Annotated[
        int | None,
        typer.Option(
            help="Optimizer steps between checkpoints; by default only after epochs.",
            metavar="N",
            min=0,
            rich_help_panel="Output",
        ),
    ] = None,
    log: Annotated[
        list[_Log] | None,
        typer.Option(
            help="Also log figures with this program, in the run directory; may be given twice.",
            metavar="tensorboard|wandb",
            rich_help_panel="Output",
        ),
    ] = None,
    as_json: options.Json = False,
    device: Annotated[
        Literal["auto", "cpu", "cuda", "mps"] | None,
        typer.Option(help="Device to compute on.", metavar="auto|cpu|cuda|mps", rich_help_panel="Execution"),
    ] = None,
    amp: Annotated[
        Literal["bf16"] | None,
        typer.Option(help="Autocast to bfloat16.", metavar="bf16", rich_help_panel="Execution"),
    ] = None,
    compiled: Annotated[
        bool,
        typer.Option(
            "--compile",
            help="Compile the quantizers: about half a minute first, then faster steps; needs a C++ compiler.",
            rich_help_panel="Execution",
        ),
    ] = False,
    grad_accum: Annotated[
        int | None,
        typer.Option(
            help="Forward passes in one optimizer step; by default 1.", metavar="N", min=1, rich_help_panel="Execution"
        ),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            help="Number of processes that decode images; by default 0.",
            metavar="N",
            min=0,
            rich_help_panel="Execution",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            help="Seed of random weights, order and augmentation; by default 0.",
            metavar="N",
            min=0,
            rich_help_panel="Execution",
        ),
    ] = None,
) -> None:
    """Train a float or quantized model as a recipe says; it can be interrupted and resumed exactly."""
    needs: dict[str, dict[str, Any]] = {
        "MODEL": {"--checkpoint": checkpoint, "--no-pretrained": no_pretrained, "--num-classes": num_classes}
        | {"--img-size": img_size, "--model-kwargs": model_kwargs},
        "--data": {"--split": split, "--val-data": val_data, "--image-column": image_column}
        | {"--label-column": label_column, "--class-map": class_map, "--streaming": streaming},
        "--val-data": {"--val-split": val_split},
    }
    run = None if resume in (None, "auto") else Path(str(resume))
    _check_usage({"MODEL": model, "--data": data, "--val-data": val_data}, needs, resumed=run is not None)

    from ofqctl.cli.failures import InterruptionError
    from ofqctl.jobs.train import TrainRequest, recorded_request
    from ofqctl.jobs.train import train as execute
    from ofqctl.training import Interrupted

    recorded = None if run is None else recorded_request(run)
    changes = [*([] if epochs is None else [f"training.phases.0.epochs={epochs}"]), *(assignments or [])]
    columns = (image_column, label_column, class_map, streaming)
    asked: dict[str, Any] = {
        "model": options.model_request(model, checkpoint, no_pretrained, num_classes, img_size, model_kwargs)
        if model
        else None,
        "recipe": _recipe(recipe, model, None if recorded is None else recorded.recipe, changes, scale_lr),
        "data": options.data_spec(data, split, *columns) if data else None,
        "val_data": options.data_spec(val_data, val_split, *columns) if val_data else None,
        "output": output,
        "overwrite": overwrite or None,
        "resume": run or resume,
        "force_recipe": force_recipe or None,
        "check_data": check_data or None,
        "seed": seed,
        "device": device,
        "amp": amp and True,
        "compiled": compiled or None,
        "grad_accum": grad_accum,
        "checkpoint_every": checkpoint_every,
        "workers": workers,
        "logs": tuple(dict.fromkeys(name.value for name in log)) if log else None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    request = TrainRequest(**given) if recorded is None else replace(recorded, **given)
    with Sink(as_json=as_json) as sink:
        try:
            result = execute(request, sink.progress, lambda row, total: _tell(sink, row, total))
        except Interrupted as interruption:
            command = f"ofqctl train --resume {shlex.quote(str(interruption.directory))}"
            left = f"interrupted; the state is saved, `{command}` continues"
            raise InterruptionError(left, interruption.signum) from None
        sink.show(result, lambda shown: _render(shown, None if request.val_data is None else request.val_data.path))


def _check_usage(given: dict[str, str | None], needs: dict[str, dict[str, Any]], *, resumed: bool) -> None:
    """Check that model and data are given unless a run is resumed, and that options do not refer to missing ones."""
    missing = [name for name in ("MODEL", "--data") if given[name] is None]
    if missing and not resumed:
        raise typer.BadParameter(f"{' and '.join(missing)}: missing; only --resume RUN needs neither")
    for name, more in needs.items():
        useless = [option for option, value in more.items() if value]
        if given[name] is None and useless:
            raise typer.BadParameter(f"{', '.join(useless)}: no effect without {name}")


def _recipe(
    name: str | None, model: str | None, of_run: "Recipe | None", changes: list[str], scale_lr: bool
) -> "Recipe":
    """The named recipe, else that of the run to continue or to start from, with changes."""
    from ofqctl.recipe import catalogue
    from ofqctl.recipe.reading import build, change

    if name is not None:
        base = catalogue.load(name)
    elif of_run is not None:
        base = of_run
    else:
        from ofqctl.jobs.starting import recipe_of_run

        base = recipe_of_run(Path(str(model)))
    changed = build(change(base.model_dump(mode="json"), changes), where=f"recipe '{base.name}'")
    return _for_batch(base, changed, scale_lr)


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
    figures = f"loss {row['loss']:.3f}, top-1 {row['train_top1']:.1f} %, lr {row['lr']:.2g}"
    if "oscillating" in row:
        figures += f", {100 * row['oscillating']:.2f} % oscillating"
    speed = f"{row['images_per_second']:.0f} images/s"
    sink.progress("train", row["step"], total, f"{row['phase']} epoch {row['epoch']}: {figures}, {speed}")


def _render(result: dict[str, Any], data: str | None) -> Iterator[Any]:
    rows = (result.get("training") or {}).get("epochs", [])
    columns = {
        "phase": "phase",
        ">epoch": "epoch",
        ">loss": "loss",
        ">train top-1": "train_top1",
        ">val top-1": "val_top1",
        ">oscillating": "oscillating",
        ">codes changed a step": "flips_per_step",
        ">seconds": "seconds",
    }
    shown = {title: key for title, key in columns.items() if any(key in row for row in rows)}
    table = Table(list(shown))
    for row in rows:
        table.add(*(_cell(key, row.get(key)) for key in shown.values()))
    if rows:
        yield table
        yield ""
    if "size" in result:  # left out where results.json of a finished run cannot be read
        size = result["size"]
        yield f"size      {megabytes(size['float_model'])} in float, {megabytes(size['total'])} now"
        yield from left_float_lines(result["left_float"])
    if skipped := result["training"].get("skipped"):
        yield f"skipped   {len(skipped)} training images, first {skipped[0]['image']}: {skipped[0]['reason']}"
    yield from next_commands(Path(result["output"]), data)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in ("oscillating", "flips_per_step"):
        return f"{100 * value:.3f} %"
    if key in ("train_top1", "val_top1"):
        return f"{value:.2f} %"
    return f"{value:.3f}" if key == "loss" else f"{value:.1f}" if isinstance(value, float) else str(value)
