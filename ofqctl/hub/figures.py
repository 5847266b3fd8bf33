"""What a card says of ``results.json``, typed; and names of others as a public page shows them."""

from pathlib import PurePosixPath

from pydantic import BaseModel, ConfigDict

from ofqctl.artifact import Run
from ofqctl.documents import checked

_HUB_DATA = "hfds/"


class _Part(BaseModel):
    model_config = ConfigDict(extra="ignore")


class Likeness(_Part):
    """How like embeddings are to those of the float model."""

    cosine: float | None = None


class Figures(_Part):
    """Figures of one model on labelled images, in percent, and the number of images; of embeddings their likeness."""

    top1: float | None = None
    top5: float | None = None
    knn: float | None = None
    recall1: float | None = None
    likeness: Likeness | None = None
    images: int | None = None

    @property
    def shares(self) -> dict[str, float]:
        """What was measured of them, in percent, by its name in words."""
        named = {
            "top-1 accuracy": self.top1,
            "top-5 accuracy": self.top5,
            "k-nearest-neighbour accuracy": self.knn,
            "recall@1": self.recall1,
        }
        return {words: value for words, value in named.items() if value is not None}


class Difference(_Part):
    """The difference of the top-1 accuracy of two models in percentage points, image by image."""

    difference: float | None = None
    standard_error: float | None = None


class Evaluation(_Part):
    """What was measured while the run was made."""

    data: str | None = None
    of_float: Figures | None = None
    quantized: Figures | None = None
    paired: Difference | None = None
    val_top1: float | None = None
    val_knn: float | None = None
    val_recall1: float | None = None
    val_cosine: float | None = None

    @property
    def own(self) -> Figures:
        """Those of the run itself, quantized or trained."""
        trained = Figures(
            top1=self.val_top1, knn=self.val_knn, recall1=self.val_recall1, likeness=Likeness(cosine=self.val_cosine)
        )
        return self.quantized or trained


class Images(_Part):
    """Images that the run was made with."""

    data: str
    images: int | None = None


class Bits(_Part):
    """Bits of weights on average."""

    weights: float | None = None


class Measured(_Part):
    """The part of ``results.json`` that a card shows."""

    evaluation: Evaluation | None = None
    calibration: Images | None = None
    training: Images | None = None
    bits: Bits | None = None
    seed: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def data(self) -> list[str]:
        """Names of all data, as the run names them, without repetition."""
        parts = (self.calibration, self.training, self.evaluation)
        return list(dict.fromkeys(part.data for part in parts if part is not None and part.data))


def measured(run: Run) -> Measured:
    """The figures of a run.

    Raises:
        ArtifactError: One is of another type.
    """
    values = dict(run.results)
    if isinstance(values.get("evaluation"), dict):
        values["evaluation"] = values["evaluation"] | {"of_float": values["evaluation"].get("float")}
    return checked(Measured, values, f"{run.directory}/results.json")


def hub_data(data: str) -> str | None:
    """The id of a data set on the hub, without split, or None for data elsewhere."""
    return data.removeprefix(_HUB_DATA).partition(":")[0] if data.startswith(_HUB_DATA) else None


def split_of(data: str) -> tuple[str, str | None]:
    """Data as a command names it, and its split; a folder, or data that has one name, has none."""
    if data.startswith("digits/"):
        return "digits", None
    name, _, split = data.partition(":") if hub_data(data) else data.rpartition(":")
    return (shown(name), split) if name and split else (shown(data), None)


def shown(path: str) -> str:
    """A path without what is the business of the machine that the run was made on: its last two names."""
    return "/".join(PurePosixPath(path).parts[-2:]) if path.startswith("/") else path
