"""Devices that results are computed on and held against the CPU's."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

_SPEC = importlib.util.spec_from_file_location("stand_in", Path(__file__).with_name("stand_in.py"))
stand_in = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(stand_in)

CPU = torch.device("cpu")
GPU = pytest.param("cuda", marks=pytest.mark.gpu)


def _gpu() -> torch.device:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device is here, or this build of torch cannot use it")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda")


@pytest.fixture(params=["stand-in", GPU])
def device(request) -> Iterator[torch.device]:
    """The stand-in, which is always there, or a GPU (``make test-gpu``)."""
    with sdpa_kernel(SDPBackend.MATH):  # one way of computing attention in float, on every device
        if request.param == "cuda":
            yield _gpu()
        else:
            with stand_in.stand_in() as found:
                yield found


@pytest.fixture(params=[pytest.param("cpu", marks=pytest.mark.slow), GPU])
def hardware(request) -> torch.device:
    """For what the stand-in cannot do: a GPU, or the CPU against itself."""
    return CPU if request.param == "cpu" else _gpu()


Nudge = Callable[[Tensor], Tensor]


def _kept(tensor: Tensor) -> Tensor:
    return tensor


def _nudged(seed: int) -> Nudge:
    """Changes a tensor by some millionths, as rounding changes sums."""
    return lambda x: x * (1 + 3e-6 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)))


def _noise(expected: Tensor, others: Iterable[Tensor]) -> float:
    return max((float((other - expected).abs().max()) for other in others), default=0.0)


@pytest.fixture
def near(device) -> Callable[..., None]:
    """Holds a result against the CPU's.

    The stand-in computes with the CPU's kernels: within 1e-5 of the largest magnitude. A GPU rounds sums in its own
    way, and a value that lies on a rounding threshold then gets another code: within 1e-2 and ``noise``, but for one
    element in 100.
    """
    tolerance, share = (1e-2, 0.01) if device.type == "cuda" else (1e-5, 0.0)

    def check(found: Tensor, expected: Tensor, name: str = "", noise: float = 0.0) -> None:
        found, expected = found.detach().cpu().float(), expected.detach().float()
        assert found.shape == expected.shape, name
        assert bool(torch.isfinite(found).all()), name
        away = (found - expected).abs() > tolerance * expected.abs().max() + noise
        assert float(away.float().mean()) <= share, f"{name}: {found}, on the CPU {expected}, noise {noise}"

    return check


@pytest.fixture
def alike(device, near) -> Callable[..., None]:
    """Holds all results of a computation against the CPU's.

    All that follows from a code that is another one moves. How far is found out on the CPU, from inputs that differ by
    some millionths: a GPU's results may be twice as far away. The computation takes a device, and a function that it
    applies to what it starts from.
    """

    def check(compute: Callable[[torch.device, Nudge], dict[str, Tensor]]) -> None:
        found, expected = (compute(place, _kept) for place in (device, CPU))
        seeds = range(8) if device.type == "cuda" else ()
        moved = [compute(CPU, _nudged(seed)) for seed in seeds]
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            near(
                found[name], value, name, 2 * _noise(value.detach().float(), (other[name].detach() for other in moved))
            )

    return check
