"""A model of your own, quantized with a list of tensors, measured and exported."""

import sys

import torch
from torch import nn

import ofqctl

patches = nn.Sequential(nn.Conv2d(3, 64, 4, 4), nn.GELU(), nn.Conv2d(64, 64, 2, 2), nn.GELU())
model = nn.Sequential(patches, nn.Flatten(), nn.Linear(64 * 4 * 4, 10)).eval()
images = [torch.randn(8, 3, 32, 32) for _ in range(4)]
labelled = [(batch, model(batch).argmax(dim=1)) for batch in images]

quantized = ofqctl.quantize(model, "deploy/w8a8", calibration=images, set={"calibration.images": 32})
before, after = ofqctl.evaluate(model, labelled), ofqctl.evaluate(quantized.model, labelled)
print(f"top-1 {before.top1:.1f} % in float, {after.top1:.1f} % at {quantized.result.bits.weights} bits")

file = ofqctl.export(quantized.model, sys.argv[1] if len(sys.argv) > 1 else "model.onnx")
print(f"{file.products.integer} products on integers, exact: {file.verification.exactness.exact}")
