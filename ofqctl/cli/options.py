"""Options that several commands share, with timm's names where timm has them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ofqctl.cli.arguments import parse_model_kwargs
from ofqctl.errors import ModelError

if TYPE_CHECKING:
    from ofqctl.data import DataSpec
    from ofqctl.models import ModelRequest

_MODEL, _DATA, _OUTPUT, _RUN = "Model", "Data", "Output", "Execution"

FloatModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="timm name (deit_small_patch16_224), short name (deit_small), hf-hub:ORG/NAME or local-dir:PATH.",
        show_default=False,
    ),
]
AnyModel = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Run directory, the model.safetensors in one, an ONNX file, or a float model: timm name, hf-hub:...",
        show_default=False,
    ),
]
Checkpoint = Annotated[
    Path | None,
    typer.Option(
        help="Weights of the float model (.safetensors, .pth); no code in the file is executed.",
        metavar="FILE",
        rich_help_panel=_MODEL,
    ),
]
NoPretrained = Annotated[
    bool, typer.Option("--no-pretrained", help="Use random weights; nothing is downloaded.", rich_help_panel=_MODEL)
]
NumClasses = Annotated[
    int | None,
    typer.Option(
        help="Number of classes; a classifier of another size is replaced.", metavar="N", rich_help_panel=_MODEL
    ),
]
ImgSize = Annotated[
    int | None, typer.Option(help="Height and width of the images in pixels.", metavar="PIXELS", rich_help_panel=_MODEL)
]
ModelKwargs = Annotated[
    list[str] | None,
    typer.Option(
        help="Arguments of the architecture, several after one flag: embed_dim=192 depth=12.",
        metavar="K=V ...",
        rich_help_panel=_MODEL,
    ),
]
Mean = Annotated[
    str | None,
    typer.Option(
        help="Mean of the channels in 0..1, for an ONNX file that does not contain it.",
        metavar="R,G,B",
        rich_help_panel=_MODEL,
    ),
]
Std = Annotated[
    str | None,
    typer.Option(
        help="Standard deviation of the channels, for an ONNX file that does not contain it.",
        metavar="R,G,B",
        rich_help_panel=_MODEL,
    ),
]

Data = Annotated[
    str | None,
    typer.Option(
        help="Labelled images to measure on: folder with a subfolder per class, parquet folder, hfds/NAME or digits.",
        metavar="DATA",
        rich_help_panel=_DATA,
    ),
]
RequiredData = Annotated[
    str,
    typer.Option(
        help="Labelled images: folder with a subfolder per class, parquet folder, hfds/NAME or digits.",
        metavar="DATA",
        rich_help_panel=_DATA,
        show_default=False,
    ),
]
Split = Annotated[
    str | None,
    typer.Option(
        help="Split of the data; by default the validation or test split.", metavar="NAME", rich_help_panel=_DATA
    ),
]
ImageColumn = Annotated[
    str | None, typer.Option(help="Column of a table that contains the images.", metavar="NAME", rich_help_panel=_DATA)
]
LabelColumn = Annotated[
    str | None, typer.Option(help="Column of a table that contains the labels.", metavar="NAME", rich_help_panel=_DATA)
]
ClassMap = Annotated[
    Path | None,
    typer.Option(help="File that maps classes to labels.", metavar="FILE", rich_help_panel=_DATA),
]
Streaming = Annotated[
    bool, typer.Option("--streaming", help="Read a table while it is downloaded.", rich_help_panel=_DATA)
]
Limit = Annotated[
    int | None,
    typer.Option(help="Number of images to use, drawn at random from all.", metavar="N", min=1, rich_help_panel=_DATA),
]

CalibData = Annotated[
    str | None,
    typer.Option(
        help="Images for calibration (labels are not used); without this option, synthetic images are used.",
        metavar="DATA",
        rich_help_panel=_DATA,
    ),
]
CalibSplit = Annotated[
    str | None,
    typer.Option(help="Split of --calib-data; by default the training split.", metavar="NAME", rich_help_panel=_DATA),
]
CalibImages = Annotated[
    str | None, typer.Option(help="Number of calibration images.", metavar="N", rich_help_panel=_DATA)
]

Output = Annotated[
    Path | None,
    typer.Option(help="Run directory to write; by default runs/MODEL-wWaA.", metavar="DIR", rich_help_panel=_OUTPUT),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.", rich_help_panel=_OUTPUT)]
Json = Annotated[
    bool,
    typer.Option("--json", help="Print the result as one JSON document.", rich_help_panel=_OUTPUT),
]

Device = Annotated[
    Literal["auto", "cpu", "cuda", "mps"],
    typer.Option(help="Device to compute on.", metavar="auto|cpu|cuda|mps", rich_help_panel=_RUN),
]
BatchSize = Annotated[int, typer.Option(help="Images in one forward pass.", metavar="N", min=1, rich_help_panel=_RUN)]
Workers = Annotated[
    int, typer.Option(help="Number of processes that decode images.", metavar="N", min=0, rich_help_panel=_RUN)
]
Seed = Annotated[
    int,
    typer.Option(help="Seed of random weights and images.", metavar="N", min=0, rich_help_panel=_RUN),
]

Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Change keys of the recipe, several after one flag: weights.bits=4 calibration.images=64.",
        metavar="A.B=C ...",
        rich_help_panel="Recipe",
    ),
]


def model_request(
    name: str,
    checkpoint: Path | None,
    no_pretrained: bool,
    num_classes: int | None,
    img_size: int | None,
    model_kwargs: list[str] | None,
) -> "ModelRequest":
    """The model request from the options with these names."""
    from ofqctl.models import ModelRequest

    return ModelRequest(
        name,
        checkpoint=checkpoint,
        pretrained=not no_pretrained,
        num_classes=num_classes,
        img_size=img_size,
        kwargs=parse_model_kwargs(model_kwargs or []),
    )


def data_spec(
    path: str,
    split: str | None,
    image_column: str | None,
    label_column: str | None,
    class_map: Path | None,
    streaming: bool,
) -> "DataSpec":
    """The data spec from the options with these names."""
    from ofqctl.data import DataSpec

    return DataSpec(path, split, image_column, label_column, class_map, streaming)


def normalization(mean: str | None, std: str | None) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Parse ``--mean`` and ``--std``; None if neither is given.

    Raises:
        ModelError: Only one is given, or a value is not three numbers.
    """
    if mean is None and std is None:
        return None
    values = []
    for name, text in (("--mean", mean), ("--std", std)):
        try:
            numbers = tuple(float(part) for part in (text or "").split(","))
        except ValueError:
            numbers = ()
        if len(numbers) != 3 or (name == "--std" and min(numbers) <= 0):
            raise ModelError(
                f"{name} {text or 'is missing'}: expected three numbers, those of --std above 0",
                hint="--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225",
            )
        values.append(numbers)
    return values[0], values[1]
