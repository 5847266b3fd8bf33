"""The stand-in refuses what GPUs refuse, and computes what the CPU does."""

import copy
import io

import pytest
import torch
from torch import nn

CPU = torch.device("cpu")

MIXED = {
    "sum": lambda here, there: here + there,
    "product": lambda here, there: there @ here.T,
    "in place": lambda here, there: there.mul_(here),
    "stacked": lambda here, there: torch.stack([here, there]),
    "number in a stack": lambda here, there: torch.stack([there[0, 0], torch.tensor(1.0)]),
    "chosen": lambda here, there: torch.where(there > 0, there, here),
    "indices of the device": lambda here, there: here[(there > 0)],
    "written at": lambda here, there: there.index_put_((torch.tensor([0]),), here[:1]),
    "compared": torch.equal,
    "layer": lambda here, there: nn.Linear(4, 2)(there),
    "generator": lambda _here, there: torch.multinomial(there.softmax(1), 1, generator=torch.Generator()),
    "drawn": lambda _here, there: torch.rand(3, device=there.device, generator=torch.Generator()),
    "generator of the device": lambda here, there: torch.rand(3, generator=torch.Generator(there.device)),
    "numpy": lambda _here, there: there.numpy(),
}
ALLOWED = {
    "number": lambda here, there: there * torch.tensor(2.0),
    "indices of the CPU": lambda here, there: there[torch.tensor([0, 2])],
    "copied": lambda here, there: there.clone().copy_(here),
    "written": lambda here, there: there.clone().__setitem__(0, here[0]),
    "filled": lambda here, there: there.masked_fill(there > 0, torch.tensor(0.0)),
    "read": lambda here, there: (float(there.sum()), bool((there > 0).any()), there.tolist(), int(there.argmax())),
    "drawn": lambda _here, there: torch.rand(3, device=there.device) + there[:, 0],
    "generator": lambda _here, there: torch.multinomial(there.exp(), 1, generator=torch.Generator(there.device)),
    "made": lambda _here, there: torch.tensor([1.0, 2.0, 3.0], device=there.device) + there[:, 0],
}


@pytest.fixture
def pair(device):
    here = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    return here, here.to(device)


@pytest.mark.parametrize("name", MIXED)
def test_what_is_on_two_devices_is_refused(pair, name):
    with pytest.raises((RuntimeError, TypeError)):
        MIXED[name](*pair)


@pytest.mark.parametrize("name", ALLOWED)
def test_numbers_indices_and_copies_of_the_cpu_are_taken(pair, name):
    ALLOWED[name](*pair)


def test_the_stand_in_has_no_float64(pair, device):
    if device.type == "cuda":
        pytest.skip("CUDA has it")
    for make in (
        lambda there: there.double(),
        lambda there: there.sum(dtype=torch.float64),
        lambda there: torch.zeros(2, dtype=torch.float64, device=there.device),
        lambda there: torch.tensor([1.0], dtype=torch.float64).to(there.device),
    ):
        with pytest.raises(TypeError, match="float64"):
            make(pair[1])


def test_a_model_goes_there_learns_is_copied_saved_and_comes_back(device):
    torch.manual_seed(0)
    here = nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.LayerNorm(8), nn.Linear(8, 2))
    models = {CPU: here, device: copy.deepcopy(here).to(device)}
    images = torch.randn(5, 4)
    for place, model in models.items():
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        for _ in range(3):
            optimizer.zero_grad()
            model(images.to(place)).square().mean().backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        assert all(
            p.device.type == place.type and isinstance(p, nn.Parameter) for p in copy.deepcopy(model).parameters()
        )
    file = io.BytesIO()
    torch.save(models[device].state_dict(), file)
    file.seek(0)
    saved = torch.load(file, map_location="cpu", weights_only=True)
    back = copy.deepcopy(models[device]).cpu().state_dict()
    for name, expected in here.state_dict().items():
        assert torch.allclose(saved[name], expected, atol=1e-6), name
        assert torch.equal(back[name], saved[name]), name
