"""Where the bytes of an artifact are: codes, steps, float leftovers, and what they would ideally take."""

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
        steps: Steps, zero points and tables of points, of weights and activations.
        float_leftovers: Everything else: biases, norms, embeddings, learned shifts, layers left in float.
        ideal: Codes at exactly their bits, plus steps and float leftovers.
        total: Size of the file, header included.
        float_model: Weights of the float model.
    """

    codes: int
    steps: int
    float_leftovers: int
    ideal: int
    total: int
    float_model: int

    def as_dict(self) -> dict[str, int]:
        """For JSON."""
        return asdict(self)


def make_ledger(model: nn.Module, *, total: int, float_model: int) -> Ledger:
    """Count the bytes of a quantized model.

    Args:
        model: The quantized model.
        total: Size of its file.
        float_model: Size of the float model's weights.
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
