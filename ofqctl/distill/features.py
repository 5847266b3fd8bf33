"""Feature distillation: the outputs of the student's modules learn to match those of the teacher's.

Each block gets a target of its own, so the first blocks need not wait for what the last ones make of them. It helps
most where training is short; it needs the memory of the teacher's outputs.
"""

import contextlib
from collections.abc import Callable, Iterator
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.distill.term import Pass, Term
from ofqctl.errors import ModelError, RecipeError
from ofqctl.hooks import attached
from ofqctl.layers.attention import form_of
from ofqctl.recipe.methods import TERMS
from ofqctl.recipe.training import Features


@TERMS.register("features", Features, traits=["needs_teacher"])
class FeatureDistillation(Term):
    """Compares the outputs of the blocks, or of the modules that match a pattern, in student and teacher.

    A quantized model keeps timm's module names, so names have the same meaning in both.

    Args:
        student: The model to train.
        teacher: The teacher, with modules of the same names.
        settings: Says which modules to compare, and the weight of the loss.

    Raises:
        RecipeError: No module matches, or the teacher lacks a module.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module | None, settings: Features) -> None:
        assert teacher is not None
        self.weight, target = settings.weight, settings.target
        own, theirs = (dict(model.named_modules()) for model in (student, teacher))
        matching = [name for name in own if name and target and _matches(name, target)]
        self.names = _blocks(teacher) if target is None else matching
        lacking = [f"the teacher has no '{name}'" for name in self.names if name not in theirs]
        lacking += [f"the student has no '{name}'" for name in self.names if name not in own]
        if not self.names or lacking:
            shown = "null" if target is None else f"'{target}'"
            raise RecipeError(
                f"training.distillation.features.target {shown}: {lacking[0] if lacking else 'matches no module'}",
                hint="a pattern such as 'blocks.*', the blocks of a ViT, or 'stages.*'; '*' ends at a dot",
            )
        self._models = student, teacher
        self._seen: tuple[dict[str, Any], dict[str, Any]] = ({}, {})

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Record the outputs of the modules within the block."""
        self._seen = ({}, {})
        hooks = (
            model.get_submodule(name).register_forward_hook(_keeping(seen, name))
            for model, seen in zip(self._models, self._seen, strict=True)
            for name in self.names
        )
        with attached(hooks):
            yield

    def loss(self, seen: Pass) -> Tensor:  # noqa: ARG002
        """Compare the recorded outputs: ``weight`` times the mean relative error over the modules.

        The squared error of a module is relative to the variance of the teacher's output: a student that always returns
        the mean has an error of 1.

        Raises:
            ModelError: The output of a module is not a tensor of the teacher's shape.
        """
        student, teacher = self._seen
        errors = [_relative_error(name, student.get(name), teacher.get(name)) for name in self.names]
        self._seen = ({}, {})
        return self.weight * torch.stack(errors).mean()


def _relative_error(name: str, value: Any, wanted: Any) -> Tensor:
    if not (isinstance(value, Tensor) and isinstance(wanted, Tensor) and value.shape == wanted.shape):
        raise ModelError(
            f"{name}: the outputs of student and teacher are not tensors of the same shape",
            hint="choose other modules with --set training.distillation.features.target=PATTERN",
        )
    value, wanted = value.float(), wanted.float()
    error: Tensor = (value - wanted).square().mean() / wanted.var(correction=0).clamp(min=1e-12)
    return error


def _blocks(model: nn.Module) -> list[str]:
    """The modules that the attentions of a float model lie in, in their order."""
    attentions = (name for name, module in model.named_modules() if form_of(module) is not None)
    return [name for name in dict.fromkeys(name.rpartition(".")[0] for name in attentions) if name]


def _matches(name: str, target: str) -> bool:
    parts, wanted = name.split("."), target.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _keeping(seen: dict[str, Any], name: str) -> Callable[[nn.Module, Any, Any], None]:
    def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
        seen[name] = output

    return keep
