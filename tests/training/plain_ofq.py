"""OFQ's training step written out after the paper (Liu et al., ICML 2023), with plain torch and timm's float modules.

Slow, and sharing no line with the package: what its fast layers, quantizers and losses are held against. Parameters
carry the names that they have in a quantized model, so that its state can be loaded.
"""

import copy
from collections.abc import Mapping

import torch
from timm.layers import Attention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn import functional as F

State = Mapping[str, Tensor]


class StatsQ(Function):
    """Rows of a matrix on ``2**bits`` levels at half steps, ``s = 2 mean|w|``; the gradient of the identity."""

    @staticmethod
    def forward(ctx, weight, bits):
        half = 2 ** (bits - 1)
        scale = 2 * weight.abs().mean(dim=-1, keepdim=True)
        codes = ((weight / scale).clamp(-1, 1 - 1e-6) * half - 0.5).round()
        return scale / half * (codes + 0.5)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


class LSQ(Function):
    """``s * round(clip(x / s, low, high))`` with the gradients of Esser et al. (2020), Eq. 3 and 4.

    What the gradient of a step is the sum of is kept in its quantizer, added up without signs: as ``terms``.
    """

    @staticmethod
    def forward(ctx, x, step, quantizer):
        ctx.save_for_backward(x, step)
        ctx.quantizer = quantizer
        return step * (x / step).clamp(quantizer.low, quantizer.high).round()

    @staticmethod
    def backward(ctx, grad):
        (x, step), low, high = ctx.saved_tensors, ctx.quantizer.low, ctx.quantizer.high
        position = x / step
        inside = (position >= low) & (position <= high)
        slope = torch.where(inside, position.round() - position, position.clamp(low, high))
        elements = grad.numel() / step.numel()  # of the whole batch that share a step
        terms = grad * slope / (high * elements) ** 0.5
        ctx.quantizer.terms = terms.abs().sum_to_size(step.shape)
        return grad * inside, terms.sum_to_size(step.shape), None


class Quantizer(nn.Module):
    """LSQ with learned shifts ahead and behind, where the state has them."""

    def __init__(self, state: State, name: str, bits: int, *, signed: bool = True):
        super().__init__()
        self.low, self.high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
        for own in ("before", "after", "step"):
            found = state.get(f"{name}.{own}")
            self.register_parameter(own, None if found is None else nn.Parameter(torch.empty_like(found)))

    def forward(self, x):
        x = x if self.before is None else x + self.before
        x = LSQ.apply(x, self.step, self)
        return x if self.after is None else x + self.after


class Layer(nn.Module):
    """Linear or convolution: StatsQ weights, or LSQ at 8 bits in the first and last layers; its input by LSQ."""

    def __init__(self, layer: nn.Module, state: State, name: str, bits: int):
        super().__init__()
        self.layer = [layer]  # not a submodule: its parameters are taken over
        self.weight, self.bias = layer.weight, layer.bias
        outer = name.startswith(("patch_embed", "head"))
        self.bits = 8 if outer else bits
        self.weight_quantizer = Quantizer(state, f"{name}.weight_quantizer", 8) if outer else None
        self.input = nn.Identity()
        if f"{name}.input.step" in state:
            self.input = Quantizer(state, f"{name}.input", self.bits, signed=not name.endswith("fc2"))

    def forward(self, x):
        x = self.input(x)
        weight = self.weight_quantizer(self.weight) if self.weight_quantizer else StatsQ.apply(self.weight, self.bits)
        if isinstance(self.layer[0], nn.Conv2d):
            return F.conv2d(x, weight, self.bias, self.layer[0].stride)
        return F.linear(x, weight, self.bias)


class MergedAttention(nn.Module):
    """Attention with ``W_qk[h] = Wq[h]^T Wk[h]`` quantized: ``logits = x_q W_qk x_q^T d^-0.5``."""

    def __init__(self, attention: nn.Module, state: State, name: str, bits: int):
        super().__init__()
        self.heads, self.bits, width = attention.num_heads, bits, attention.qkv.in_features
        self.proj = attention.proj
        if isinstance(attention, WindowAttention):
            self.relative_position_bias_table = attention.relative_position_bias_table
            self.register_buffer("index", attention.relative_position_index, persistent=False)
        own = self.products = nn.Module()
        for operand in ("x", "qkx", "softmax", "v"):
            quantizer = Quantizer(state, f"{name}.products.{operand}", bits, signed=operand != "softmax")
            own.add_module(operand, quantizer)
        own.qk, own.v_proj = nn.Module(), nn.Linear(width, width)
        own.qk.q, own.qk.k = nn.Parameter(torch.empty(width, width)), nn.Parameter(torch.empty(width, width))
        term = state.get(f"{name}.products.key_term")
        own.key_term = None if term is None else nn.Parameter(torch.empty_like(term))

    def forward(self, x, mask=None, **_):
        own, (B, N, C) = self.products, x.shape
        x = own.x(x)
        q, k = (projection.reshape(self.heads, -1, C) for projection in (own.qk.q, own.qk.k))
        merged = StatsQ.apply(q.transpose(1, 2) @ k, self.bits)  # (H, C, C)
        weighted = own.qkx(torch.einsum("hcd,bnd->bhnc", merged, x))
        logits = torch.einsum("bnc,bhmc->bhnm", x, weighted)
        if own.key_term is not None:
            logits = logits + torch.einsum("hc,bmc->bhm", own.key_term, x)[:, :, None]
        logits = logits * (C // self.heads) ** -0.5
        if hasattr(self, "index"):
            logits = logits + self.relative_position_bias_table[self.index].permute(2, 0, 1)
        if mask is not None:  # of a Swin's shifted windows, (windows, N, N)
            logits = (logits.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        value = F.linear(x, StatsQ.apply(own.v_proj.weight, self.bits), own.v_proj.bias)
        value = own.v(value.reshape(B, N, self.heads, -1).transpose(1, 2))
        return self.proj((own.softmax(logits.softmax(-1)) @ value).transpose(1, 2).reshape(B, N, C))


def quantized(model: nn.Module, state: State, bits: int) -> nn.Module:
    """The float ``model`` with every layer and every attention block as OFQ has them, and the tensors of ``state``."""
    model = copy.deepcopy(model)
    for kinds, plain in (((Attention, WindowAttention), MergedAttention), ((nn.Linear, nn.Conv2d), Layer)):
        for name, module in list(model.named_modules()):
            if isinstance(module, kinds) and not name.endswith("v_proj"):
                model.set_submodule(name, plain(module, state, name, bits))
    model.load_state_dict(state)
    return model.requires_grad_(True)


def soft_cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    """Mean over the images of ``-sum p log softmax(logits)``."""
    return -(probabilities * logits.log_softmax(1)).sum(1).mean()


def distilled_loss(student: nn.Module, teacher: nn.Module, images: Tensor, target: Tensor) -> Tensor:
    """``CE(class head, target) + soft CE(distillation head, teacher)``; both on the one head where there is only one.

    Args:
        student: Of :func:`quantized`; a model with two heads averages them, so they are taken from the modules here.
        teacher: The float model, which answers with the mean of its heads where it has two.
        images: (B, 3, H, W).
        target: Probabilities, (B, classes).
    """
    with torch.no_grad():
        answers = teacher.eval()(images).softmax(1)
    if hasattr(student, "head_dist"):
        features = student.forward_features(images)
        heads = student.head(features[:, 0]), student.head_dist(features[:, 1])
    else:
        heads = (student(images),) * 2
    return soft_cross_entropy(heads[0], target) + soft_cross_entropy(heads[1], answers)
