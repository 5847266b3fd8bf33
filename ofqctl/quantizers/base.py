"""The contract that every quantizer keeps."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ofqctl.grids import SMALLEST_STEP, CodeRange, Encoded, Grid, symmetric_grid
from ofqctl.quantizers.cores import over_largest
from ofqctl.quantizers.fake_quantize import fake_quantize
from ofqctl.recipe.plan import QuantizerPlan


class Quantizer(nn.Module, ABC):
    """Turns a tensor into codes; ``forward(x)`` is exactly ``encode(x).decode()``, differentiable.

    Start values come from data: ``observe`` any number of tensors, then ``finish``.

    Attributes:
        method: The name of the method in a recipe.
        plan: What this quantizer was built from; ``describe`` gives it as it is now.
        range: The integers that a code may be.
        step: What the points of the grid are multiplied by, broadcasts to the tensor; a parameter or a buffer.
        before: Learned shift ahead of rounding, or None.
        after: Learned shift behind it, or None.
        frozen: Of a weight: whose codes are fixed for good; bool, of its shape. None, and in no state dict, unless a
            remedy keeps it.
        observing: While set, tensors pass unchanged and are taken into account for the start values.
    """

    method: ClassVar[str]
    range: CodeRange
    step: Tensor
    before: nn.Parameter | None
    after: nn.Parameter | None
    frozen: Tensor | None

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__()
        self.plan = plan
        self.observing = False
        self.range = CodeRange.of_bits(plan.bits, signed=plan.signed is not False)
        shift = None if plan.shift_shape is None else torch.zeros(plan.shift_shape)
        self.before = None if shift is None else nn.Parameter(shift)
        self.after = None if shift is None else nn.Parameter(shift.clone())
        self.register_buffer("frozen", None)

    @property
    def grid(self) -> Grid:
        """The points that codes stand for; here they lie evenly around 0."""
        return symmetric_grid(self.range)

    def encode(self, x: Tensor) -> Encoded:
        """Codes of ``x`` and what they mean."""
        x, largest = self.relative(x)
        moved = x.float() if self.before is None else x + self.before
        step, grid = self.step.clamp(min=SMALLEST_STEP), self.grid
        codes = grid.nearest(moved / step).to(grid.range.dtype)
        return Encoded(codes, step, grid, self.after, largest)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` snapped to the grid."""
        if self.observing:
            self.observe(x)
            return x
        rows, largest = self.relative(x)
        value = fake_quantize(rows, self.step, self.grid, self.before, self.after)
        return value if largest is None else (value * largest).to(value.dtype)

    def relative(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """What steps and shifts are for: ``x``, or if ``dynamic`` each row over its largest magnitude, and that."""
        return over_largest(x.to(torch.promote_types(x.dtype, torch.float32))) if self.plan.dynamic else (x, None)

    def observe(self, x: Tensor) -> None:
        """Take ``x`` into account for the start values."""
        self._take_in(self.relative(x.detach())[0])

    @abstractmethod
    def _take_in(self, x: Tensor) -> None:
        """Take into account what steps and shifts are for."""

    @abstractmethod
    def finish(self) -> None:
        """Set the start values from what was observed.

        Raises:
            ValueError: Nothing was observed, or something that is not finite.
        """

    def restore(self, codes: Encoded) -> None:
        """Take over the steps of stored codes, and what is stored of their grid where this has a tensor of the name."""
        with torch.no_grad():
            self.step.copy_(codes.step)
            for name, tensor in codes.grid.tensors().items():
                own = getattr(self, name, None)
                if isinstance(own, Tensor):
                    own.copy_(tensor)

    def latent_of(self, codes: Encoded) -> Tensor:
        """A tensor with these codes, once their steps are restored: here their values."""
        return codes.decode()

    def describe(self) -> QuantizerPlan:
        """The plan that builds this very quantizer again, but for its tensors."""
        return self.plan.model_copy(update={"signed": self.range.signed})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Have frozen codes if, and only if, the state has."""
        given = state_dict.get(f"{prefix}frozen")
        self.frozen = None if given is None else torch.zeros_like(given)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """One line of ``print(model)``."""
        return f"{self.plan.bits} bits, {self.range.low}..{self.range.high}, step {tuple(self.plan.step_shape)}"


def by_group(x: Tensor, step_shape: tuple[int, ...]) -> Tensor:
    """The elements of ``x`` that share a step, side by side.

    Args:
        x: Any shape to which ``step_shape`` broadcasts.
        step_shape: Shape of the step, aligned with the last dimensions of ``x``.

    Returns:
        (groups, elements that share a step); groups in the row-major order of ``step_shape``.
    """
    aligned = (1,) * (x.dim() - len(step_shape)) + tuple(step_shape)
    own = [d for d, size in enumerate(aligned) if size > 1]
    rest = [d for d, size in enumerate(aligned) if size == 1]
    groups = 1
    for d in own:
        groups *= aligned[d]
    return x.permute(*own, *rest).reshape(groups, -1)
