"""Run a model with its first units replaced by their recorded outputs, so that only what changes is computed."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.hooks import attached, shadowed
from ofqctl.ptq.units import Batches


class Replay:
    """Runs a model on stored images; its first units can return their recorded outputs instead of computing.

    Args:
        model: The model, in evaluation mode.
        units: Names of modules in the order of their calls; each is called once and returns a tensor.
        images: Batches of images, (B, 3, H, W) each.
    """

    def __init__(self, model: nn.Module, units: Sequence[str], images: Batches) -> None:
        self._model, self._images = model, images
        self._units = [(model.get_submodule(name), images.beside(f"replayed-{n}")) for n, name in enumerate(units)]

    def record(self, batches: range) -> None:
        """Store the output of every unit on the given batches (numbered from 0) on disk."""
        self.delete()
        hooks = (
            module.register_forward_hook(lambda _m, _a, output, kept=outputs: kept.append(output))
            for module, outputs in self._units
        )
        with attached(hooks):
            for index in batches:
                self.run(index)

    def run(self, index: int, replayed: int = 0) -> Tensor:
        """Logits of the model on one batch, (B, classes); the first ``replayed`` units return recorded outputs."""
        with ExitStack() as units, torch.no_grad():
            for module, outputs in self._units[:replayed]:
                units.enter_context(shadowed(module, "forward", partial(_give, outputs[index])))
            logits: Tensor = self._model(self._images[index])
        return logits

    def delete(self) -> None:
        """Delete the recorded outputs."""
        for _, outputs in self._units:
            outputs.delete()


def _give(output: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return output
