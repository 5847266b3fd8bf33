"""Compare a graph with torch on the same images, and with the rounding noise of torch itself.

That noise is the difference between the model's outputs in float32 and in float64, with the same codes and grid steps.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ofqctl.devices import memory_kept
from ofqctl.export.recording import activation_quantizers, results_of
from ofqctl.grids import SMALLEST_STEP
from ofqctl.hooks import shadowed
from ofqctl.layers import WeightSite, weight_sites
from ofqctl.progress import Progress
from ofqctl.quantizers import Quantizer
from ofqctl.quantizers.cores import over_largest
from ofqctl.results import export as results
from ofqctl.results.document import Gives

_POINTS = 0.5  # percentage points of top-1 agreement that are always tolerated
_TIMES = 4.0  # largest ratio of the median difference to the noise floor


@dataclass
class EndToEnd:
    """Results of comparing the outputs of the graph with those of torch.

    Attributes:
        images: Number of images.
        agreement: Share of the images with the same predicted label as torch, for the ``graph``, for the noise
            ``floor``, and for each further program that runs the graph; empty for embeddings.
        cosine: Lowest cosine of an embedding with torch's, for the same; empty for classes.
        difference: Median over the images of the largest difference of a logit, feature or token, relative to the
            largest of torch; for the same.
        correct: Number of images that ``torch`` and all but the floor classify correctly; empty without labels.
    """

    images: int = 0
    agreement: dict[str, float] = field(default_factory=dict)
    cosine: dict[str, float] = field(default_factory=dict)
    difference: dict[str, float] = field(default_factory=dict)
    correct: dict[str, int] = field(default_factory=dict)

    def faults(self) -> list[str]:
        """In what respects the graph is clearly worse than the noise floor."""
        faults, floor = [], self.agreement.get("floor", 1.0)
        for name, share in self.agreement.items():
            variance = sum(max(each * (1.0 - each), 1.0 / self.images) for each in (share, floor))
            spread = 3.0 * (variance / self.images) ** 0.5  # both are estimates from a sample
            if share < floor - max(_POINTS / 100, spread):
                where = "" if name == "graph" else f" in {name}"
                faults.append(
                    f"top-1{where} agrees with torch on {share:.1%} of {self.images} images, noise floor {floor:.1%}"
                )
        if not self.difference["graph"] <= _TIMES * self.difference["floor"] + 1e-4:
            seen, allowed = self.difference["graph"], self.difference["floor"]
            faults.append(f"outputs differ by {seen:.1e} of the largest, noise floor {allowed:.1e}")
        return faults

    @property
    def found(self) -> results.EndToEnd:
        """The figures for a result; shares in percent."""
        return results.EndToEnd(
            images=self.images,
            agreement={name: round(100 * share, 4) for name, share in self.agreement.items()},
            cosine=dict(self.cosine),
            difference=dict(self.difference),
            top1={name: round(100 * count / self.images, 4) for name, count in self.correct.items()},
        )


def compare_end_to_end(
    model: nn.Module,
    graphs: Mapping[str, Callable[[Tensor], Any]],
    batches: Iterable[tuple[Tensor, Tensor | None]],
    total: int | None,
    progress: Progress,
    *,
    gives: Gives = "classes",
) -> EndToEnd:
    """Run both on the same images.

    Args:
        model: The torch model, in evaluation mode.
        graphs: The graph as ONNX Runtime runs it, called ``graph``; and as other programs do, which compute the
            quantizers in an arithmetic of their own, so that more codes change there.
        batches: Images (B, 3, H, W) with labels (B,) or None.
        total: Number of images, if known.
        progress: Called after every batch to report progress.
        gives: What the model gives.
    """
    alike: dict[str, list[Tensor]] = {name: [] for name in (*graphs, "floor")}
    differences: dict[str, list[Tensor]] = {name: [] for name in alike}
    found = EndToEnd()
    with memory_kept():
        for images, labels in batches:
            with torch.inference_mode():
                reference = results_of(model, images)
                others = {name: results_of(graph, images) for name, graph in graphs.items()}
                with in_float64(model):
                    others["floor"] = results_of(model, images.double())
            for name, results in others.items():
                alike[name].append(_alike(results[0], reference[0], gives))
                differences[name].append(_difference(results, reference))
            if labels is not None and gives == "classes":
                for name, results in {"torch": reference, **{name: others[name] for name in graphs}}.items():
                    right = int((results[0].argmax(dim=1) == labels).sum())
                    found.correct[name] = found.correct.get(name, 0) + right
            found.images += len(images)
            progress("compare end to end", found.images, total)
    if gives == "classes":
        found.agreement = {name: float(torch.cat(parts).float().mean()) for name, parts in alike.items()}
    else:
        found.cosine = {name: float(torch.cat(parts).min()) for name, parts in alike.items()}
    found.difference = {name: float(torch.cat(parts).median()) for name, parts in differences.items()}
    return found


def _alike(ours: Tensor, theirs: Tensor, gives: Gives) -> Tensor:
    """Image by image: whether the predicted label is the same, or the cosine of the embeddings."""
    if gives == "classes":
        return ours.argmax(dim=1) == theirs.argmax(dim=1)
    return F.cosine_similarity(ours.double(), theirs.double(), dim=1)


def _difference(ours: tuple[Tensor, ...], theirs: tuple[Tensor, ...]) -> Tensor:
    """Largest difference of any output, relative to the largest value of it, image by image."""
    pairs = [(one.float().flatten(1), other.float().flatten(1)) for one, other in zip(ours, theirs, strict=True)]
    relative = [(one - other).abs().amax(1) / other.abs().amax(1).clamp(min=1e-30) for one, other in pairs]
    return torch.stack(relative).amax(dim=0)


@contextmanager
def in_float64(model: nn.Module) -> Iterator[None]:
    """Within the block a model computes in float64, with the same codes, grid steps and weights."""
    with ExitStack() as undo:
        for _, site in weight_sites(model):
            undo.enter_context(shadowed(site, "quantized_weight", partial(_weight, site)))
        for quantizer in activation_quantizers(model).values():
            undo.enter_context(shadowed(quantizer, "forward", partial(_value, quantizer)))
        model.double()
        undo.callback(model.float)
        yield


def _weight(site: WeightSite) -> Tensor:
    encoded = site.encode_weight()
    assert encoded is not None
    return encoded.grid.points(encoded.codes).double() * encoded.step.double()


def _value(quantizer: Quantizer, x: Tensor) -> Tensor:
    rows, largest = over_largest(x) if quantizer.plan.dynamic else (x, None)
    step, grid = quantizer.step.clamp(min=SMALLEST_STEP), quantizer.grid
    moved = rows if quantizer.before is None else rows + quantizer.before
    value = grid.points(grid.nearest(moved / step)).double() * step
    value = value if quantizer.after is None else value.add_(quantizer.after)
    return value if largest is None else value.mul_(largest)
