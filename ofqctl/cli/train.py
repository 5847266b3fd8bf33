"""``ofqctl train``."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ofqctl.cli import options
from ofqctl.cli.output import Sink, Table, megabytes
from ofqctl.cli.summary import left_float_lines, next_commands

if TYPE_CHECKING:
    from ofqctl.recipe import Recipe

EXAMPLES = (
    "ofqctl train deit_tiny_distilled --recipe ofq/vit_w2a2 --data imagenet/train --val-data imagenet/val",
    "ofqctl train local-dir:models/vit --recipe bench/imagenette_float --num-classes 10 --img-size 112 "
    "--data imagenette/train --val-data imagenette/val --output runs/float",
    "ofqctl train runs/float --recipe bench/imagenette_ofq_w2a2 --data imagenette/train --resume auto",
)


def train(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="timm name, hf-hub:ORG/NAME, local-dir:PATH, or a run whose model is float."
        ),
    ],
    recipe: Annotated[
        str,
        typer.Option(
            help="Recipe with a training part, or a YAML file.", metavar="NAME|FILE", rich_help_panel="Recipe"
        ),
    ],
    data: Annotated[str, typer.Option(help="Labelled training images.", metavar="DATA", rich_help_panel="Data")],
    assignments: options.Assignments = None,
    epochs: Annotated[
        str | None,
        typer.Option(help="Epochs of the first phase.", metavar="N", rich_help_panel="Recipe"),
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
    val_split: Annotated[str | None, typer.Option(help="Part of them.", metavar="NAME", rich_help_panel="Data")] = None,
    image_column: options.ImageColumn = None,
    label_column: options.LabelColumn = None,
    class_map: options.ClassMap = None,
    checkpoint: options.Checkpoint = None,
    no_pretrained: options.NoPretrained = False,
    num_classes: options.NumClasses = None,
    img_size: options.ImgSize = None,
    model_kwargs: options.ModelKwargs = None,
    output: options.Output = None,
    overwrite: options.Overwrite = False,
    resume: Annotated[
        Literal["auto", "must"] | None,
        typer.Option(
            help="Go on where the run in --output stopped: `auto` starts anew if there is none, `must` does not.",
            rich_help_panel="Output",
        ),
    ] = None,
    force_recipe: Annotated[
        bool,
        typer.Option("--force-recipe", help="Resume although the recipe differs.", rich_help_panel="Output"),
    ] = False,
    checkpoint_every: Annotated[
        int, typer.Option(help="Steps between checkpoints; 0: after epochs only.", min=0, rich_help_panel="Output")
    ] = 0,
    as_json: options.Json = False,
    device: options.Device = "auto",
    amp: Annotated[
        Literal["bf16"] | None, typer.Option(help="Autocast to bfloat16.", rich_help_panel="Execution")
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
        int, typer.Option(help="Forward passes in one step.", min=1, rich_help_panel="Execution")
    ] = 1,
    workers: options.Workers = 0,
    seed: options.Seed = 0,
) -> None:
    """Train a float or a quantized model as a recipe says; interrupt it and resume it exactly."""
    from ofqctl.recipe import catalogue

    changes = [] if epochs is None else [f"training.phases.0.epochs={epochs}"]
    resolved = _for_batch(catalogue.load(recipe), catalogue.load(recipe, [*changes, *(assignments or [])]), scale_lr)

    from ofqctl.jobs.train import TrainRequest
    from ofqctl.jobs.train import train as run
    from ofqctl.training import Interrupted

    columns: dict[str, Any] = {
        "image_column": image_column,
        "label_column": label_column,
        "class_map": class_map,
        "streaming": False,
    }
    request = TrainRequest(
        model=options.model_request(
            model,
            checkpoint=checkpoint,
            no_pretrained=no_pretrained,
            num_classes=num_classes,
            img_size=img_size,
            model_kwargs=model_kwargs,
        ),
        recipe=resolved,
        data=options.data_spec(data, split=split, **columns),
        val_data=options.data_spec(val_data, split=val_split, **columns) if val_data else None,
        output=output,
        overwrite=overwrite,
        resume=resume,
        force_recipe=force_recipe,
        seed=seed,
        device=device,
        amp=amp is not None,
        compiled=compiled,
        grad_accum=grad_accum,
        checkpoint_every=checkpoint_every,
        workers=workers,
    )
    with Sink(as_json=as_json) as sink:
        told = _Steps(sink)
        try:
            result = run(request, sink.progress, told.step)
        except Interrupted as interruption:
            print("\ninterrupted; the state is saved, the same command with --resume auto goes on", file=sys.stderr)
            raise typer.Exit(128 + interruption.signum) from None
        if int(os.environ.get("RANK", "0")) == 0:
            sink.show(result, lambda shown: _render(shown, val_data))


def _for_batch(shipped: "Recipe", resolved: "Recipe", scale_lr: bool) -> "Recipe":
    """Learning rates for a batch size that is not the recipe's, or a note that they are those of the other."""
    if shipped.training is None or resolved.training is None:
        return resolved
    factor = resolved.training.batch_size / shipped.training.batch_size
    if factor != 1.0 and scale_lr:
        return resolved.model_copy(update={"training": resolved.training.scaled(factor)})
    if factor != 1.0:
        sizes = (
            f"{resolved.training.batch_size} images, the recipe's learning rates are for {shipped.training.batch_size}"
        )
        print(f"note: the batch has {sizes}; --scale-lr scales them", file=sys.stderr)
    return resolved


class _Steps:
    """Progress of training: a bar with figures on a terminal, else a line every ten seconds."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._started = time.monotonic()
        self._first: int | None = None

    def step(self, row: dict[str, Any], total: int) -> None:
        """Tell one optimizer step."""
        if int(os.environ.get("RANK", "0")) != 0:
            return
        done = row["step"]
        self._first = done - 1 if self._first is None else self._first
        left = (time.monotonic() - self._started) / (done - self._first) * (total - done)
        figures = f"loss {row['loss']:.3f}, top-1 {row['train_top1']:.1f} %, lr {row['lr']:.2g}"
        speed = f"{row['images_per_second']:.0f} images/s, {left / 60:.1f} min left"
        self._sink.progress("train", done, total, f"{row['phase']} epoch {row['epoch']}: {figures}, {speed}")


def _render(result: dict[str, Any], data: str | None) -> Iterator[Any]:
    rows = result["training"]["epochs"]
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
    yield table
    yield ""
    size = result["size"]
    yield f"size      {megabytes(size['float_model'])} in float, {megabytes(size['total'])} now"
    yield from left_float_lines(result["left_float"])
    yield from next_commands(Path(result["output"]), data)


def _cell(key: str, value: Any) -> str:
    if value is None:
        return ""
    if key in ("oscillating", "flips_per_step"):
        return f"{100 * value:.3f} %"
    if key in ("train_top1", "val_top1"):
        return f"{value:.2f} %"
    return f"{value:.3f}" if key == "loss" else f"{value:.1f}" if isinstance(value, float) else str(value)
