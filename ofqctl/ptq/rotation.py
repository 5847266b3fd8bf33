"""Rotation: spread large channels over all others, exactly (Ashkboos et al., NeurIPS 2024, arXiv 2404.00456).

A few channels with large values decide the grid step of all. Multiplied by an orthogonal matrix whose entries are all
of one size, every channel gets a part of each, and grids of few bits lose less. The float model computes the same
function, and nothing is added to what runs: the matrices are folded into the weights. It takes seconds, ahead of
calibration.

``heads`` rotates queries and keys, and values and what reads them, within each head. ``residual`` rotates what flows
from block to block: everything that writes to it, and everything that reads it. A LayerNorm of a rotated row is only a
LayerNorm if the row has no mean, so what writes is centred first: ``x -> x M R`` with ``M = I - 1 1^T / C``. LayerScale
is folded into the projection ahead of it, gains and shifts of the LayerNorms into the layers that read them, and a
LayerNorm becomes an RMSNorm with the same epsilon. It is exact where LayerNorms read by Linear layers alone read a
stream of one width that Linear layers and convolutions write: pre-norm transformers with a classifier. The weights that
read the stream take over the gains, which costs accuracy at 4 bits and less, and what the rotation gains is larger only
where blocks are reconstructed afterwards; then it stands in place of ``layer_norm``.

Both matrices are a Hadamard matrix with random signs, ``diag(s) H / sqrt(C)``. There are such of the sizes ``2^k`` and
``(q + 1) 2^k`` for a prime ``q`` that leaves 3 divided by 4 (Paley, 1933): 12, 20, 24, ... . What a matrix or a model
does not allow is left as it is, with a note.
"""

from dataclasses import dataclass
from functools import partial
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.convert import replace_modules
from ofqctl.hooks import attached
from ofqctl.ptq.exact import holds
from ofqctl.ptq.heads import SIDES, Basis, change_heads
from ofqctl.ptq.layer_norm import Pair, find_pairs
from ofqctl.ptq.task import Task
from ofqctl.recipe.methods import PTQ_STAGES
from ofqctl.recipe.plan import Replacement
from ofqctl.registry import Frozen


class Rotation(Frozen):
    """Rotate heads, the residual stream or both; runs before calibration, wherever it stands in the list.

    Attributes:
        heads: Whether queries, keys and values are rotated within each head.
        residual: Whether the residual stream is rotated, and LayerNorms become RMSNorms.
    """

    heads: bool = True
    residual: bool = False


class Obstacle(Exception):  # noqa: N818
    """Why a residual stream cannot be rotated."""


@PTQ_STAGES.register("rotation", Rotation, traits=["prepares"])
def rotate(task: Task, settings: Rotation) -> None:
    """Rotate the float model as far as that is exact, and say in notes what was left."""
    task.progress("rotate", 0, None)
    generator = torch.Generator().manual_seed(task.seed)
    done: dict[str, tuple[str, ...]] = {"keys": (), "values": (), "residual": ()}
    if settings.heads:
        done |= {side: change_heads(task, "rotation", side, partial(_basis, generator)) for side in SIDES}
    if settings.residual and task.plan.modules:
        try:
            replaced = rotate_residual(task.model, task.images[0][:1], generator)
        except Obstacle as obstacle:
            task.notes.append(f"rotation: the residual stream stays as it is: {obstacle}")
        else:
            task.plan = task.plan.model_copy(update={"replaced": {**task.plan.replaced, **replaced}})
            done["residual"] = tuple(replaced)
    task.figures["rotation"] = done


def _basis(generator: torch.Generator, _name: str, heads: int, width: int) -> Basis | str:
    rotations = [rotation_of(width, generator) for _ in range(heads)]
    found = [rotation for rotation in rotations if rotation is not None]
    return Basis(torch.stack(found)) if found else _no_matrix(width)


def _no_matrix(width: int) -> str:
    return f"there is no Hadamard matrix of the size {width} that is known here"


def rotation_of(size: int, generator: torch.Generator) -> Tensor | None:
    """A Hadamard matrix with random signs, orthogonal, (size, size), float64; None if there is none of this size."""
    matrix = _hadamard(size)
    signs = torch.randint(2, (size, 1), generator=generator) * 2.0 - 1.0
    return None if matrix is None else signs * matrix / size**0.5


def _hadamard(size: int) -> Tensor | None:
    """Entries of 1 and -1 in orthogonal rows, by doubling the smallest matrix that there is."""
    core = size & -size
    for doublings in range(core.bit_length() - 1, -1, -1):
        matrix = _paley(size >> doublings)
        if matrix is not None:
            for _ in range(doublings):
                matrix = torch.kron(matrix, torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64))
            return matrix
    return None


def _paley(size: int) -> Tensor | None:
    """The matrix of size 1, or that of Paley's first construction for the prime ``size - 1``."""
    prime = size - 1
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    if prime % 4 != 3 or any(prime % n == 0 for n in range(2, isqrt(prime) + 1)):
        return None
    numbers = torch.arange(prime)
    residue = torch.full((prime,), -1.0, dtype=torch.float64)
    residue[numbers.square() % prime] = 1.0
    residue[0] = 0.0
    matrix = torch.ones(size, size, dtype=torch.float64)
    matrix[1:, 0] = -1.0
    matrix[1:, 1:] = residue[(numbers[None] - numbers[:, None]) % prime] + torch.eye(prime, dtype=torch.float64)
    return matrix


@dataclass(frozen=True)
class Stream:
    """What writes to the residual stream of a model, and what reads it.

    Attributes:
        width: Number of its channels.
        pairs: LayerNorms that read it, with the Linear layers behind them.
        writers: Names of the Linear layers and convolutions that write to it.
        tokens: Names of parameters that are added or concatenated to it, (1, N, C).
        scales: Name of each LayerScale, with that of the writer ahead of it.
    """

    width: int
    pairs: tuple[Pair, ...]
    writers: tuple[str, ...]
    tokens: tuple[str, ...]
    scales: dict[str, str]


def rotate_residual(model: nn.Module, image: Tensor, generator: torch.Generator) -> dict[str, Replacement]:
    """Rotate the residual stream of a float model in place.

    Args:
        model: A float model in evaluation mode.
        image: One image, (1, 3, H, W).
        generator: Random generator of the signs, on the CPU.

    Returns:
        The LayerNorms that became RMSNorms.

    Raises:
        Obstacle: It would not be exact; the model is unchanged.
    """
    stream = find_stream(model, image)
    rotation = rotation_of(stream.width, generator)
    if rotation is None:
        raise Obstacle(_no_matrix(stream.width))
    change = partial(_rotate, stream=stream, rotation=rotation)
    if not holds(model, image, change):
        raise Obstacle("something else than its Linear layers and convolutions writes to it or reads it")
    change(model)
    return dict.fromkeys((pair.norm for pair in stream.pairs), "rms_norm")


def find_stream(model: nn.Module, image: Tensor) -> Stream:
    """The residual stream of a float model, as far as shapes and what reads LayerNorms tell.

    Raises:
        Obstacle: It cannot be rotated.
    """
    modules: dict[str, Any] = dict(model.named_modules())
    pairs = find_pairs(model, image)
    widths = sorted({modules[pair.norm].weight.numel() for pair in pairs})
    if len(widths) != 1:
        seen = ", ".join(map(str, widths))
        raise Obstacle(f"LayerNorms have {seen} channels" if widths else "no LayerNorm is read by Linear layers alone")
    width = widths[0]
    known = {pair.norm for pair in pairs}
    for name, norm in modules.items():
        if isinstance(norm, nn.LayerNorm) and norm.normalized_shape == (width,) and name not in known:
            raise Obstacle(f"what {name} gives is read by more than Linear layers")
    for pair in pairs:
        shift = modules[pair.norm].bias
        if not pair.shifts and shift is not None and bool(shift.any()):
            raise Obstacle(f"there is no bias to take up the shift of {pair.norm}")
    readers = {name for pair in pairs for name in pair.readers}
    writers = tuple(n for n, m in modules.items() if n not in readers and _outputs(m) == width)
    scales = _scales(model, image, writers)
    tokens = (n for n, p in model.named_parameters() if p.dim() == 3 and p.shape[-1] == width)
    return Stream(width, tuple(pairs), writers, tuple(tokens), scales)


def _outputs(module: nn.Module) -> int | None:
    if isinstance(module, nn.Linear):
        return module.out_features
    return module.out_channels if isinstance(module, nn.Conv2d) else None


def _scales(model: nn.Module, image: Tensor, writers: tuple[str, ...]) -> dict[str, str]:
    """Each LayerScale, and the layer whose output it gets."""
    from timm.layers.layer_scale import LayerScale

    last: dict[str, Tensor] = {}
    found: dict[str, str] = {}

    def scale(name: str, x: Tensor) -> None:
        for writer, output in last.items():
            if torch.equal(output, x):
                found[name] = writer

    def wrote(name: str, output: Tensor) -> None:
        last.clear()
        last[name] = output

    modules = dict(model.named_modules())
    exits = [modules[n].register_forward_hook(lambda _m, _a, output, n=n: wrote(n, output)) for n in writers]
    entries = [
        module.register_forward_pre_hook(lambda _m, args, n=n: scale(n, args[0]))
        for n, module in modules.items()
        if isinstance(module, LayerScale)
    ]
    with attached([*exits, *entries]), torch.no_grad():
        model(image)
    return found


def _rotate(model: nn.Module, stream: Stream, rotation: Tensor) -> None:
    """Write ``x M R`` in place of ``x``, and read it so."""
    modules: dict[str, Any] = dict(model.named_modules())
    centred = rotation - rotation.mean(dim=0, keepdim=True)
    with torch.no_grad():
        for name, writer in stream.scales.items():
            gain = modules[name].gamma
            _write(modules[writer], torch.diag(gain.cpu().double()))
            gain.fill_(1.0)
        for pair in stream.pairs:
            norm = modules[pair.norm]
            gain, shift = norm.weight.cpu().double(), norm.bias
            for reader in (modules[name] for name in pair.readers):
                weight = reader.weight.cpu().double()
                if shift is not None and bool(shift.any()):
                    reader.bias += (weight @ shift.cpu().double()).to(reader.bias)
                reader.weight.copy_(weight * gain @ rotation)
            norm.weight.fill_(1.0)
        for name in stream.writers:
            _write(modules[name], centred)
        for token in (model.get_parameter(name) for name in stream.tokens):
            token.copy_(token.cpu().double() @ centred)
    replace_modules(model, dict.fromkeys((pair.norm for pair in stream.pairs), "rms_norm"))


def _write(layer: Any, matrix: Tensor) -> None:
    """Multiply the outputs of a Linear or a convolution, rows (C,), by ``matrix`` (C, C)."""
    weight = matrix.T @ layer.weight.cpu().double().flatten(1)
    layer.weight.copy_(weight.reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.copy_(layer.bias.cpu().double() @ matrix)
