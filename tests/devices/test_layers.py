"""Quantized models of each kind of layer on a device: convolutions, linears, attention, merged products."""

from collections.abc import Callable

import pytest
import timm
import torch
from torch import Tensor, nn

from ofqctl.convert import convert, operands, weight_site
from ofqctl.ptq import calibrate
from ofqctl.recipe.catalogue import load

CPU = torch.device("cpu")
VIT = "vit_tiny_patch16_224", {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
SWIN = "swin_tiny_patch4_window7_224", {"img_size": 56, "embed_dim": 16, "depths": (2,), "num_heads": (2,)}
LEVIT = "levit_128s", {"img_size": 64, "embed_dim": (16, 16), "key_dim": 8, "depth": (1, 1), "num_heads": (2, 2)}
DYNAMIC = ["activations.dynamic=true", "activations.granularity=head"]
CASES = {
    "products": (VIT, "ptq/minmax", ()),
    "products of single rows": (VIT, "ptq/minmax", DYNAMIC),
    "merged query and key": (VIT, "ofq/vit_w4a4", ()),
    "learned steps": (VIT, "lsq", ()),
    "windows": (SWIN, "ptq/minmax", ()),
    "explicit products": (LEVIT, "ptq/minmax", ()),
}


def built(name: str, kwargs: dict) -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=10, **kwargs).eval()


def everything(
    model: nn.Module, size: int, recipe: str, sets: tuple[str, ...], device: torch.device, nudge: Callable
) -> dict[str, Tensor]:
    """Logits, loss and gradients of a model that was converted and calibrated on ``device``."""
    images = nudge(torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))).to(device)
    labels = torch.arange(4, device=device)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(nudge(parameter))
    model.to(device)
    plan = convert(model, load(recipe, [*sets, "calibration.batch_size=2"]), (3, size, size))
    calibrate(model, plan, images.split(2))
    with torch.no_grad():
        logits = model(images)
        again = model(images)  # on the decoded weights
    loss = nn.functional.cross_entropy(model(images), labels)
    loss.backward()
    found = {"logits": logits, "again": again, "loss": loss}
    for name in plan.modules:
        module = model.get_submodule(name)
        site = weight_site(module)
        if site is not None and site.weight_quantizer is not None:
            found[f"{name}.codes"] = site.encode_weight().codes
        found |= {f"{name}.{operand}.step": quantizer.step for operand, quantizer in operands(module).items()}
    found |= {f"{name}.grad": p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert all(tensor.device.type == device.type for tensor in [*found.values(), *model.state_dict().values()])
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


@pytest.mark.parametrize("case", CASES)
def test_a_quantized_model_computes_on_a_device_what_it_computes_on_the_cpu(alike, case):
    (name, kwargs), recipe, sets = CASES[case]
    alike(lambda place, nudge: everything(built(name, kwargs), kwargs["img_size"], recipe, sets, place, nudge))


def test_a_model_that_is_moved_computes_the_same_there(device, near):
    name, kwargs = VIT
    model, images = built(name, kwargs), torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    calibrate(model, convert(model, load("ofq/vit_w4a4"), (3, 16, 16)), [images])
    with torch.no_grad():
        expected = model(images)
        near(model.to(device)(images.to(device)), expected)
        near(model.to(CPU)(images), expected)
