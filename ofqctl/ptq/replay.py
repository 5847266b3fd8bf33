"""A model whose first units give out again what they gave out before, so that only what changes is computed."""

from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.hooks import attached, shadowed
from ofqctl.ptq.units import Batches


class Replay:
    """Runs a model on stored images, its first units from memory of the last ``record``.

    Args:
        model: In evaluation mode.
        units: Names of modules in the order of their calls, each called once and giving a tensor.
        images: (B, 3, H, W) each.
    """

    def __init__(self, model: nn.Module, units: Sequence[str], images: Batches) -> None:
        self._model, self._images = model, images
        self._units = [(model.get_submodule(name), images.beside(f"replayed-{n}")) for n, name in enumerate(units)]

    def record(self, batches: range) -> None:
        """Keep what every unit gives out on ``batches``, on disk; they are counted from 0."""
        self.delete()
        hooks = (
            module.register_forward_hook(lambda _m, _a, output, kept=outputs: kept.append(output))
            for module, outputs in self._units
        )
        with attached(hooks):
            for index in batches:
                self.run(index)

    def run(self, index: int, replayed: int = 0) -> Tensor:
        """What the model gives out on one batch, (B, classes); the first ``replayed`` units are not computed."""
        with ExitStack() as units, torch.no_grad():
            for module, outputs in self._units[:replayed]:
                units.enter_context(shadowed(module, "forward", partial(_give, outputs[index])))
            logits: Tensor = self._model(self._images[index])
        return logits

    def delete(self) -> None:
        """Remove what was recorded."""
        for _, outputs in self._units:
            outputs.delete()


def _give(output: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return output
