"""``ofqctl.train``."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ofqctl.api.recipes import AnyRecipe, recipe_of
from ofqctl.data import DataSpec
from ofqctl.devices import DeviceName
from ofqctl.jobs.starting import recipe_of_run
from ofqctl.jobs.train import TrainRequest
from ofqctl.jobs.train import train as run
from ofqctl.models import ModelRequest
from ofqctl.progress import Progress, silent
from ofqctl.results.train import TrainResult
from ofqctl.training.logs import LogName


def train(
    model: str | Path,
    recipe: AnyRecipe | None = None,
    *,
    data: str | Path,
    val_data: str | Path | None = None,
    set: Mapping[str, Any] | None = None,
    output: str | Path | None = None,
    overwrite: bool = False,
    resume: Literal["auto"] | None = None,
    checkpoint: str | Path | None = None,
    pretrained: bool = True,
    num_classes: int | None = None,
    img_size: int | tuple[int, int] | None = None,
    features: bool = False,
    model_kwargs: Mapping[str, Any] | None = None,
    force_recipe: bool = False,
    check_data: bool = False,
    soft_labels: str | Path | None = None,
    checkpoint_every: int = 0,
    logs: Sequence[LogName] = (),
    time_budget: float | None = None,
    seed: int = 0,
    device: DeviceName = "auto",
    amp: bool = False,
    compiled: bool = False,
    grad_accum: int = 1,
    workers: int = 0,
    progress: Progress = silent,
) -> TrainResult:
    """Train a float or quantized model as a recipe says, and write a run directory.

    Args:
        model: A float model by name, or a run.
        recipe: The name of a shipped recipe, a YAML file, a recipe, or what a YAML file would hold; None takes that of
            the run.
        data: Training images; with labels, if the recipe learns from labels.
        val_data: Images that are measured after every epoch, or None.
        set: Changes of the recipe by path, such as ``{"weights.bits": 4}``.
        output: The run directory; None derives a name from model and bits under ``runs/``.
        overwrite: Whether to replace an existing run.
        resume: ``auto`` continues the run in ``output``, if there is one.
        checkpoint: Weights of the float model, in place of the pretrained ones.
        pretrained: Whether a float model gets its pretrained weights.
        num_classes: Number of classes; None keeps that of the weights.
        img_size: Height and width of the images in pixels, one number for both or a pair; None keeps the model's own.
        features: Whether the classifier is left out, so that the model learns embeddings.
        model_kwargs: Further arguments of the architecture.
        force_recipe: Whether to resume even if the request differs from that of the run.
        check_data: Whether the headers of all images are looked at before training.
        soft_labels: File of soft labels, whose crops are trained on in place of asking the teacher.
        checkpoint_every: Optimizer steps between checkpoints within an epoch; 0 saves after epochs only.
        logs: Programs that figures are logged with, beside the run's own tables.
        time_budget: Seconds for all of it: at most half for stages ahead of training, then as many epochs of the recipe
            as fit; None sets no limit.
        seed: Seed of random weights, order and augmentation.
        device: Device to compute on.
        amp: Whether to autocast to bfloat16.
        compiled: Whether the quantizers are compiled.
        grad_accum: Number of forward passes in one optimizer step.
        workers: Number of processes that decode images.
        progress: Called to report progress.

    Raises:
        OfqctlError: An error that the user can fix.
        Interrupted: A signal was received; the run can be resumed.
    """
    request = TrainRequest(
        model=ModelRequest(
            str(model),
            checkpoint=None if checkpoint is None else Path(checkpoint),
            pretrained=pretrained,
            num_classes=num_classes,
            img_size=img_size,
            features=features,
            kwargs=dict(model_kwargs or {}),
        ),
        recipe=recipe_of(recipe_of_run(str(model)) if recipe is None else recipe, set),
        data=DataSpec(str(data)),
        val_data=None if val_data is None else DataSpec(str(val_data)),
        output=None if output is None else Path(output),
        overwrite=overwrite,
        resume=resume,
        force_recipe=force_recipe,
        check_data=check_data,
        soft_labels=None if soft_labels is None else Path(soft_labels),
        checkpoint_every=checkpoint_every,
        logs=tuple(logs),
        time_budget=time_budget,
        seed=seed,
        device=device,
        amp=amp,
        compiled=compiled,
        grad_accum=grad_accum,
        workers=workers,
    )
    return run(request, progress)
