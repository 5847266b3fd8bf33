"""The contract that every quantizer follows."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.grids import SMALLEST_STEP, CodeRange, Encoded, Grid, symmetric_grid
from ofqctl.quantizers.cores import over_largest
from ofqctl.quantizers.fake_quantize import fake_quantize
from ofqctl.quantizers.reference import Rounding
from ofqctl.recipe.plan import QuantizerPlan


class Quantizer(nn.Module, ABC):
    """Turns a tensor into codes; ``forward(x)`` is exactly ``encode(x).decode()``, differentiable.

    Start values come from data: ``observe`` any number of tensors, then ``finish``.

    Attributes:
        plan: The plan that this quantizer was built from; ``describe`` returns its current state.
        settings: Settings of its method in the plan; a subclass declares their class.
        range: Range of the codes.
        step: Grid step (scale), by which the points of the grid are multiplied; broadcasts to the tensor. A parameter
            or a buffer.
        before: Learned shift added before rounding, or None.
        after: Learned shift added after rounding, or None.
        frozen: For a weight, which of its elements have permanently fixed codes: bool, in the shape of the weight.
            None, and absent from state dicts, unless a remedy freezes codes.
        observing: While true, tensors pass unchanged and are observed for the start values.
        own_latents: Names of parameters of a weight's quantizer that codes follow from beside the latent weight.
        passes: Number of forward passes in one optimizer step, over all micro-batches and processes, each of which
            quantizes a part of the batch; 1 for a weight, which every pass quantizes whole. It scales the gradient of a
            learned grid step.
    """

    settings: Any
    range: CodeRange
    step: Tensor
    before: nn.Parameter | None
    after: nn.Parameter | None
    frozen: Tensor | None
    own_latents: tuple[str, ...] = ()

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__()
        self.plan = self.settings = plan
        self.observing = False
        self.passes = 1
        self.range = CodeRange.of_bits(plan.bits, signed=plan.signed is not False)
        shift = None if plan.shift_shape is None else torch.zeros(plan.shift_shape)
        self.before = None if shift is None else nn.Parameter(shift)
        self.after = None if shift is None else nn.Parameter(shift.clone())
        self.register_buffer("frozen", None)

    @property
    def grid(self) -> Grid:
        """The grid of the codes; by default its points are evenly spaced around 0."""
        return symmetric_grid(self.range)

    @property
    def rounding(self) -> Rounding | None:
        """What rounding is to autograd; None for the identity between the outermost points (straight-through)."""
        return None

    def encode(self, x: Tensor) -> Encoded:
        """Codes of ``x``, with their grid step and grid."""
        x, largest = self.relative(x)
        moved = x.float() if self.before is None else x.float() + self.before.float()
        step, grid = self.step.float().clamp(min=SMALLEST_STEP), self.grid
        codes = grid.nearest(moved / step).to(grid.range.dtype)
        after = None if self.after is None else self.after.float()
        return Encoded(codes, step, grid, after, largest)

    def forward(self, x: Tensor) -> Tensor:
        """``x`` rounded to the grid (fake quantization)."""
        if self.observing:
            self.observe(x)
            return x
        given = self.step, self.grid, self.before, self.after, self.passes
        return fake_quantize(x, *given, relative=self.plan.dynamic, rounding=self.rounding)

    def relative(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """``x`` and None; if ``dynamic``, ``x`` divided by the largest magnitude of each row, and these magnitudes."""
        return over_largest(x.float()) if self.plan.dynamic else (x, None)

    def observe(self, x: Tensor) -> None:
        """Use ``x`` for the start values."""
        self._take_in(self.relative(x.detach())[0])

    @property
    def starts_in_turn(self) -> bool:
        """Whether an activation quantizer starts from inputs that other, already started quantizers have quantized.

        Otherwise it starts from float activations.
        """
        return False

    @abstractmethod
    def _take_in(self, x: Tensor) -> None:
        """Observe a tensor, already divided by its rows' magnitudes if ``dynamic``."""

    @abstractmethod
    def finish(self) -> None:
        """Set the start values from what was observed.

        Raises:
            ValueError: Nothing was observed, or values that are not finite.
        """

    def restore(self, codes: Encoded) -> None:
        """Load the grid steps of stored codes, and those tensors of their grid that this quantizer has by name."""
        with torch.no_grad():
            self.step.copy_(codes.step)
            for name, tensor in codes.grid.tensors().items():
                own = getattr(self, name, None)
                if isinstance(own, Tensor):
                    own.copy_(tensor)

    def latent_of(self, codes: Encoded) -> Tensor:
        """A tensor that is encoded as these codes once their grid steps are restored; by default their values.

        Latents of its own are set to what, beside this tensor, gives these codes.
        """
        return codes.decode()

    def no_weight_decay(self) -> set[str]:
        """Names of the quantizer's parameters that get no weight decay, as in timm's models; by default all."""
        return {name for name, _ in self.named_parameters(recurse=False)}

    def describe(self) -> QuantizerPlan:
        """The plan that builds this quantizer again, except for its tensors."""
        return self.plan.model_copy(update={"signed": self.range.signed})

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Create or drop ``frozen`` so that it matches the loaded state."""
        given = state_dict.get(f"{prefix}frozen")
        self.frozen = None if given is None else torch.zeros_like(given)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def extra_repr(self) -> str:
        """One line of ``print(model)``."""
        return f"{self.plan.bits} bits, {self.range.low}..{self.range.high}, step {tuple(self.plan.step_shape)}"


def by_group(x: Tensor, step_shape: tuple[int, ...]) -> Tensor:
    """The elements of ``x``, grouped by the grid step that they share.

    Args:
        x: Tensor of any shape that ``step_shape`` broadcasts to.
        step_shape: Shape of the grid step, aligned with the last dimensions of ``x``.

    Returns:
        Tensor (groups, elements of a group); groups are in the row-major order of ``step_shape``.
    """
    aligned = (1,) * (x.dim() - len(step_shape)) + tuple(step_shape)
    own = [d for d, size in enumerate(aligned) if size > 1]
    rest = [d for d, size in enumerate(aligned) if size == 1]
    groups = 1
    for d in own:
        groups *= aligned[d]
    return x.permute(*own, *rest).reshape(groups, -1)
