"""Training in one process or several: what ``torchrun`` sets, and the few places where it matters."""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DistributedDataParallel

from ofqctl.errors import DeviceError, ProcessError

_TIMEOUT = timedelta(minutes=30)  # after that, a process that waits for an ended one fails


@dataclass(frozen=True)
class Processes:
    """This process, as one of those that train or evaluate together.

    Attributes:
        rank: Rank of this process.
        world: Number of processes.
        device: Device of this process.
    """

    rank: int
    world: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def wrap(self, model: nn.Module) -> nn.Module:
        """The model to call in training; averages gradients over the processes."""
        if self.world == 1:
            return model
        devices = [self.device.index] if self.device.type == "cuda" else None
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # the argument is renamed in torch 2.15
            return DistributedDataParallel(model, device_ids=devices, broadcast_buffers=False)

    def exchanging(self, wrapped: nn.Module, wanted: bool) -> AbstractContextManager[None]:
        """Within the block, gradients are exchanged between processes only if ``wanted``."""
        if wanted or not isinstance(wrapped, DistributedDataParallel):
            return nullcontext()
        return wrapped.no_sync()

    def gather(self, value: Any) -> list[Any]:
        """Gather the value of every process, in the order of ranks."""
        if self.world == 1:
            return [value]
        values: list[Any] = [None] * self.world
        dist.all_gather_object(values, value)
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Copy the buffers of ``model`` from the first process, because batch norms see different images in each."""
        if self.world > 1:
            for buffer in model.buffers():
                values = buffer.contiguous()
                dist.broadcast(values, src=0)
                buffer.copy_(values)

    def total(self, values: Tensor) -> Tensor:
        """The sum of ``values`` over the processes."""
        if self.world == 1:
            return values
        summed = values.to(self.device, torch.float32 if self.device.type == "mps" else values.dtype)
        dist.all_reduce(summed)
        return summed.cpu()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, if it did.

    Raises:
        DeviceError: The processes have different kinds of devices, or there are too few GPUs.
        ProcessError: Another process ended while this one still needed it.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Processes(0, 1, device)
        return
    rank, local = int(os.environ["RANK"]), int(os.environ.get("LOCAL_RANK", "0"))
    if device.type == "cuda":
        device = _gpu(local)
    backends = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "cpu:gloo"
    dist.init_process_group(backends, timeout=_TIMEOUT)
    try:
        processes = Processes(rank, world, device)
        _check_alike(processes)
        yield processes
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        raise ProcessError(
            f"process {rank} of {world}: another process has ended or cannot be reached: {str(error).splitlines()[0]}",
            hint="its own message says why; --resume auto continues the training",
        ) from error
    finally:
        dist.destroy_process_group()


def _gpu(local: int) -> torch.device:
    """The GPU of a process, by the process's number on this machine."""
    present = torch.cuda.device_count()
    if local >= present:
        raise DeviceError(
            f"process {local + 1} on this machine has no GPU of its own: this machine has {present}",
            hint=f"torchrun --nproc-per-node {present}, or --device cpu",
        )
    device = torch.device("cuda", local)
    torch.cuda.set_device(device)
    return device


def _check_alike(processes: Processes) -> None:
    kinds = processes.gather(processes.device.type)
    if len(set(kinds)) > 1:
        seen = ", ".join(f"process {rank} on {kind}" for rank, kind in enumerate(kinds))
        raise DeviceError(f"the processes have different kinds of devices: {seen}", hint="--device cpu")
