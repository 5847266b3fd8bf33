"""Neighbours among embeddings: how often those of an image are of its class.

Similarity is the cosine. The k-nearest-neighbour accuracy is that of a vote in which each of the `NEIGHBOURS` nearest
images of the index counts ``exp(cosine / TEMPERATURE)`` for its class, as in DINO (Caron et al. 2021); recall@1 is how
often the nearest image is of the same class.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

NEIGHBOURS, TEMPERATURE = 20, 0.07
VOTE = f"each neighbour counts exp(cosine / {TEMPERATURE})"
_ROWS = 1024  # queries that are compared with the index at once


@dataclass(frozen=True)
class Hits:
    """Which queries were right; bool, (queries,) each, but for ``voted``.

    Attributes:
        voted: Class that the vote of the nearest images was for, int64.
        knn: Whether the vote of the nearest images was for the query's class.
        nearest: Whether the nearest image is of the query's class.
        neighbours: Number of images that voted.
    """

    voted: Tensor
    knn: Tensor
    nearest: Tensor
    neighbours: int


def look_up(queries: Tensor, labels: Tensor, index: Tensor | None = None, known: Tensor | None = None) -> Hits:
    """Find the class of every query by its nearest images.

    Args:
        queries: Embeddings, float32, (N, D).
        labels: Their labels, (N,), 0 or more.
        index: Embeddings to look among, (M, D); None looks among the other queries (leave-one-out).
        known: Labels of the index, (M,).
    """
    alone = index is None or known is None
    among, answers = (queries, labels) if index is None or known is None else (index, known)
    neighbours = min(NEIGHBOURS, len(among) - alone)
    candidates, unit = F.normalize(among, dim=1), F.normalize(queries, dim=1)
    classes = int(max(labels.max(), answers.max())) + 1
    voted, nearest = [], []
    for start in range(0, len(queries), _ROWS):
        part = unit[start : start + _ROWS]
        cosines = part @ candidates.T
        if alone:
            own = torch.arange(len(part))
            cosines[own, own + start] = -torch.inf
        best = cosines.topk(neighbours, dim=1)
        votes = torch.zeros(len(part), classes).scatter_add_(
            1, answers[best.indices], (best.values / TEMPERATURE).exp()
        )
        voted.append(votes.argmax(dim=1))
        nearest.append(answers[best.indices[:, 0]])
    found = torch.cat(voted)
    return Hits(found, found == labels, torch.cat(nearest) == labels, neighbours)
