"""Count the bytes of a run: codes, grid steps, float tensors, and the ideal size."""

from collections.abc import Iterable

from torch import Tensor, nn

from ofqctl.artifact.tensors import to_tensors
from ofqctl.layers import weight_sites
from ofqctl.results.size import Ledger


def make_ledger(model: nn.Module, *, total: int, float_model: int) -> Ledger:
    """Count the bytes of a quantized model.

    Args:
        model: The quantized model.
        total: Size of its weights file in bytes.
        float_model: Size of the float model's weights in bytes.
    """
    tensors = to_tensors(model)
    codes = _bytes(t for name, t in tensors.items() if name.endswith(".codes"))
    steps = _bytes(t for name, t in tensors.items() if name.endswith((".step", ".offset", ".points", ".thresholds")))
    everything = _bytes(tensors.values())
    bits = sum(
        site.latent().numel() * site.weight_quantizer.range.bits
        for _, site in weight_sites(model)
        if site.weight_quantizer is not None
    )
    leftovers = everything - codes - steps
    return Ledger(
        codes=codes,
        steps=steps,
        float_leftovers=leftovers,
        ideal=-(-bits // 8) + steps + leftovers,
        total=total,
        float_model=float_model,
    )


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
