"""Embeddings of models on the same images: how alike they are, and how well images are found by them."""

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.devices import memory_kept, suited_threads
from ofqctl.evaluation.metrics import paired, predict, speed
from ofqctl.evaluation.neighbours import VOTE, Hits, look_up
from ofqctl.layers import values_kept
from ofqctl.models import with_tokens
from ofqctl.models.outputs import check_output
from ofqctl.progress import Progress, silent
from ofqctl.results.embeddings import EmbeddingFigures, Likeness, Neighbours, PairedEmbeddings


@dataclass
class Embeddings:
    """What one model gave for some images, on the CPU.

    Attributes:
        rows: Embeddings of each batch, float32, (B, D).
        labels: Labels of each batch, (B,); -1 where there are none.
        tokens: Likeness of each batch's patch tokens to those of the first model, (B, 2), see `likeness`; empty unless
            tokens were asked for.
        timings: For each process, seconds and images of each forward pass.
    """

    rows: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list)
    timings: list[list[tuple[float, int]]] = field(default_factory=lambda: [[]])

    def __len__(self) -> int:
        return sum(map(len, self.labels))

    @property
    def vectors(self) -> Tensor:
        """All embeddings, (images, D)."""
        return torch.cat(self.rows)

    @property
    def answers(self) -> Tensor:
        """All labels, (images,)."""
        return torch.cat(self.labels)


def embed(
    models: Mapping[str, nn.Module],
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    device: torch.device,
    total: int | None = None,
    progress: Progress = silent,
    work: str = "evaluate",
    tokens: bool = False,
) -> dict[str, Embeddings]:
    """Embed images with several models side by side: every batch is decoded once and passed to each model.

    Args:
        models: Models without a classifier by name, on ``device``, in evaluation mode.
        batches: Images (B, 3, H, W) and labels (B,).
        device: Device to compute on.
        total: Number of images, if known.
        progress: Called after every batch to report progress.
        work: What the progress is called.
        tokens: Whether patch tokens are compared with those of the first model.

    Raises:
        ModelError: An output is not an embedding, is not finite, or a model gives no tokens.
    """
    found = {name: Embeddings() for name in models}
    done = 0
    with values_kept(*models.values()), memory_kept(), suited_threads(*models.values()):
        for images, labels in batches:
            moved, reference = images.to(device), None
            for name, model in models.items():
                start = time.perf_counter()
                rows, dense = embeddings_of(model, moved) if tokens else (predict(model, moved), None)
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                seconds = time.perf_counter() - start
                own = found[name]
                own.timings[0].append((seconds, len(images)))
                own.rows.append(rows.cpu())
                own.labels.append(labels.clone())  # those of a loader process hold a file open
                if dense is not None:
                    reference = dense if reference is None else reference
                    own.tokens.append(likeness(dense, reference).cpu())
            done += len(labels)
            progress(work, done, total)
    return found


def embeddings_of(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings (B, D) and patch tokens (B, N, C) of a batch, float32, as `predict` computes embeddings alone.

    Raises:
        ModelError: The model gives no tokens, or an embedding is not finite.
    """
    own: Any = getattr(model, "with_tokens", None)  # of a file, which has them as an output
    with torch.inference_mode():
        embedding, tokens = own(images) if own is not None else with_tokens(model, images)
    return check_output(embedding, images), tokens.float()


def likeness(ours: Tensor, theirs: Tensor) -> Tensor:
    """How alike the features of two models are, image by image.

    Args:
        ours: Embeddings (B, D) or tokens (B, N, C).
        theirs: Those of the float model.

    Returns:
        (B, 2): the cosine, for tokens its mean, and the length of the difference relative to that of ``theirs``.
    """
    cosine = F.cosine_similarity(ours, theirs, dim=-1)
    error = (ours - theirs).flatten(1).norm(dim=1) / theirs.flatten(1).norm(dim=1).clamp(min=1e-12)
    return torch.stack([cosine.flatten(1).mean(1) if cosine.ndim > 1 else cosine, error], dim=1)


def merged_embeddings(shares: Sequence[Embeddings]) -> Embeddings:
    """The embeddings of one model on images that several processes shared."""
    return Embeddings(
        rows=[rows for share in shares for rows in share.rows],
        labels=[labels for share in shares for labels in share.labels],
        tokens=[alike for share in shares for alike in share.tokens],
        timings=[passes for share in shares for passes in share.timings],
    )


@dataclass(frozen=True)
class Comparison:
    """Figures of models on the same images.

    Attributes:
        models: Figures by the model's name.
        rows: What is known of each image by the last model, (images,) each: ``label``, ``predicted`` by the vote of its
            neighbours and ``right`` (0 or 1), if there are labels; ``cosine`` with the first model, if there are two.
        paired: What lies between the first and the last model; None without labels, or for one model.
        neighbours: How images were found; None without labels, or with less than two images.
    """

    models: dict[str, EmbeddingFigures]
    rows: dict[str, Tensor]
    paired: PairedEmbeddings | None = None
    neighbours: Neighbours | None = None


def compare_embeddings(
    found: Mapping[str, Embeddings],
    *,
    labelled: bool,
    index: Mapping[str, Embeddings] | None = None,
    index_name: str = "the other images (leave-one-out)",
) -> Comparison:
    """Figures of every model, beside the first one's if there are two.

    Args:
        found: Embeddings of the queries by the model's name.
        labelled: Whether the queries have labels.
        index: Embeddings of the images to look among, by the same names; None looks among the other queries.
        index_name: What these images are called.
    """
    names = list(found)
    first, last, hits = found[names[0]], found[names[-1]], dict[str, Hits]()
    if labelled and (index is not None or len(first) > 1):
        for name, own in found.items():
            among = (None, None) if index is None else (index[name].vectors, index[name].answers)
            hits[name] = look_up(own.vectors, own.answers, *among)
    alike = {name: likeness(own.vectors, first.vectors) for name, own in found.items() if name != names[0]}
    models = {name: _figures(own, hits.get(name), alike.get(name)) for name, own in found.items()}
    rows = {"label": last.answers} if labelled else {}
    if hits:
        rows |= {"predicted": hits[names[-1]].voted, "right": hits[names[-1]].knn.to(torch.int8)}
    if alike:
        rows["cosine"] = alike[names[-1]][:, 0]
    if not hits:
        return Comparison(models, rows)
    before, after = hits[names[0]], hits[names[-1]]
    both = PairedEmbeddings(knn=paired(before.knn, after.knn), recall1=paired(before.nearest, after.nearest))
    among_images = len(first) - 1 if index is None else len(index[names[0]])
    neighbours = Neighbours(k=before.neighbours, vote=VOTE, index=index_name, index_images=among_images)
    return Comparison(models, rows, both if len(names) > 1 else None, neighbours)


def _figures(own: Embeddings, hits: Hits | None, alike: Tensor | None) -> EmbeddingFigures:
    return EmbeddingFigures(
        features=own.vectors.shape[1],
        images=len(own),
        images_per_second=round(speed(own.timings), 2),
        knn=None if hits is None else _percent(hits.knn),
        recall1=None if hits is None else _percent(hits.nearest),
        likeness=None if alike is None else _likeness(alike),
        tokens=_likeness(torch.cat(own.tokens)) if own.tokens and alike is not None else None,
    )


def _likeness(alike: Tensor) -> Likeness:
    cosine, error = alike.double().unbind(dim=1)
    return Likeness(cosine=float(cosine.mean()), lowest_cosine=float(cosine.min()), relative_error=float(error.mean()))


def _percent(right: Tensor) -> float:
    return round(100.0 * float(right.double().mean()), 4)
