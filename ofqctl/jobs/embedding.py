"""Open the images that embeddings are measured on, and measure models on them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial

from torch import Tensor, nn

from ofqctl.data import DataSpec, ImageData, ImageLoader, image_loader, none_usable, open_data
from ofqctl.errors import DataError, ModelError, did_you_mean
from ofqctl.evaluation import Comparison, Embeddings, Subject, compare_embeddings, embed, merged_embeddings
from ofqctl.jobs.measuring import about_data
from ofqctl.progress import Progress
from ofqctl.results.data import MeasuredOn
from ofqctl.training import Processes


@dataclass(frozen=True)
class EmbeddingData:
    """Images that embeddings are measured on; labels are not needed.

    Attributes:
        queries: The images.
        index: The images that each query is looked up among; None takes the other queries (leave-one-out).
    """

    queries: ImageLoader
    index: ImageLoader | None = None

    @property
    def labelled(self) -> bool:
        """Whether there are labels, so that neighbours can be right or wrong."""
        return self.queries.data.labelled

    @property
    def labels(self) -> str:
        """What is known of the classes, in words."""
        if self.index is None or not self.labelled:
            return self.queries.data.mapping
        return (
            f"{self.queries.data.class_count} classes, looked up among the {self.index.data.class_count} of the index"
        )

    def about(self, subject: Subject) -> MeasuredOn:
        """Description of the images; complete only after they were read."""
        about = about_data(self.queries, subject)
        skipped = () if self.index is None else about_data(self.index, subject).skipped
        return about.model_copy(update={"labels": self.labels, "skipped": (*about.skipped, *skipped)})


def check_embeds(subject: Subject, asked: Mapping[str, object]) -> None:
    """Check that nothing is asked of a classifier that is for embeddings.

    Args:
        subject: The model.
        asked: What was given for each option that is for embeddings.

    Raises:
        ModelError: The model has a classifier, and an option was given.
    """
    given = [name for name, value in asked.items() if value]
    if given and not subject.embeds:
        raise ModelError(
            f"{', '.join(given)}: for embeddings, and {subject.name} has a classifier",
            hint="--features leaves the classifier of a float model out",
        )


def open_embedding_data(
    spec: DataSpec,
    index: DataSpec | None,
    subject: Subject,
    *,
    batch_size: int,
    workers: int,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
) -> EmbeddingData:
    """Open images, with labels if they have some, preprocessed for the model.

    Args:
        spec: The images to measure on.
        index: The images to look among; by default the training split. None takes the others of ``spec``.
        subject: The model.
        batch_size: Number of images in a forward pass.
        workers: Number of processes that decode images.
        limit: Number of images to read of each, drawn from the whole set; None reads all.
        rank: Rank of this process.
        world: Number of processes.

    Raises:
        DataError: The data is missing, or images are to be looked up among unlabelled ones, or ones of other classes.
    """
    among = None if index is None else open_data(index, purpose="train")
    data = open_data(spec)
    if among is not None:
        _check_index(data, among)
        data = open_data(spec, among.label_space)
    load = partial(
        image_loader,
        config=subject.data_config,
        batch_size=batch_size,
        workers=workers,
        limit=limit,
        rank=rank,
        world=world,
    )
    return EmbeddingData(load(data), None if among is None else load(among))


def embed_images(
    models: Mapping[str, nn.Module],
    loader: ImageLoader,
    processes: Processes,
    progress: Progress,
    *,
    work: str = "evaluate",
    tokens: bool = False,
    batches: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> dict[str, Embeddings]:
    """Embed all images with several models; every process reads its share, and gets the embeddings of all.

    Args:
        models: Models without a classifier by name, the one to compare with first, on the device of ``processes``.
        loader: Loader of this process's share.
        processes: All processes; each calls this.
        progress: Called to report the progress of this process's share.
        work: What the progress is called.
        tokens: Whether patch tokens are compared as well.
        batches: The batches of ``loader``, if they are watched as they are read.

    Raises:
        DataError: No image can be used.
    """
    found = embed(
        models,
        loader if batches is None else batches,
        device=processes.device,
        total=loader.image_count,
        progress=progress,
        work=work,
        tokens=tokens,
    )
    shares = processes.gather((found, loader.skipped))
    together = {name: merged_embeddings([own[name] for own, _ in shares]) for name in models}
    if not all(map(len, together.values())):
        raise none_usable(loader.data, [image for _, skipped in shares for image in skipped])
    return together


def measure_embeddings(
    models: Mapping[str, nn.Module],
    data: EmbeddingData,
    processes: Processes,
    progress: Progress,
    *,
    tokens: bool = False,
    queries: Iterable[tuple[Tensor, Tensor]] | None = None,
) -> Comparison:
    """Measure models on the same images, see `embed_images`.

    Raises:
        DataError: No image can be used.
    """
    found = partial(embed_images, models, processes=processes, progress=progress)
    index = data.index if data.labelled else None
    among = None if index is None else found(loader=index, work="embed the index")
    seen = found(loader=data.queries, tokens=tokens, batches=queries)
    if index is None:
        return compare_embeddings(seen, labelled=data.labelled)
    return compare_embeddings(seen, labelled=data.labelled, index=among, index_name=index.data.name)


def _check_index(data: ImageData, among: ImageData) -> None:
    """Check that what the queries are can be found in the index.

    Raises:
        DataError: One of the two has no labels, they are the same images, or the index lacks a class.
    """
    for opened, option in ((data, "--data"), (among, "--index-data")):
        if not opened.labelled:
            raise DataError(
                f"{option} {opened.name}: its images have no labels, so nothing says which of them belong together",
                hint="leave out --index-data to compare embeddings alone",
            )
    if data.name == among.name:
        raise DataError(
            f"--index-data {among.name}: the very images of --data, each of which would find itself",
            hint="leave out --index-data: each image is then looked up among the others; --index-split names a split",
        )
    missing = [name for name in data.labels if among.labels and name not in among.labels]
    if missing:
        raise DataError(
            f"--index-data {among.name}: has no class '{missing[0]}', which --data {data.name} has "
            f"({len(missing)} of {len(data.labels)} classes are missing)",
            hint=did_you_mean(missing[0], among.labels) or "both name their classes alike",
        )
