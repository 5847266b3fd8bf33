"""The images that training works with, and the run directory that it writes after every epoch."""

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import nn

from ofqctl.artifact import serialize
from ofqctl.artifact.atomic import replaced_file
from ofqctl.artifact.run import write_files
from ofqctl.convert import describe
from ofqctl.data import DataSpec, ImageData, LabelSpace, image_loader, open_data
from ofqctl.errors import DataError
from ofqctl.evaluation import evaluate, of_model
from ofqctl.jobs.starting import Start
from ofqctl.jobs.train_request import TrainRequest
from ofqctl.jobs.writing import about_run, float_model_bytes, run_config
from ofqctl.models import LoadedModel
from ofqctl.progress import Progress
from ofqctl.training import Engine, Row


@dataclass
class TrainedRun:
    """The images of a training, and its run directory.

    Attributes:
        results: What was written last.
    """

    request: TrainRequest
    loaded: LoadedModel
    output: Path
    data: ImageData
    val_data: ImageData | None
    float_bytes: int
    progress: Progress
    results: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, request: TrainRequest, start: Start, output: Path, progress: Progress) -> "TrainedRun":
        """Open training and validation images; a model whose classes have no names takes those of the images."""
        loaded = start.loaded
        data = _open_labelled(_train_split(request.data), of_model(loaded).labels, same_names=start.run is not None)
        if loaded.pretrained_cfg.get("label_names") is None and data.label_space.names is not None:
            loaded.pretrained_cfg["label_names"] = list(data.label_space.names)
        val_data = None
        if request.val_data is not None:
            val_data = _open_labelled(request.val_data, data.label_space, same_names=True)
        return cls(request, loaded, output, data, val_data, float_model_bytes(loaded.model), progress)

    def validate(self, model: nn.Module) -> Row:
        """Top-1 and loss on the validation images."""
        if self.val_data is None:
            return {}
        loader = image_loader(self.val_data, self.loaded.data_config, batch_size=64, workers=self.request.workers)
        device = next(model.parameters()).device
        was_training = model.training
        measured = evaluate(
            {"model": model.eval()}, loader, device=device, total=loader.image_count, progress=self.progress
        )
        model.train(was_training)
        figures = measured["model"].as_dict()
        return {"val_top1": figures["top1"], "val_loss": figures["loss"]}

    def publish(self, engine: Engine) -> None:
        """Write the run directory as it is after an epoch."""
        weights = serialize(engine.trained)
        plan = describe(engine.trained, engine.plan)
        config = run_config(self.loaded, self.request.recipe, plan, weights, self.float_bytes)
        figures = {k: v for k, v in (engine.history or [{}])[-1].items() if k.startswith("val_")}
        self.results = about_run(engine.trained, config, weights) | {
            "training": {"data": self.data.name, "labels": self.data.mapping, "epochs": engine.history},
            "evaluation": None if self.val_data is None else {"data": self.val_data.name} | figures,
            "notes": [*self.loaded.notes, *self.data.notes],
            "seed": self.request.seed,
            "device": str(engine.processes.device),
        }
        write_files(self.output, engine.trained, weights, config, self.results)
        if engine.tracker is not None:
            with replaced_file(self.output / "oscillation.safetensors") as fresh:
                save_file(engine.tracker.state_dict(), fresh)
        with replaced_file(self.output / "summary.csv") as fresh:
            fresh.write_text(_as_csv(engine.history), encoding="utf-8")


def _as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _train_split(spec: DataSpec) -> DataSpec:
    """The digits' training part, where none was named: their default part is the one for measuring."""
    return DataSpec(spec.path, split="train") if spec.path == "digits" and spec.split is None else spec


def _open_labelled(spec: DataSpec, labels: LabelSpace, *, same_names: bool) -> ImageData:
    """Images whose classes are those of the model.

    Args:
        spec: What was asked for.
        labels: The classes of the model.
        same_names: Whether classes of other names than the model's are refused, though their number fits.
    """
    data = open_data(spec, labels)
    if not data.labelled:
        raise DataError(f"{data.name}: its images have no labels", hint="put them into one folder a class")
    if same_names and data.renamed:
        raise DataError(
            f"{data.name}: its classes are not those of the model: {data.notes[-1]}",
            hint="--class-map FILE says which class is which label",
        )
    return data
