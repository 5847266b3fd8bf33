"""An attention class of your own, whose products are quantized as those of timm's classes are."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import ofqctl


@ofqctl.register_attention
class Attention(nn.Module):
    """Attention with 4 heads, (B, N, 32) -> (B, N, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(32, 96), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, 4, 8)).permute(2, 0, 3, 1, 4)
        out: Tensor = self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return out


class Classifier(nn.Module):
    """One block of attention on patches of 8x8 pixels, (B, 3, 32, 32) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.attention, self.head = nn.Conv2d(3, 32, 8, 8), Attention(), nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.patches(images).flatten(2).transpose(1, 2)
        out: Tensor = self.head((tokens + self.attention(tokens)).mean(dim=1))
        return out


found = ofqctl.quantize(Classifier(), "ptq/minmax", calibration=torch.randn(128, 3, 32, 32))
print(f"{found.result.quantized_modules} modules quantized, {len(found.result.left_float)} left in float")
