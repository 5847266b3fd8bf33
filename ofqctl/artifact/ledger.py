"""Count the bytes of a run: codes, grid steps, float tensors, and the ideal size."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from ofqctl.artifact.tensors import to_tensors
from ofqctl.layers import weight_sites


@dataclass(frozen=True)
class Ledger:
    """Sizes in bytes.

    Attributes:
        codes: Packed codes of all quantized weights.
        steps: Grid steps, zero points and tables of points, of weights and activations.
        float_leftovers: Everything else: biases, norms, embeddings, learned shifts, layers left in float.
        ideal: Codes at exactly their bit-width, plus ``steps`` and ``float_leftovers``.
        total: Size of the file, header included.
        float_model: Size of the float model's weights in bytes.
    """

    codes: int
    steps: int
    float_leftovers: int
    ideal: int
    total: int
    float_model: int

    def as_dict(self) -> dict[str, int]:
        """The sizes as a dictionary, for JSON."""
        return asdict(self)


def make_ledger(model: nn.Module, *, total: int, float_model: int) -> Ledger:
    """Count the bytes of a quantized model.

    Args:
        model: The quantized model.
        total: Size of its weights file in bytes.
        float_model: Size of the float model's weights in bytes.
    """
    tensors = to_tensors(model)
    codes = _bytes(t for name, t in tensors.items() if name.endswith(".codes"))
    steps = _bytes(t for name, t in tensors.items() if name.endswith((".step", ".offset", ".points")))
    everything = _bytes(tensors.values())
    bits = sum(
        site.latent().numel() * site.weight_quantizer.range.bits
        for _, site in weight_sites(model)
        if site.weight_quantizer is not None
    )
    leftovers = everything - codes - steps
    return Ledger(codes, steps, leftovers, -(-bits // 8) + steps + leftovers, total, float_model)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
