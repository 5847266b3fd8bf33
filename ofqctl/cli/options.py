"""Options that several commands share, with timm's names where timm has them: arguments, single options, groups."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from ofqctl.cli.arguments import parse_img_size, parse_model_kwargs
from ofqctl.cli.groups import flag, group, option
from ofqctl.cli.output import Sink
from ofqctl.errors import ModelError

if TYPE_CHECKING:
    from ofqctl.data import DataSpec
    from ofqctl.models import ModelRequest

_WORKERS = "Processes that read and decode images beside this one; 0: this one reads them itself."

Device = Literal["auto", "cpu", "cuda", "mps"]

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
Data = Annotated[
    str | None,
    typer.Option(
        help="Images to measure on: folder with a subfolder per class, parquet folder, hfds/NAME or digits.",
        metavar="DATA",
        rich_help_panel="Data",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.", rich_help_panel="Output")]
Workers = Annotated[int, typer.Option(help=_WORKERS, metavar="N", min=0, rich_help_panel="Execution")]
Seed = Annotated[
    int,
    typer.Option(
        help="Number that all random choices start from; the same number gives the same result.",
        metavar="N",
        min=0,
        rich_help_panel="Execution",
    ),
]


@group("Model")
class ArchitectureOptions:
    """The shapes of a model; its weights are random."""

    num_classes: int | None = option("N", "Number of classes; a classifier of another size is replaced.")
    img_size: str | None = option("PIXELS", "Height and width of the images in pixels: 224, or 224x128 (height first).")
    model_kwargs: list[str] | None = option(
        "K=V ...", "Arguments of the architecture, several after one flag: embed_dim=192 depth=12."
    )

    def size(self) -> int | tuple[int, int] | None:
        """Height and width of the images; None keeps the model's own."""
        return None if self.img_size is None else parse_img_size(self.img_size)

    def kwargs(self) -> dict[str, Any]:
        """Arguments of the architecture."""
        return parse_model_kwargs(self.model_kwargs or [])

    def request(self, name: str) -> "ModelRequest":
        """The request for the model with a name."""
        from ofqctl.models import ModelRequest

        return ModelRequest(
            name,
            pretrained=False,
            num_classes=self.num_classes,
            img_size=self.size(),
            kwargs=self.kwargs(),
        )


@group("Model")
class ModelOptions(ArchitectureOptions):
    """The weights of a model, and its shapes."""

    checkpoint: Path | None = option(
        "FILE", "Weights of the float model (.safetensors, .pth); no code in the file is executed."
    )
    no_pretrained: bool = flag("Use random weights; nothing is downloaded.", "--no-pretrained")
    features: bool = flag("Leave the classifier out: the model gives embeddings, timm's num_classes=0.", "--features")

    def request(self, name: str) -> "ModelRequest":
        """The request for the model with a name."""
        pretrained, features = not self.no_pretrained, self.features
        return replace(super().request(name), checkpoint=self.checkpoint, pretrained=pretrained, features=features)


@group("Model")
class SubjectOptions(ModelOptions):
    """Anything that can be evaluated."""

    mean: str | None = option("R,G,B", "Mean of the channels in 0..1, for an ONNX file that does not contain it.")
    std: str | None = option("R,G,B", "Standard deviation of the channels, for an ONNX file that does not contain it.")

    def normalization(self) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Parse ``--mean`` and ``--std``; None if neither is given.

        Raises:
            ModelError: Only one is given, or a value is not three numbers.
        """
        if self.mean is None and self.std is None:
            return None
        values = []
        for name, text in (("--mean", self.mean), ("--std", self.std)):
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


@group("Data")
class ImageOptions:
    """How images are read; labels are not used."""

    image_column: str | None = option(
        "NAME", "Column of a parquet or hub table that holds the images; by default it is found by its type."
    )

    def images(self, path: str, split: str | None) -> "DataSpec":
        """The images of a split."""
        from ofqctl.data import DataSpec

        return DataSpec(path, split, self.image_column)


@group("Data")
class DataOptions(ImageOptions):
    """How labelled images are read."""

    split: str | None = option(
        "NAME", "Split to read, such as val, or a part such as 'train[:80%]'; by default val, validation or test."
    )
    label_column: str | None = option(
        "NAME", "Column of a parquet or hub table that holds the labels; by default it is found by its type."
    )
    class_map: Path | None = option(
        "FILE", "File that says which class is which output of the model: a class name a line in order, or NAME NUMBER."
    )

    def labelled(self, path: str) -> "DataSpec":
        """The labelled images of the split."""
        return replace(self.images(path, self.split), label_column=self.label_column, class_map=self.class_map)


@group("Data")
class StreamedDataOptions(DataOptions):
    """How labelled images are read, while they are downloaded if the user wants."""

    streaming: bool = flag(
        "Read a dataset of the hub while it is downloaded, and keep nothing of it on the disk.", "--streaming"
    )

    def images(self, path: str, split: str | None) -> "DataSpec":
        """The images of a split."""
        return replace(super().images(path, split), streaming=self.streaming)


@group("Data")
class CalibrationOptions:
    """The images that ranges are measured on."""

    calib_data: str | None = option(
        "DATA", "Images for calibration (labels are not used); without this option, synthetic images are used."
    )
    calib_split: str | None = option(
        "NAME", "Split of --calib-data, or a part such as 'train[:80%]'; by default the training split."
    )
    calib_images: str | None = option("N", "Number of calibration images; by default as many as the recipe says.")

    def spec(self, reading: ImageOptions) -> "DataSpec | None":
        """The images, read as these options say; None for synthetic images."""
        return reading.images(self.calib_data, self.calib_split) if self.calib_data else None


@group("Data")
class EmbeddingOptions:
    """What embeddings are measured against."""

    index_data: str | None = option(
        "DATA", "Labelled images that embeddings are looked up among; by default, the others of --data."
    )
    index_split: str | None = option("NAME", "Split of --index-data; by default the training split.")
    tokens: bool = flag("Compare patch tokens as well as embeddings.", "--tokens")

    def index(self, reading: DataOptions) -> "DataSpec | None":
        """The images to look among, read as these options say; None for the others of the data."""
        if self.index_data is None:
            return None
        return replace(reading.labelled(self.index_data), split=self.index_split)


@group("Recipe")
class RecipeOptions:
    """Changes of a recipe."""

    assignments: list[str] | None = option(
        "A.B=C ...",
        "Change keys of the recipe, several after one flag: weights.bits=4 calibration.images=64.",
        "--set",
    )

    def changes(self, *shorthand: tuple[str, object]) -> list[str]:
        """The changes, after those of options that stand for a path; such an option counts if it is not None."""
        return [f"{path}={value}" for path, value in shorthand if value is not None] + (self.assignments or [])


@group("Output")
class RunOptions:
    """Where a run is written."""

    output: Path | None = option("DIR", "Run directory to write; by default runs/MODEL-wWaA.")
    overwrite: bool = flag("Replace existing output.", "--overwrite")


@group("Output")
class PrintOptions:
    """What is printed; every command has these."""

    as_json: bool = flag("Print the result as one JSON document.", "--json")
    quiet: bool = flag("Print the result alone: no progress, no notes, nothing about what to do next.", "--quiet", "-q")
    verbose: bool = flag("Also print what each part of the work takes, in seconds.", "--verbose", "-v")

    def sink(self) -> Sink:
        """Where the result goes."""
        if self.quiet and self.verbose:
            raise typer.BadParameter("--quiet and --verbose: only one of them can be given")
        return Sink(as_json=self.as_json, quiet=self.quiet, verbose=self.verbose)


@group("Execution")
class ExecutionOptions:
    """Where to compute, and how images get there."""

    device: Device = option("auto|cpu|cuda|mps", "Device to compute on.", default="auto")
    workers: int = option("N", _WORKERS, default=0, min=0)


@group("Execution")
class BatchedOptions(ExecutionOptions):
    """The same, and how many images at once."""

    batch_size: int = option("N", "Images in one forward pass.", default=64, min=1)
