"""How figures of embeddings are shown, by every command that has some."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ofqctl.cli.output import Table

if TYPE_CHECKING:
    from ofqctl.results.embeddings import EmbeddingFigures, Neighbours, PairedEmbeddings


def embedding_rows(table: Table, models: "Sequence[EmbeddingFigures]") -> None:
    """Add the figures of one model, or of the float and the quantized model, to a table with a column for each."""
    last = models[-1]
    for words, values in (
        ("kNN accuracy", [model.knn for model in models]),
        ("recall@1", [model.recall1 for model in models]),
    ):
        if values[-1] is not None:
            table.add(words, *(f"{value:.2f} %" for value in values))
    blank = [""] * (len(models) - 1)
    for words, alike in (("embeddings", last.likeness), ("patch tokens", last.tokens)):
        if alike is not None:
            table.add(f"cosine, {words}", *blank, f"{alike.cosine:.4f}")
            table.add("  lowest of an image", *blank, f"{alike.lowest_cosine:.4f}")
            table.add(f"error, {words}", *blank, f"{100 * alike.relative_error:.2f} %")
    table.add("features", *(model.features for model in models))
    table.add("images/s", *(f"{model.images_per_second:.1f}" for model in models))


def embedding_lines(found: "Neighbours | None", paired: "PairedEmbeddings | None", indent: str) -> Iterator[str]:
    """How neighbours were found, and the differences of the two models, image by image."""
    if found is None:
        return
    yield f"{indent}neighbours: {found.k} nearest by cosine of {found.index_images}, {found.vote}"
    yield f"{indent}looked up among {found.index}"
    if paired is None:
        return
    for words, own in (("kNN accuracy", paired.knn), ("recall@1", paired.recall1)):
        change = f"{own.difference:+.2f} ± {own.standard_error:.2f} points of {words}"
        yield f"{indent}{change}, image by image: {own.lost} lost, {own.gained} gained"
