"""What a float model makes of the output of one of its units alone, without computing what lies ahead of the unit."""

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.hooks import attached, shadowed
from ofqctl.ptq.units import Reached


class Behind:
    """Runs the part of a float model behind each of its units, differentiably.

    Args:
        model: The float model, in evaluation mode.
        units: Names of its units in the order of their calls.
        images: A few images, (B, 3, H, W), to try it on.

    Attributes:
        ends: Names of the units with a classifier, behind which there is nothing.
        alone: Names of the other units from whose output alone the model's can be computed.
        others: Names of those where something further ahead is read as well.
    """

    def __init__(self, model: nn.Module, units: Sequence[str], images: Tensor) -> None:
        self._model, self._units, self._tried = model, list(units), images
        self._known = outputs_of(model, units, images)
        with torch.no_grad():
            expected = model(images)
            found = {name: self.output(name, known) for name, known in self._known.items()}
        exact = {name for name, output in found.items() if torch.allclose(output, expected, rtol=1e-3)}
        classifiers = [f"{name}." for name in classifiers_of(model)]
        self.ends = [name for name in units if any(own.startswith(f"{name}.") for own in classifiers)]
        self.alone = [name for name in units if name in exact and name not in self.ends]
        self.others = [name for name in units if name not in exact and name not in self.ends]

    def output(self, unit: str, y: Tensor) -> Tensor:
        """Output of the model if ``unit`` gives ``y``, (B, classes or features)."""
        with self._giving(unit, y):
            output: Tensor = self._model(self._blank(len(y), self._known[unit], self._tried))
        return output

    def outputs(self, unit: str, y: Tensor, later: Sequence[str]) -> list[Tensor]:
        """Outputs of units behind ``unit`` if that gives ``y``; nothing behind the last of them is computed."""
        seen: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor) -> None:
            seen[name] = output
            if len(seen) == len(later):
                raise Reached

        modules = {name: self._model.get_submodule(name) for name in later}
        hooks = (m.register_forward_hook(lambda _m, _a, out, n=name: keep(n, out)) for name, m in modules.items())
        with attached(hooks), suppress(Reached):
            self.output(unit, y)
        return [seen[name] for name in later]

    def features(self, unit: str, y: Tensor) -> Tensor:
        """What the classifiers read if ``unit`` gives ``y``, (B, features); of a model without one, its output."""
        seen: list[Tensor] = []
        classifiers = [self._model.get_submodule(name) for name in classifiers_of(self._model)]
        with attached(m.register_forward_pre_hook(lambda _m, args: seen.append(args[0])) for m in classifiers):
            output = self.output(unit, y)
        return torch.cat([x.flatten(1) for x in seen or [output]], dim=1)

    def _giving(self, unit: str, y: Tensor) -> ExitStack:
        """Within the block, ``unit`` gives ``y``, and all units ahead of it give zeros of the same number of images."""
        stack = ExitStack()
        for name in self._units[: self._units.index(unit)]:
            blank = self._blank(len(y), self._known[unit], self._known[name])
            stack.enter_context(shadowed(self._model.get_submodule(name), "forward", partial(_give, blank)))
        stack.enter_context(shadowed(self._model.get_submodule(unit), "forward", partial(_give, y)))
        return stack

    @staticmethod
    def _blank(length: int, of: Tensor, like: Tensor) -> Tensor:
        """Zeros in the shape that ``like`` has where ``of`` has this length."""
        return like.new_zeros(len(like) * length // len(of), *like.shape[1:])


def outputs_of(model: nn.Module, units: Sequence[str], images: Tensor) -> dict[str, Tensor]:
    """Outputs of units, each of which is called once, on a batch of images, (B, 3, H, W)."""
    outputs: dict[str, Tensor] = {}
    hooks = (
        model.get_submodule(name).register_forward_hook(lambda _m, _a, out, n=name: outputs.update({n: out}))
        for name in units
    )
    with attached(hooks), torch.no_grad():
        model(images)
    return outputs


def classifiers_of(model: nn.Module) -> list[str]:
    """Names of the classifiers of a timm model."""
    names: Any = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    known = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return [name for name in ((names,) if isinstance(names, str) else names) if name in known]


def _give(output: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
    return output
