"""DenseShift, zero-free powers of two (Li et al., ICCV 2023, arXiv 2208.09708).

A weight is a sign times a power of two: +-1 and 2 steps at 2 bits, +-1 to 8 at 3, +-1 to 128 at 4, never 0. Products
are then shifts and additions on hardware that has them, and in exported files products of integers. Sign and power are
trained by latents of their own, so that a weight changes its size without passing through all sizes between. It is for
weights alone and needs training; with ``2**(bits-1) - 1`` more latents beside each weight, training takes 2, 4 or 8
times the memory of a weight and its optimizer state, and nothing at inference. In the paper it works from scratch and
on convolutional networks; there is no published vision transformer.

With latents ``w`` of the sign and ``t_1 .. t_T`` of the power, ``T = 2**(bits-1) - 1``, the value is

    step * sign * 2**S,    sign = 1 if w > 0 else -1,    S_0 = 0,    S_k = (S_(k-1) + 1) * [t_k > 0],    S = S_T,

so ``S`` is the number of positive ``t`` at the end. Backward, sign and ``[t_k > 0]`` are passed straight through, and
``2**S`` is ``sqrt(S + 1)``, the paper's "local learning rate rescaling". All ``t`` start from a normal distribution of
low variance, 1e-3.

Decisions. The paper's scale is that of batch normalization; a ViT has none, so each row has a grid step, learned, or
fixed to ``rms(row) / rms(levels)`` at the start. From pretrained weights, the sign latents are the weights, the step
has the least squared error, and the powers are the nearest: of the ``t`` that were drawn, the last ``S`` are made
positive and the one before negative. With ``start: random`` the powers are those of the draw. A run's codes are taken
over in the same way. The latents ``t`` decay as weights do. ``decomposition: false`` rounds one latent weight to the
same grid, for comparison. For the analysis, a weight's distance to its threshold is half of the smallest of its
latents that would change its code, relative to the root mean square of these latents in the layer.
"""

from typing import Annotated, Any, Literal, Self
from zlib import crc32

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.autograd import Function

from ofqctl.grids import SMALLEST_STEP, Encoded, TableGrid
from ofqctl.quantizers.base import Quantizer, by_group
from ofqctl.quantizers.cores import step_gradient_scale
from ofqctl.quantizers.ranges import step_of_least_error
from ofqctl.recipe.methods import QUANTIZERS
from ofqctl.recipe.plan import AT_START, QuantizerPlan
from ofqctl.registry import Frozen

_WIDTHS = (2, 3, 4)
_ROUNDS = 20  # of a step that follows from codes that follow from it
_SMALLEST = 1e-6  # of latents whose sign is given, so that they keep it in any float type


class DenseShiftSettings(Frozen):
    """Settings of DenseShift in a recipe.

    Attributes:
        decomposition: Whether sign and power have latents of their own; otherwise one latent weight is rounded.
        step: Whether the grid step of a row is ``learned``, or fixed so that the quantized row has the root mean square
            of the float row at the start (``rms``).
        start: Where powers start: at those nearest to the ``pretrained`` weights, or at ``random``, as published.
        variance: Variance of the normal distribution that the latents of the powers start from.
    """

    decomposition: bool = True
    step: Literal["learned", "rms"] = "learned"
    start: Annotated[Literal["pretrained", "random"], AT_START] = "pretrained"
    variance: Annotated[float, AT_START] = Field(default=1e-3, gt=0.0)

    def refused(self, bits: int) -> str | None:
        """Powers of two of more bits need integers of thousands of bits, and there is no power at 1."""
        if bits in _WIDTHS:
            return None
        return (
            "denseshift has 2, 3 or 4 bits: 1 leaves the sign alone, and from 5 on the powers go up to 2**15 and more"
        )

    @model_validator(mode="after")
    def _draws_latents_that_exist(self) -> Self:
        if self.start == "random" and not self.decomposition:
            raise ValueError("start: random draws the latents of the powers, which decomposition: false does not have")
        return self


@QUANTIZERS.register("denseshift", DenseShiftSettings, roles=["weights"])
class DenseShift(Quantizer):
    """Zero-free powers of two, whose sign and power have latents of their own.

    Attributes:
        scales: Latents of the powers, (T, *shape of the weight); those of the signs are the latent weight.
    """

    settings: DenseShiftSettings
    points: Tensor

    def __init__(self, plan: QuantizerPlan) -> None:
        super().__init__(plan)
        step = torch.ones(plan.step_shape)
        if self.settings.step == "learned":
            self.step = nn.Parameter(step)
        else:
            self.register_buffer("step", step)
        powers = 2.0 ** torch.arange(self.range.count // 2)
        self.register_buffer("points", torch.cat([-powers.flip(0), powers]), persistent=False)
        if self.settings.decomposition:
            if plan.shape is None:
                raise ValueError("denseshift needs the shape of the weight, for latents beside it")
            self.scales = nn.Parameter(torch.zeros(self.range.high, *plan.shape))
            self.own_latents = ("scales",)
        self._weight: Tensor | None = None

    @property
    def grid(self) -> TableGrid:
        """Signs times powers of two."""
        return TableGrid(self.range, self.points.float())

    def encode(self, x: Tensor) -> Encoded:
        """Codes of the latents; ``x`` are those of the signs."""
        if not self.settings.decomposition:
            return super().encode(x)
        with torch.no_grad():
            codes = _codes(x > 0, _runs(self.scales)[-1])
            positions = codes + _towards_next(x.float(), self.scales.float())
        step = self.step.float().clamp(min=SMALLEST_STEP)
        return Encoded(codes.to(self.range.dtype), step, self.grid, positions=positions)

    def forward(self, x: Tensor) -> Tensor:
        """The value, with the gradients of the surrogate."""
        if self.observing or not self.settings.decomposition:
            return super().forward(x)
        scale = step_gradient_scale(1 << self.range.high, x.numel() / max(1, self.step.numel()))
        value: Tensor = _Shifted.apply(x, self.scales, self.step, self.grid, scale)
        return value

    def latent_of(self, codes: Encoded) -> Tensor:
        """The values, whose signs are the latents of the signs; those of the powers are drawn to fit."""
        values = codes.decode()
        if self.settings.decomposition:
            with torch.no_grad():
                self.scales.copy_(self._drawn(values, _powers(codes.codes)))
        return values

    def no_weight_decay(self) -> set[str]:
        """The grid step; latents of powers decay as those of signs do."""
        return {"step"}

    def _take_in(self, x: Tensor) -> None:
        self._weight = x.float().clone()

    def finish(self) -> None:
        """Set the grid steps and the latents of the powers."""
        weight = self._weight
        if weight is None or not bool(torch.isfinite(weight).all()):
            raise ValueError("no finite weight to compute a grid step from")
        step = step_of_least_error(by_group(weight, self.plan.step_shape), self.grid).view(self.plan.step_shape)
        codes = self.grid.nearest(weight / step)
        with torch.no_grad():
            if self.settings.decomposition:
                random = self.settings.start == "random"
                self.scales.copy_(self._drawn(weight, None if random else _powers(codes)))
                codes = _codes(weight > 0, _runs(self.scales)[-1])
            if self.settings.step == "rms" or self.settings.start == "random":
                step = self._of_same_rms(weight, codes)
            self.step.copy_(step)
        self._weight = None

    def _of_same_rms(self, weight: Tensor, codes: Tensor) -> Tensor:
        """The grid steps with which the values of a row have the root mean square of the weight."""
        for _ in range(_ROUNDS):
            rows, levels = (by_group(t, self.plan.step_shape) for t in (weight, self.grid.points(codes)))
            step = (_rms(rows) / _rms(levels)).clamp(min=SMALLEST_STEP).view(self.plan.step_shape)
            if self.settings.decomposition:
                break
            codes = self.grid.nearest(weight / step)  # which the step changes
        return step

    def _drawn(self, weight: Tensor, powers: Tensor | None) -> Tensor:
        """Latents of powers, drawn from a seed that the weight gives, with signs that give ``powers`` if there are any.

        Returns:
            Tensor (T, *shape of the weight).
        """
        seed = crc32(weight.detach().cpu().float().contiguous().numpy().tobytes())
        drawn = torch.randn(self.scales.shape, generator=torch.Generator().manual_seed(seed)).to(self.scales.device)
        drawn *= self.settings.variance**0.5
        if powers is None:
            return drawn
        last = _numbers(self.scales) - (len(self.scales) - powers)  # 1 .. S for the last S, 0 for the one before
        sizes = drawn.abs().clamp(min=_SMALLEST)
        return torch.where(last > 0, sizes, torch.where(last == 0, -sizes, drawn))


class _Shifted(Function):
    """``step * sign * 2**S`` of latents; keeps nothing but these, which are parameters."""

    @staticmethod
    def forward(ctx: Any, signs: Tensor, scales: Tensor, step: Tensor, grid: TableGrid, scale: float) -> Tensor:
        ctx.save_for_backward(signs, scales, step)
        ctx.grid, ctx.scale = grid, scale
        points = grid.points(_codes(signs > 0, _runs(scales)[-1]))
        return points.mul_(step.float().clamp(min=SMALLEST_STEP)).to(signs.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        signs, scales, step = ctx.saved_tensors
        grad, positive, runs = grads[0].float(), signs > 0, _runs(scales)
        levels = ctx.grid.points(_codes(positive, runs[-1]))
        of_step = (grad * levels).sum_to_size(step.shape) * ctx.scale
        grad, root = grad * step.float(), (runs[-1] + 1.0).sqrt()
        of_power = torch.where(positive, grad, -grad) / (2.0 * root)
        of_scales = torch.empty_like(scales)
        for k in reversed(range(len(scales))):
            of_scales[k] = of_power * (runs[k] + 1)
            of_power = torch.where(scales[k] > 0, of_power, 0.0)
        return (grad * root).to(signs.dtype), of_scales, of_step.to(step.dtype), None, None


def _runs(scales: Tensor) -> list[Tensor]:
    """``S_0 .. S_T``: how many of the first latents of each weight are positive at their end, int64."""
    runs = [torch.zeros(scales.shape[1:], dtype=torch.int64, device=scales.device)]
    for latents in scales:
        runs.append((runs[-1] + 1).masked_fill_(latents <= 0, 0))
    return runs


def _codes(positive: Tensor, powers: Tensor) -> Tensor:
    return torch.where(positive, powers, -1 - powers)


def _powers(codes: Tensor) -> Tensor:
    return torch.where(codes >= 0, codes, -1 - codes)


def _numbers(scales: Tensor) -> Tensor:
    """``1 .. T``, which broadcast to the latents of powers."""
    return torch.arange(1, len(scales) + 1, device=scales.device).view(-1, *(1,) * (scales.dim() - 1))


def _rms(rows: Tensor) -> Tensor:
    return rows.square().mean(dim=1, keepdim=True).sqrt()


def _towards_next(signs: Tensor, scales: Tensor) -> Tensor:
    """How far each weight is from its code towards the next, -1/2..1/2: 0 if no latent is near 0."""
    powers = _runs(scales)[-1]
    decides = _numbers(scales) >= len(scales) - powers  # whether the code would be another one if its sign changed
    sizes = (scales.abs() / _typical(scales)).masked_fill(~decides, torch.inf)
    of_power, at = sizes.min(dim=0)
    of_sign = signs.abs() / _typical(signs)
    grows = (of_power < of_sign) & (at + 1 == len(scales) - powers)
    share = 0.5 * (1.0 - torch.minimum(of_power, of_sign).clamp(max=1.0))
    return torch.where(grows == (signs > 0), share, -share)


def _typical(latents: Tensor) -> Tensor:
    return latents.square().mean().sqrt().clamp(min=torch.finfo(torch.float32).tiny)
