"""A timm model by name: quantized, saved as a run, loaded again, and looked at."""

import sys
from typing import Any

import torch

import ofqctl

tiny: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
model = ofqctl.load("vit_tiny_patch16_224", pretrained=False, num_classes=10, **tiny)
quantized = ofqctl.quantize(model, "ptq/minmax", calibration="digits", set={"weights.bits": 4})
quantized.save(sys.argv[1] if len(sys.argv) > 1 else "run", overwrite=True)

again = ofqctl.load(sys.argv[1] if len(sys.argv) > 1 else "run")
logits = again(torch.zeros(1, 3, 32, 32))
print(f"recipe {again.recipe.name if again.recipe else 'none'}, logits {tuple(logits.shape)}")
print(f"{quantized.result.size.total} bytes; left in float: {[left.module for left in quantized.result.left_float]}")
