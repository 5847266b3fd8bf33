"""Open labelled images and measure models on them."""

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from ofqctl.data import DataSpec, ImageLoader, image_loader, none_usable, open_data
from ofqctl.errors import DataError
from ofqctl.evaluation import Metrics, Subject, evaluate, merged
from ofqctl.progress import Progress
from ofqctl.results.data import Classes, MeasuredOn, Prepared, SkippedImage
from ofqctl.training import Processes


def open_labelled(
    spec: DataSpec,
    subject: Subject,
    *,
    batch_size: int,
    workers: int,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> ImageLoader:
    """Open images with labels in the model's order, preprocessed for the model.

    Raises:
        DataError: The data is missing, unlabelled, or its classes do not fit the model.
    """
    data = open_data(spec, subject.labels)
    if not data.labelled:
        raise DataError(
            f"{data.name}: its images have no labels, so there is no accuracy to measure",
            hint="put the images into one folder for each class, or name them with their labels in --class-map FILE",
        )
    return image_loader(
        data, subject.data_config, batch_size=batch_size, workers=workers, limit=limit, rank=rank, world=world
    )


def measure(
    models: Mapping[str, nn.Module],
    loader: ImageLoader,
    processes: Processes,
    progress: Progress,
    *,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> dict[str, Metrics]:
    """Measure models on the same images; every process reads its share.

    Args:
        models: Models by name, on the device of ``processes``, in evaluation mode.
        loader: Loader of this process's share.
        processes: All processes; each calls this and gets the results on all images.
        progress: Called to report the progress of this process's share.
        batches: The batches of ``loader``, if they are watched as they are read.

    Raises:
        DataError: No image can be used.
    """
    measured = evaluate(
        models,
        loader if batches is None else batches,
        device=processes.device,
        total=loader.image_count,
        progress=progress,
    )
    shares = processes.gather((measured, loader.skipped))
    together = {name: merged([metrics[name] for metrics, _ in shares]) for name in models}
    if not all(metrics.images for metrics in together.values()):
        raise none_usable(loader.data, [image for _, skipped in shares for image in skipped])
    return together


def about_data(loader: ImageLoader, subject: Subject) -> MeasuredOn:
    """Description of the data measured on; complete only after the loader was read."""
    return MeasuredOn(
        data=loader.data.name,
        classes=Classes(present=loader.data.class_count, model=subject.labels.num_classes),
        labels=loader.data.mapping,
        preprocessing=Prepared(**{key: subject.data_config[key] for key in Prepared.model_fields}),
        skipped=tuple(SkippedImage(image=skipped.name, reason=skipped.reason) for skipped in loader.skipped),
        turned=loader.turned,
        data_notes=loader.data.notes,
    )
