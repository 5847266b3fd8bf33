"""Steps of softmax outputs are those of least error in their product with the value."""

import pytest
import torch
from torch import Tensor, nn

from ofqctl.layers.attention import AttentionProducts
from ofqctl.progress import silent
from ofqctl.ptq import Task, on_disk
from ofqctl.ptq.softmax import Softmax, fit_softmax_steps
from ofqctl.recipe import Plan, quantizer_plan

HEADS, TOKENS, WIDTH = 3, 64, 8


class Attends(nn.Module):
    """Attention whose heads look sharper and sharper."""

    def __init__(self, *, dynamic: bool) -> None:
        super().__init__()
        plan = quantizer_plan(method="uniform", bits=3, step_shape=(HEADS, 1, 1), signed=False, dynamic=dynamic)
        self.products = AttentionProducts({"softmax": plan})

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, N, d) -> (B, H, N, d)."""
        query, key, value = x.unbind(1)
        return self.products.attend(query * torch.tensor([1.0, 2.0, 4.0]).view(-1, 1, 1), key, value + 1.0)


@pytest.mark.parametrize("dynamic", [False, True])
def test_no_other_step_has_less_error(dynamic):
    images = torch.randn(8, 3, HEADS, TOKENS, WIDTH, generator=torch.Generator().manual_seed(0))
    model, exact = Attends(dynamic=dynamic), Attends(dynamic=False)
    exact.products.softmax = nn.Identity()
    with on_disk(images.split(4), torch.device("cpu")) as stored:
        fit_softmax_steps(Task(model, exact, Plan(modules={}), stored, silent), Softmax())

    def error() -> Tensor:
        with torch.no_grad():
            return (model(images) - exact(images)).square().mean(dim=(0, 2, 3))

    step = model.products.softmax.step
    found, least = step.clone(), error()
    for k in (-4, -3, -2, -1, 1, 2, 3, 4):
        step.copy_(found * 2.0 ** (k / 2))
        assert bool((error() > least).all())
