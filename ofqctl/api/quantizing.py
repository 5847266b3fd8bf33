"""``ofqctl.quantize``."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ofqctl.api.images import batches_of_images, peeked
from ofqctl.api.module import loaded_of, of_quantized
from ofqctl.api.recipes import AnyRecipe, recipe_of
from ofqctl.artifact import save_run
from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName
from ofqctl.errors import ArtifactError, ModelError
from ofqctl.files import output_directory
from ofqctl.jobs.quantize import Quantized, QuantizeRequest, quantize_in_memory
from ofqctl.jobs.starting import open_float
from ofqctl.models import LoadedModel, ModelRequest, shapes_of, why_not_built_again
from ofqctl.progress import Progress, silent
from ofqctl.results.quantize import QuantizeResult

if TYPE_CHECKING:
    from ofqctl.api.module import Model


@dataclass(frozen=True)
class QuantizedModel:
    """What :func:`quantize` returns.

    Attributes:
        model: The quantized model, on the CPU and in evaluation mode, with ``preprocess``, ``label_names``, ``recipe``.
        result: What was done and measured.
    """

    model: "Model"
    result: QuantizeResult
    _made: Quantized
    _float: LoadedModel
    _shapes: dict[str, tuple[int, ...]]

    def save(self, path: str | Path, *, overwrite: bool = False) -> QuantizeResult:
        """Write a run directory, which every command and :func:`ofqctl.load` read.

        Returns:
            The result, with the path.

        Raises:
            ArtifactError: timm cannot build the architecture from its name, so that nobody could read the run; or the
                directory cannot be written.
        """
        if (reason := why_not_built_again(self._float, self._shapes)) is not None:
            raise ArtifactError(
                f"{path}: a run is built again by timm, and this model cannot be: {reason}",
                hint="model_kwargs={...} of ofqctl.quantize gives the arguments it was built with; torch.save and "
                "ofqctl.export take any model",
            )
        with output_directory(Path(path), overwrite=overwrite):
            save_run(Path(path), *self._made.files())
        return self.result.model_copy(update={"output": str(path)})


def quantize(
    model: str | Path | nn.Module,
    recipe: AnyRecipe = "deploy/w8a8",
    *,
    calibration: str | Path | Iterable[Any] | None = None,
    data: str | Path | None = None,
    index: str | Path | None = None,
    tokens: bool = False,
    features: bool = False,
    set: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    strict: bool = False,
    seed: int = 0,
    device: DeviceName = "auto",
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress = silent,
) -> QuantizedModel:
    """Quantize a float model; a model in memory is copied first.

    Args:
        model: A name as :func:`ofqctl.load` takes it, or a model in memory: any classifier with Linear, Conv2d or a
            known attention, built by timm or not, or a model of timm's without a classifier.
        recipe: The name of a shipped recipe, a YAML file, a recipe, or what a YAML file would hold.
        calibration: Images to calibrate on: a path as the commands take it, or what gives normalized batches, (B, 3, H,
            W), or pairs of these and labels, which are not used. As many as the recipe says are taken; if there are
            fewer, a note says so. None uses synthetic images.
        data: Images to measure the float and the quantized model on, as the commands take them, or None; labelled ones
            for a classifier.
        index: Images that embeddings of ``data`` are looked up among; None takes the others of ``data``.
        tokens: Whether patch tokens are compared as well as embeddings.
        features: Whether the classifier of a model by name is left out.
        set: Changes of the recipe by path, such as ``{"weights.bits": 4}``.
        output: Run directory to write, or None.
        overwrite: Whether to replace an existing run.
        model_kwargs: Arguments that a timm model in memory was built with, so that it can be saved as a run.
        strict: Whether anything left undone is an error.
        seed: Seed of random weights and of the choice of calibration images.
        device: Device to compute on.
        batch_size: Number of images in one forward pass of the evaluation.
        workers: Number of processes that decode images.
        progress: Called to report progress.

    Raises:
        OfqctlError: An error that the user can fix; it names the part of a model that cannot be quantized, and what an
            iterable gave in place of images.
    """
    size, images = None, _calibration(calibration)
    if images is not None and not isinstance(images, DataSpec):
        size, images = peeked(batches_of_images(images, "calibration"))
    if isinstance(model, nn.Module):
        loaded = loaded_of(model, model_kwargs, size)
    else:
        loaded = open_float(ModelRequest(str(model), kwargs=dict(model_kwargs or {}), features=features))
    _check_size(loaded, size)
    given = replace(loaded, notes=list(loaded.notes))
    shapes = shapes_of(loaded.model)
    request = QuantizeRequest(
        model=loaded,
        recipe=recipe_of(recipe, set),
        calibration=images,
        data=None if data is None else DataSpec(str(data)),
        index=None if index is None else DataSpec(str(index)),
        tokens=tokens,
        seed=seed,
        device=device,
        batch_size=batch_size,
        workers=workers,
        strict=strict,
    )
    made = quantize_in_memory(request, progress)
    if not made.result.quantized_modules:
        raise ModelError(_nothing(loaded, made))
    found = QuantizedModel(of_quantized(made.model.cpu(), made.config), made.result, made, given, shapes)
    if output is None:
        return found
    return replace(found, result=found.save(output, overwrite=overwrite))


def _calibration(given: str | Path | Iterable[Any] | None) -> DataSpec | Iterable[Any] | None:
    return DataSpec(str(given)) if isinstance(given, str | Path) else given


def _check_size(loaded: LoadedModel, size: tuple[int, int, int] | None) -> None:
    wanted = tuple(loaded.data_config["input_size"])
    if size is not None and size != wanted:
        raise ModelError(f"calibration: its images are {size}; {loaded.architecture} takes {wanted}")


def _nothing(loaded: LoadedModel, made: Quantized) -> str:
    left = [f"{left.module}: {left.reason}" for left in made.result.left_float]
    reason = "; ".join(left[:3]) or "it has no Linear, no Conv2d and no known attention"
    return f"{loaded.architecture}: nothing in it can be quantized: {reason}"
