"""Every registered quantizer, with every choice of its settings, on a device: values, gradients and start values."""

from collections.abc import Callable
from itertools import product
from typing import get_args

import pytest
import torch
from torch import Tensor

from ofqctl.quantizers import QUANTIZERS, build_quantizer
from ofqctl.recipe.plan import quantizer_plan

ROLES = {"weights": ((6, 1), (6, 10)), "activations": ((5, 1), (4, 5, 6))}


def choices(settings):
    """The default settings of a method, then each of their choices by itself."""
    yield {}
    for name, field in settings.model_fields.items():
        annotation = field.annotation
        values = (True, False) if annotation is bool else get_args(annotation)
        yield from ({name: value} for value in values if isinstance(value, str | bool) and value != field.default)


def cases():
    for role, (step_shape, shape) in ROLES.items():
        for name, method in QUANTIZERS.methods(role).items():
            own_shape = (1,) * len(step_shape) if "one_step" in method.traits else step_shape
            fields = {"method": name, "bits": 4, "step_shape": own_shape}
            of_weight = {"shape": shape}
            others = ({"dynamic": d, "shift_shape": s} for d, s in product((False, True), (None, (1,))))
            for own, more in product(choices(method.settings_in(role)), [of_weight] if role == "weights" else others):
                yield pytest.param(fields | own | more, shape, id=f"{role}-{name}-{[*own.values(), *more.values()]}")


def everything(fields: dict, shape: tuple[int, ...], device: torch.device, nudge: Callable) -> dict[str, Tensor]:
    """What a quantizer does from its start values to a latent tensor with stored codes, on ``device``."""
    generator = torch.Generator().manual_seed(0)
    x, direction = (torch.randn(shape, generator=generator) for _ in range(2))
    x = nudge(x)
    quantizer = build_quantizer(quantizer_plan(**fields)).to(device)
    parts = x.chunk(2) if fields.get("shape") is None else [x]
    for part in parts:
        quantizer.observe(part.to(device))
    quantizer.finish()
    x = (0.97 * x).to(device).requires_grad_()  # the largest no longer lies at the end of the range, to the last bit
    value = quantizer(x)
    (value * direction.to(device)).sum().backward()
    encoded = quantizer.encode(x.detach())
    again = build_quantizer(quantizer.describe()).to(device)
    again.restore(encoded)
    found = {"value": value, "gradient": x.grad, "codes": encoded.codes, "decoded": encoded.decode()}
    found |= {f"{name}.grad": p.grad for name, p in quantizer.named_parameters() if p.grad is not None}
    found |= quantizer.state_dict()
    if "shape" in fields:
        found["latent"] = again.latent_of(encoded)
    assert all(tensor.device.type == device.type for tensor in found.values())
    return {name: tensor.detach().cpu() for name, tensor in found.items()}


@pytest.mark.parametrize(("fields", "shape"), cases())
def test_a_quantizer_does_on_a_device_what_it_does_on_the_cpu(alike, fields, shape):
    alike(lambda place, nudge: everything(fields, shape, place, nudge))
