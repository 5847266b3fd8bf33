"""Split a model into units that are quantized one after the other, and compute the inputs and outputs of each.

A unit is the largest module with at most one attention block: a transformer block, a patch embedding, a classifier.
Its inputs and outputs lie on disk, one file for each batch, so memory does not grow with the number of images.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.hooks import attached
from ofqctl.recipe import Plan

Extra = tuple[tuple[Any, ...], dict[str, Any]]


class Batches:
    """Batches stored on disk, one tensor in each file, that can be read any number of times.

    Args:
        folder: Folder of the files.
        name: Start of the file names; different for each set of batches in a folder.
        device: Device that batches are loaded to.

    Attributes:
        images: Total length of all batches: the number of images, or of their inputs or outputs.
    """

    def __init__(self, folder: Path, name: str, device: torch.device) -> None:
        self._folder, self._name, self._device = folder, name, device
        self._count = 0
        self.images = 0

    def beside(self, name: str) -> "Batches":
        """A new, empty set of batches in the same folder."""
        return Batches(self._folder, name, self._device)

    def append(self, batch: Tensor) -> None:
        """Write one more batch."""
        torch.save(batch.detach().to("cpu", copy=True), self._path(self._count))
        self._count += 1
        self.images += len(batch)

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        if not 0 <= index < self._count:
            raise IndexError(index)
        batch: Tensor = torch.load(self._path(index), weights_only=True)
        return batch.to(self._device)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(self._count))

    def delete(self) -> None:
        """Delete the files."""
        for index in range(self._count):
            self._path(index).unlink()
        self._count = self.images = 0

    def _path(self, index: int) -> Path:
        return self._folder / f"{self._name}-{index}.pt"


@dataclass(frozen=True)
class Part:
    """The images from number ``start`` up to but without ``stop``, or to the last; can be read any number of times."""

    batches: Batches
    start: int = 0
    stop: int | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return len(range(self.batches.images)[self.start : self.stop])

    def __iter__(self) -> Iterator[Tensor]:
        first = 0
        for batch in self.batches:
            last = first + len(batch)
            chosen = batch[max(0, self.start - first) : None if self.stop is None else max(0, self.stop - first)]
            if len(chosen):
                yield chosen
            first = last


@dataclass(frozen=True)
class Unit:
    """A module that is quantized as a whole.

    Attributes:
        name: Name of the module in the model.
        chained: Whether its input is the output of the previous unit, unchanged.
    """

    name: str
    chained: bool


@dataclass
class Piece:
    """The unit that is worked on, with its inputs and targets; all previous units have their final values.

    Attributes:
        name: Name of the unit in the model.
        quantized: The quantized unit, in evaluation mode.
        original: The float unit.
        inputs: Inputs of the unit in the quantized model.
        original_inputs: Inputs of the unit in the float model.
        targets: Outputs of the float unit on ``original_inputs``.
        extra: Further arguments of every call, the same for all images.
        number: Position among the units, from 0.
        count: Number of units.
    """

    name: str
    quantized: nn.Module
    original: nn.Module
    inputs: Batches
    original_inputs: Batches
    targets: Batches
    extra: Extra
    number: int
    count: int

    def run(self, x: Tensor) -> Tensor:
        """Output of the quantized unit on one batch."""
        args, kwargs = self.extra
        output: Tensor = self.quantized(x, *args, **kwargs)
        return output

    def run_original(self, x: Tensor) -> Tensor:
        """Output of the float unit on one batch."""
        args, kwargs = self.extra
        output: Tensor = self.original(x, *args, **kwargs)
        return output


class Reached(Exception):  # noqa: N818
    """Raised to end a forward pass once the wanted input was seen."""


@dataclass
class _Call:
    """What the hooks recorded about one module."""

    count: int = 0
    input: Any = None
    output: Any = None
    extra: Extra = field(default_factory=lambda: ((), {}))


def find_units(model: nn.Module, plan: Plan, images: Tensor) -> list[tuple[Unit, Extra]]:
    """The units of a float model in the order of their calls, and the further arguments of each call.

    A unit is called once in a forward pass, takes a tensor and returns a tensor. It has no two submodules of one class
    that both contain quantized layers; a module that has is split into its children.

    Args:
        model: The float model ``plan`` was made for.
        plan: The plan, which says which modules are quantized.
        images: A few images, (B, 3, H, W).
    """
    calls = _watch(model, images)
    planned = set(plan.modules)

    def holds(name: str) -> bool:
        return any(n == name or n.startswith(f"{name}.") for n in planned)

    def candidates(prefix: str, module: nn.Module) -> Iterator[str]:
        for child, part in module.named_children():
            name = f"{prefix}.{child}" if prefix else child
            if not holds(name):
                continue
            if _is_unit(calls.get(name)) and not _repeats(name, part, holds):
                yield name
            else:
                yield from candidates(name, part)

    names = set(candidates("", model))
    ordered = [name for name in calls if name in names]
    previous = [None, *ordered]
    return [
        (Unit(name, last is not None and calls[name].input is calls[last].output), calls[name].extra)
        for name, last in zip(ordered, previous, strict=False)
    ]


def _watch(model: nn.Module, images: Tensor) -> dict[str, _Call]:
    """Calls of every module in one forward pass, in the order in which they start."""
    calls: dict[str, _Call] = {}

    def enter(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            call = calls.setdefault(name, _Call())
            call.count += 1
            call.input, call.extra = (args[0] if args else None), (args[1:], kwargs)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            calls[name].output = output

        return hook

    entries = (m.register_forward_pre_hook(enter(name), with_kwargs=True) for name, m in model.named_modules())
    exits = (m.register_forward_hook(leave(name)) for name, m in model.named_modules())
    with attached(entries), attached(exits), torch.no_grad():
        model(images)
    return calls


def _is_unit(call: _Call | None) -> bool:
    return call is not None and call.count == 1 and isinstance(call.input, Tensor) and isinstance(call.output, Tensor)


def _repeats(name: str, module: nn.Module, holds: Callable[[str], bool]) -> bool:
    """Whether two submodules of one class (single layers apart) contain quantized layers."""
    classes = [
        type(part)
        for child, part in module.named_modules()
        if child and next(part.children(), None) is not None and holds(f"{name}.{child}")
    ]
    return len(classes) != len(set(classes))


def walk(model: nn.Module, original: nn.Module, plan: Plan, images: Batches) -> Iterator[Piece]:
    """Yield each unit in turn; the caller gives it its final values before it asks for the next.

    Args:
        model: The quantized model, in evaluation mode.
        original: The float model.
        plan: The plan that ``model`` was quantized by.
        images: Normalized images, (B, 3, H, W) each.
    """
    units = find_units(original, plan, images[0][:2])
    previous: Piece | None = None
    for number, (unit, extra) in enumerate(units):
        quantized, in_float = model.get_submodule(unit.name), original.get_submodule(unit.name)
        if previous is not None and unit.chained:
            inputs = _through(previous.run, previous.inputs, images.beside(f"inputs-{number}"))
            previous.inputs.delete()
            previous.original_inputs.delete()
            original_inputs = previous.targets
        else:
            inputs, original_inputs = (
                _captured(whole, part, images, images.beside(f"{kind}-{number}"))
                for whole, part, kind in ((model, quantized, "inputs"), (original, in_float, "original"))
            )
            if previous is not None:
                for old in (previous.inputs, previous.original_inputs, previous.targets):
                    old.delete()
        targets = images.beside(f"targets-{number}")
        piece = Piece(unit.name, quantized, in_float, inputs, original_inputs, targets, extra, number, len(units))
        _through(piece.run_original, original_inputs, piece.targets)
        yield piece
        previous = piece


def _through(run: Callable[[Tensor], Tensor], inputs: Batches, outputs: Batches) -> Batches:
    """Run ``run`` on every batch of ``inputs`` and append the results to ``outputs``."""
    with torch.no_grad():
        for batch in inputs:
            outputs.append(run(batch))
    return outputs


def _captured(model: nn.Module, part: nn.Module, images: Batches, inputs: Batches) -> Batches:
    """Append the inputs of ``part`` in ``model`` to ``inputs``; nothing after ``part`` is computed."""

    def stop(_module: nn.Module, args: tuple[Any, ...]) -> None:
        inputs.append(args[0])
        raise Reached

    with part.register_forward_pre_hook(stop), torch.no_grad():
        for batch in images:
            with suppress(Reached):
                model(batch)
    return inputs


@contextmanager
def on_disk(images: Iterable[Tensor], device: torch.device) -> Iterator[Batches]:
    """Write ``images`` to a temporary folder, which is deleted at the end of the ``with`` block."""
    with TemporaryDirectory(prefix="ofqctl-ptq-") as folder:
        batches = Batches(Path(folder), "images", device)
        for batch in images:
            batches.append(batch)
        yield batches


def rebatched(images: Iterable[Tensor], sizes: Iterable[int], batches: Batches) -> Batches:
    """The same images in batches of other sizes, written to ``batches``.

    Args:
        images: Batches of any size.
        sizes: Sizes of the new batches, in order, enough for all images; the last batch may come out smaller.
        batches: Where the new batches are written.
    """
    source = iter(images)
    rest = next(source)
    for size in sizes:
        while len(rest) < size and (batch := next(source, None)) is not None:
            rest = torch.cat([rest, batch])
        if not len(rest):
            break
        batches.append(rest[:size])
        rest = rest[size:]
    return batches


def variance_over(batches: Batches) -> Tensor:
    """Variance of each element over all images, in the shape of one; the batches are read once, one at a time.

    Counts, means and sums of squares are merged batch by batch (Chan, Golub & LeVeque, 1979), so that float32 loses no
    precision where the mean is far from 0.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for batch in batches:
        own, seen, count = batch.mean(dim=0), count, count + len(batch)
        away = own - mean
        squares = squares + (batch - own).square().sum(dim=0) + away.square() * (seen * len(batch) / count)
        mean = mean + away * (len(batch) / count)
    return squares / count
