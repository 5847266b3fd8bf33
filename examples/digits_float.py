"""Train a small float ViT on the built-in digits and write it in timm's layout, for `make demo` to quantize.

Takes about half a minute on two cores and needs no network: python examples/digits_float.py OUTPUT
"""

import json
import sys
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from torch.nn import functional as F

from ofqctl.data import DataSpec, image_loader, open_data

ARCHITECTURE = "vit_tiny_patch16_224"
KWARGS = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 4, "num_heads": 4}
PREPROCESSING = {
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "crop_pct": 1.0,
    "crop_mode": "center",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
}
EPOCHS, BATCH = 50, 64


def load(split: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = open_data(DataSpec("digits", split=split))
    return next(iter(image_loader(data, PREPROCESSING, batch_size=len(data))))


def main(output: Path) -> None:
    torch.manual_seed(0)
    torch.set_flush_denormal(True)
    images, labels = load("train")
    model = timm.create_model(ARCHITECTURE, num_classes=10, **KWARGS).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=2e-3, weight_decay=0.05)
    schedule = CosineLRScheduler(optimizer, t_initial=EPOCHS, warmup_t=2, warmup_lr_init=1e-5)
    for epoch in range(EPOCHS):
        schedule.step(epoch)
        for chosen in torch.randperm(len(images)).split(BATCH):
            shift = torch.randint(-3, 4, (2,)).tolist()  # digits are not always centred
            batch = torch.roll(images[chosen], shift, dims=(2, 3))
            loss = F.cross_entropy(model(batch), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"float ViT on digits: epoch {epoch + 1}/{EPOCHS}, loss {loss.item():.3f}", file=sys.stderr)
    output.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), output / "model.safetensors")
    config = {
        "architecture": ARCHITECTURE,
        "num_classes": 10,
        "model_args": KWARGS,
        "label_names": [str(digit) for digit in range(10)],
        "pretrained_cfg": {**PREPROCESSING, "num_classes": 10, "first_conv": "patch_embed.proj", "classifier": "head"},
    }
    (output / "config.json").write_text(json.dumps(config, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
