"""The images of a training, and the run directory that is written after every epoch."""

import csv
import io
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from ofqctl.artifact import RunConfig, serialize
from ofqctl.artifact.run import write_files
from ofqctl.convert import describe
from ofqctl.data import ImageData, ImageLoader, image_loader, open_data
from ofqctl.errors import DataError
from ofqctl.evaluation import Comparison, Embeddings, compare_embeddings, of_model
from ofqctl.files import NEXT_STATE, RUN_FILES, TRACKER_FILE, TRAINING_STATE, replaced_files
from ofqctl.hooks import in_evaluation_mode
from ofqctl.jobs.embedding import embed_images
from ofqctl.jobs.measuring import measure
from ofqctl.jobs.starting import Start
from ofqctl.jobs.train_request import TrainRequest
from ofqctl.jobs.writing import about_run, float_model_bytes, run_config
from ofqctl.models import LoadedModel, embeds
from ofqctl.progress import Progress
from ofqctl.results.data import SkippedImage
from ofqctl.results.train import TrainedEpoch, Training, TrainResult, Validation
from ofqctl.training import Checkpoint, Engine, Processes, Row, needs_labels

_LOOKED_AT = 1000  # images between reports of progress
_SHOWN = 10  # files in a message


@dataclass
class TrainedRun:
    """The images of a training, and its run directory.

    Attributes:
        result: The result that was written last.
        replaces: Whether an earlier run is in the directory, until the first epoch of this one is done.
        teacher: The float model that embeddings are compared with on the validation images, or None.
    """

    request: TrainRequest
    processes: Processes
    loaded: LoadedModel
    output: Path
    data: ImageData
    val_data: ImageData | None
    float_bytes: int
    progress: Progress
    result: TrainResult | None = None
    replaces: bool = False
    teacher: nn.Module | None = None
    _compared: Comparison | None = None
    _of_teacher: dict[str, Embeddings] = field(default_factory=dict)

    @classmethod
    def open(
        cls, request: TrainRequest, processes: Processes, start: Start, output: Path, progress: Progress
    ) -> "TrainedRun":
        """Open training and validation images; a float model gets the class names of the images."""
        loaded = start.loaded
        subject = of_model(loaded)
        space = None if subject.embeds else subject.labels
        data = open_data(request.data, space, "train", renaming=start.run is None)
        assert request.recipe.training is not None
        learning = needs_labels(request.recipe.training)
        if learning:
            _check_labelled(data, f"which `{learning[0]}` of the recipe learns from")
        if data.label_space.names is not None and not subject.embeds:
            loaded.pretrained_cfg["label_names"] = list(data.label_space.names)
        val_data = None
        if request.val_data is not None:
            val_data = open_data(request.val_data, None if subject.embeds else data.label_space)
            if not subject.embeds:
                _check_labelled(val_data, "so there is no accuracy to measure")
        return cls(request, processes, loaded, output, data, val_data, float_model_bytes(loaded.model), progress)

    @property
    def validated(self) -> int:
        """Number of images that are measured after every epoch, 0 if it is not known."""
        return 0 if self.val_data is None else self.val_data.image_count or 0

    def check_headers(self) -> None:
        """Look at the header of every image; the processes share them.

        Raises:
            DataError: Some are no images, of which the message names a few.
        """
        own = slice(self.processes.rank, None, self.processes.world)
        found: list[tuple[str, str]] = []
        for data in (self.data, *([] if self.val_data is None else [self.val_data])):
            for done, fault in enumerate(data.faulty_headers(own), start=1):
                found += [] if fault is None else [fault]
                if done % _LOOKED_AT == 0:
                    self.progress(f"look at {data.name}", done * self.processes.world, data.image_count)
        everywhere = [fault for share in self.processes.gather(found) for fault in share]
        if everywhere:
            shown = [f"{name} {fault}" for name, fault in everywhere[:_SHOWN]]
            more = [f"and {len(everywhere) - _SHOWN} more"] if len(everywhere) > _SHOWN else []
            raise DataError(
                "\n  ".join([f"--check-data: {len(everywhere)} files are no images:", *shown, *more]),
                hint="remove or replace them; without --check-data, training goes on without them and lists them",
            )

    def validate(self, model: nn.Module) -> Row:
        """Measure the model on the validation images; every process measures its share.

        Returns:
            Top-1 and loss; of embeddings, their cosine with the teacher's and, with labels, the k-nearest-neighbour
            accuracy and recall@1 among the other images.
        """
        if self.val_data is None:
            return {}
        loader = image_loader(
            self.val_data,
            self.loaded.data_config,
            batch_size=64,
            workers=self.request.workers,
            rank=self.processes.rank,
            world=self.processes.world,
        )
        measured = self._embeddings if embeds(model) else self._classes
        with in_evaluation_mode(model):
            return measured(model, loader)

    def _classes(self, model: nn.Module, loader: ImageLoader) -> Row:
        figures = measure({"model": model}, loader, self.processes, self.progress)["model"].accuracy
        return {"val_top1": figures.top1, "val_loss": figures.loss}

    def _embeddings(self, model: nn.Module, loader: ImageLoader) -> Row:
        if self.teacher is not None and not self._of_teacher:
            self._of_teacher = embed_images({"float": self.teacher}, loader, self.processes, self.progress)
        found = embed_images({"model": model}, loader, self.processes, self.progress)
        self._compared = compare_embeddings(self._of_teacher | found, labelled=loader.data.labelled)
        own = self._compared.models["model"]
        alike = None if own.likeness is None else own.likeness.cosine
        row = {"val_cosine": alike, "val_knn": own.knn, "val_recall1": own.recall1}
        return {name: value for name, value in row.items() if value is not None}

    def publish(self, engine: Engine) -> None:
        """Write the run directory after an epoch; the first one replaces an earlier run, and takes its state along."""
        weights, config = self._contents(engine)
        self.result = self._result(engine, config, weights)
        following = self.output / NEXT_STATE
        with replaced_files(self.output, removed=RUN_FILES if self.replaces else ()) as fresh:
            write_files(fresh, engine.trained, weights, config, self.result.stored())
            if engine.tracker is not None:
                save_file(engine.tracker.state_dict(), fresh / TRACKER_FILE)
            (fresh / "summary.csv").write_text(_as_csv(engine.history), encoding="utf-8", errors="backslashreplace")
            if self.replaces and following.is_file():
                shutil.copyfile(following, fresh / TRAINING_STATE)  # it is lost neither way if the disk is full
        self.replaces = False

    def result_of(self, engine: Engine) -> TrainResult:
        """The result of a process that writes nothing."""
        weights, config = self._contents(engine)
        return self._result(engine, config, weights)

    def _contents(self, engine: Engine) -> tuple[bytes, RunConfig]:
        weights = serialize(engine.trained)
        plan = describe(engine.trained, engine.plan)
        return weights, run_config(self.loaded, engine.recipe, plan, weights, self.float_bytes)

    def _result(self, engine: Engine, config: RunConfig, weights: bytes) -> TrainResult:
        figures = {k: v for k, v in (engine.history or [{}])[-1].items() if k in Validation.model_fields}
        return TrainResult(
            **dict(about_run(engine.trained, config, len(weights))),
            output=str(self.output),
            training=Training(
                data=self.data.name,
                labels=self.data.mapping,
                skipped=tuple(SkippedImage(image=k, reason=v) for k, v in engine.batches.skipped.items()),
                epochs=tuple(TrainedEpoch(**row) for row in engine.history),
            ),
            evaluation=None if self.val_data is None else self._validation(figures),
            notes=(*self.loaded.notes, *self.data.notes),
            seed=self.request.seed,
            device=str(engine.processes.device),
        )

    def _validation(self, figures: Row) -> Validation:
        """Figures of the last epoch, beside those of the teacher's embeddings if there are some."""
        assert self.val_data is not None
        beside = self._compared
        return Validation(
            data=self.val_data.name,
            float=None if beside is None else beside.models.get("float"),
            paired=None if beside is None else beside.paired,
            **figures,
        )

    def save(self, state: Checkpoint) -> None:
        """Write the training state; as long as an earlier run lies there, beside that run's."""
        state.save(self.output, NEXT_STATE if self.replaces else TRAINING_STATE)


def _as_csv(rows: list[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(dict.fromkeys(key for row in rows for key in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _check_labelled(data: ImageData, why: str) -> None:
    if not data.labelled:
        raise DataError(
            f"{data.name}: its images have no labels, {why}",
            hint="put them into one folder for each class; a recipe that learns from a teacher alone, such as "
            "ofq/backbone_w4a4 for embeddings, needs no labels",
        )
