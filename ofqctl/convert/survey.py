"""A dry run of a float model, which finds the modules that compute on the image and the shapes of their inputs."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils.hooks import RemovableHandle

from ofqctl.hooks import attached, in_evaluation_mode
from ofqctl.layers.attention import AttentionProducts, Redirected, form_of, open_products
from ofqctl.layers.attention.products import MATMULS

Shape = tuple[int, ...]
Run = Literal["single", "double", "elsewhere"]  # a dry run, by the field of `Seen` that it fills

_PATCH = 16, 16  # pixels; of models that do not say it
_PRODUCTS = (*MATMULS, torch.bmm, Tensor.bmm, torch.einsum, F.scaled_dot_product_attention)


@dataclass
class Seen:
    """Shapes of the tensors under one name, one entry for each call.

    Attributes:
        single: With a batch of one image.
        double: With a batch of two images.
        elsewhere: With an image of another size, if the model takes any.
    """

    single: list[Shape] = field(default_factory=list)
    double: list[Shape] = field(default_factory=list)
    elsewhere: list[Shape] = field(default_factory=list)

    @property
    def shapes(self) -> set[Shape]:
        """Dimensions after the batch, at every image size; none if they differ between calls or it is not first."""
        tails = {s[1:] for s in self.single + self.double}
        batches = all(d[0] == 2 * s[0] for s, d in zip(self.single, self.double, strict=True))
        return {*tails, *(s[1:] for s in self.elsewhere)} if len(tails) == 1 and batches else set()

    @property
    def shape(self) -> Shape | None:
        """Dimensions after the batch, if they are equal in every call, at every image size; else None."""
        return next(iter(self.shapes)) if len(self.shapes) == 1 else None

    @property
    def on_image(self) -> bool:
        """Whether any tensor grows with the batch."""
        return self.single != self.double


@dataclass
class Survey:
    """Results of a dry run.

    Attributes:
        inputs: Inputs of each Linear and Conv2d, by module name.
        operands: Operands ``q, k, softmax, v`` of each registered attention block, by module name.
        factors: Left and right factors of every matrix product that a module computes itself, by module name.
    """

    inputs: dict[str, Seen] = field(default_factory=dict)
    operands: dict[str, dict[str, Seen]] = field(default_factory=dict)
    factors: dict[str, tuple[Seen, Seen]] = field(default_factory=dict)

    def products(self, name: str) -> int:
        """How many matrix products of two activations a module computes in one forward pass of the model.

        Both factors of such a product grow with the batch; a parameter does not.
        """
        left, right = self.factors.get(name, (Seen(), Seen()))
        return sum(
            len({*shapes[:2]}) > 1 and len({*shapes[2:]}) > 1
            for shapes in zip(left.single, left.double, right.single, right.double, strict=False)
        )


class _Recorder(AttentionProducts):
    """Float products that record the shapes of their operands."""

    def __init__(self, record: dict[str, Seen], run: Run) -> None:
        super().__init__({})
        self._record, self._run = record, run

    def attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._note(q=query.shape, k=key.shape, v=value.shape)
        self._note(softmax=(*query.shape[:-1], key.shape[-2]))
        return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)

    def multiply_query_key(self, query: Tensor, transposed_key: Tensor) -> Tensor:
        self._note(q=query.shape, k=transposed_key.transpose(-2, -1).shape)
        return query @ transposed_key

    def multiply_softmax_value(self, weights: Tensor, value: Tensor) -> Tensor:
        self._note(softmax=weights.shape, v=value.shape)
        return weights @ value

    def _note(self, **shapes: tuple[int, ...]) -> None:
        for name, shape in shapes.items():
            _note(self._record.setdefault(name, Seen()), self._run, shape)


class _Watch(TorchFunctionMode):
    """While active, records the factors of every matrix product under the module that computes it."""

    def __init__(self, record: Survey, run: Run) -> None:
        super().__init__()
        self.running: list[str] = []
        self.run = run
        self._record = record

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func in _PRODUCTS and self.running and self.run != "elsewhere":
            factors = [a for a in args if isinstance(a, Tensor)]
            seen = self._record.factors.setdefault(self.running[-1], (Seen(), Seen()))
            for factor, seen_factor in zip(factors, seen, strict=False):
                _note(seen_factor, self.run, factor.shape)
        return func(*args, **(kwargs or {}))


def survey(model: nn.Module, input_size: Shape) -> Survey:
    """Run ``model`` on one and on two blank images, and on one of another size if it takes any; record every shape.

    Args:
        model: A float timm model; its mode and function are unchanged.
        input_size: Size of one image, (3, H, W).
    """
    record = Survey()
    parameter = next(model.parameters())
    with in_evaluation_mode(model):
        for run, shape in _runs(model, input_size).items():
            watch = _Watch(record, run)
            hooks = (hook for name, m in model.named_modules() for hook in _watch(name, m, record, watch))
            with attached(hooks), torch.no_grad(), watch:
                model(torch.zeros(shape, device=parameter.device, dtype=parameter.dtype))
    return record


def takes_any_size(model: nn.Module) -> bool:
    """Whether a timm model takes images of other sizes than its own, as with ``dynamic_img_size=True``."""
    return bool(getattr(model, "dynamic_img_size", False))


def _runs(model: nn.Module, input_size: Shape) -> dict[Run, Shape]:
    """The shape of the images of every dry run."""
    runs: dict[Run, Shape] = {"single": (1, *input_size), "double": (2, *input_size)}
    if takes_any_size(model):
        channels, *sides = input_size
        patch: Any = getattr(getattr(model, "patch_embed", None), "patch_size", _PATCH)
        runs["elsewhere"] = (1, channels, *(side + 2 * own for side, own in zip(sides, patch, strict=True)))
    return runs


def _note(seen: Seen, run: Run, shape: Iterable[int]) -> None:
    shapes: list[Shape] = getattr(seen, run)
    shapes.append(tuple(shape))


def _watch(name: str, module: nn.Module, record: Survey, watch: _Watch) -> list[RemovableHandle]:
    if isinstance(module, nn.Linear | nn.Conv2d):
        seen = record.inputs.setdefault(name, Seen())
        return [module.register_forward_pre_hook(partial(_note_input, seen, watch.run))]
    form = form_of(module)
    if form is not None:
        open_products(module)
    entered: list[Redirected] = []

    def enter(_module: nn.Module, _args: Any) -> None:
        watch.running.append(name)
        if form is not None:
            products = _Recorder(record.operands.setdefault(name, {}), watch.run)
            entered.append(Redirected(products, form.roles_in(module)))
            entered[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        watch.running.pop()
        if entered:
            entered.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]


def _note_input(seen: Seen, run: Run, _module: nn.Module, args: tuple[Any, ...]) -> None:
    _note(seen, run, args[0].shape)
