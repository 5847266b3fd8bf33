"""Labelled images, and the figures of models on them."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from ofqctl.data import DataSpec, ImageLoader, image_loader, open_data
from ofqctl.errors import DataError
from ofqctl.evaluation import Subject, evaluate
from ofqctl.progress import Progress


def open_labelled(
    spec: DataSpec, subject: Subject, *, batch_size: int, workers: int, limit: int | None = None
) -> ImageLoader:
    """Images with labels in the model's order, preprocessed as the model wants them.

    Raises:
        DataError: The data is missing, unlabelled, or its classes do not fit the model.
    """
    data = open_data(spec, subject.labels)
    if not data.labelled:
        raise DataError(
            f"{data.name}: its images have no labels, so there is no accuracy to measure",
            hint="put the images into one folder a class",
        )
    return image_loader(data, subject.data_config, batch_size=batch_size, workers=workers, limit=limit)


def measure(
    models: Mapping[str, nn.Module], loader: ImageLoader, device: torch.device, progress: Progress
) -> dict[str, dict[str, float | int]]:
    """Figures of each model on the same images."""
    measured = evaluate(models, loader, device=device, total=loader.image_count, progress=progress)
    return {name: metrics.as_dict() for name, metrics in measured.items()}


def about_data(loader: ImageLoader, subject: Subject) -> dict[str, Any]:
    """What the figures were measured on; complete only once the loader was read."""
    config = subject.data_config
    return {
        "data": loader.data.name,
        "classes": {"present": loader.data.class_count, "model": subject.labels.num_classes},
        "labels": loader.data.mapping,
        "preprocessing": {
            key: config[key] for key in ("input_size", "interpolation", "crop_pct", "crop_mode", "mean", "std")
        },
        "skipped": [{"image": skipped.name, "reason": skipped.reason} for skipped in loader.skipped],
        "data_notes": list(loader.data.notes),
    }
