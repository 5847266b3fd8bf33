"""Read the quantized weights of a file one at a time: codes, and latent values if there are any."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ofqctl.errors import ArtifactError
from ofqctl.grids import Encoded
from ofqctl.layers import weight_sites
from ofqctl.layers.attention import MergedQueryKey
from ofqctl.oscillation import Role, in_parts, roles_of
from ofqctl.quantizers import Quantizer, build_quantizer
from ofqctl.recipe import ModulePlan, Plan


@dataclass(frozen=True)
class AnalyzedWeight:
    """One quantized weight, or one of the equal parts of the rows of a fused one.

    Attributes:
        name: Name of its module.
        role: Its role in the model.
        part: Number of the part, counted from 0.
        method: Method of its quantizer.
        latent: Latent values, or None if there are only codes.
        encoded: Codes, grid steps and grid.
    """

    name: str
    role: Role
    part: int
    method: str
    latent: Tensor | None
    encoded: Encoded

    @property
    def key(self) -> tuple[str, Role]:
        """What identifies it within its model."""
        return self.name, self.role

    def rows(self, tensor: Tensor) -> Tensor:
        """``tensor`` (in the weight's shape) with a row for each output channel: (channels, weights of a channel)."""
        return tensor.flatten(0, 1) if tensor.dim() == 3 else tensor.flatten(1)


def weights_of_state(plan: Plan, state: Mapping[str, Tensor]) -> Iterator[AnalyzedWeight]:
    """The latent weights in a model's state dict; the model itself is not needed.

    Args:
        plan: The plan of the model.
        state: State dict of the quantized model.

    Raises:
        ArtifactError: The state does not belong to a model with this plan.
    """
    for name, module in plan.modules.items():
        if module.weight is None:
            continue
        try:
            quantizer = build_quantizer(module.weight)
            merged = module.kind == "qkr"
            prefix = f"{name}.products.qk." if merged else f"{name}."
            own = f"{prefix}weight_quantizer."
            quantizer.load_state_dict({k.removeprefix(own): t for k, t in state.items() if k.startswith(own)})
            latent = _merged(name, module, state) if merged else state[f"{prefix}weight"].float()
        except (KeyError, RuntimeError) as error:
            reason = str(error).splitlines()[-1].strip()
            raise ArtifactError(f"{name}: its weight does not fit the plan in the file: {reason}") from error
        with torch.no_grad():
            yield from _parts(prefix.removesuffix("."), quantizer, latent, quantizer.encode(latent))


def weights_of_model(model: nn.Module) -> Iterator[AnalyzedWeight]:
    """The weights of a quantized model whose codes are fixed."""
    for name, site in weight_sites(model):
        assert site.weight_quantizer is not None and site.fixed_codes is not None
        yield from _parts(name.removesuffix(".weight"), site.weight_quantizer, None, site.fixed_codes)


def _parts(name: str, quantizer: Quantizer, latent: Tensor | None, encoded: Encoded) -> Iterator[AnalyzedWeight]:
    roles = roles_of(name, encoded.codes.shape[0])
    for part, role in enumerate(roles):
        own = partial(_part, part, len(roles))
        values = None if latent is None else own(latent)
        yield AnalyzedWeight(name, role, part, quantizer.plan.method, values, encoded.map(own))


def _part(part: int, count: int, tensor: Tensor) -> Tensor:
    return in_parts(tensor, count)[part]


def _merged(block: str, plan: ModulePlan, state: Mapping[str, Tensor]) -> Tensor:
    """The merged query-key product of a block, (heads, width, width)."""
    prefix = f"{block}.products.qk."
    query, key = state[f"{prefix}q"], state[f"{prefix}k"]
    merged = MergedQueryKey(query, key, _heads(block, plan, state), ModulePlan(kind="qkr"))
    merged.correction = state.get(f"{prefix}correction")
    with torch.no_grad():
        return merged.latent().float()


def _heads(block: str, plan: ModulePlan, state: Mapping[str, Tensor]) -> int:
    """Number of heads, from any tensor with a dimension for them."""
    term, operand = state.get(f"{block}.products.key_term"), plan.operands.get("qkx")
    shapes = [plan.weight.step_shape if plan.weight else (), () if term is None else tuple(term.shape)]
    shapes += [operand.step_shape, operand.shift_shape or ()] if operand else []
    heads = max((shape[0] for shape in shapes if len(shape) > 1), default=1)
    if heads == 1 and f"{block}.products.qk.correction" in state:
        return int(state[f"{block}.products.qk.correction"].shape[0])
    return heads
