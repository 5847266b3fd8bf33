"""What a dry run shows of a float model: which modules compute on the image, and the shapes that they see."""

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.hooks import RemovableHandle

from ofqctl.layers.attention import AttentionProducts, Redirected, form_of, open_products

Shape = tuple[int, ...]


@dataclass
class Seen:
    """The tensors that one name saw, one entry a call: shapes with batches of one and of two images."""

    single: list[Shape] = field(default_factory=list)
    double: list[Shape] = field(default_factory=list)

    @property
    def shape(self) -> Shape | None:
        """Dimensions after the batch, where every call agrees on them and the batch comes first; else None."""
        tails = {s[1:] for s in self.single + self.double}
        batches = all(d[0] == 2 * s[0] for s, d in zip(self.single, self.double, strict=True))
        return tails.pop() if len(tails) == 1 and batches else None

    @property
    def on_image(self) -> bool:
        """Whether any tensor grows with the batch."""
        return self.single != self.double


@dataclass
class Survey:
    """A dry run's record.

    Attributes:
        inputs: Inputs of each Linear and Conv2d, by module name.
        operands: Operands ``q, k, softmax, v`` of each registered attention block, by module name.
    """

    inputs: dict[str, Seen] = field(default_factory=dict)
    operands: dict[str, dict[str, Seen]] = field(default_factory=dict)


class _Recorder(AttentionProducts):
    """Float products that write down the shapes of their operands."""

    def __init__(self, record: dict[str, Seen], *, single: bool) -> None:
        super().__init__({})
        self._record, self._single = record, single

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
            seen = self._record.setdefault(name, Seen())
            (seen.single if self._single else seen.double).append(tuple(shape))


def survey(model: nn.Module, input_size: Shape) -> Survey:
    """Run ``model`` on one and on two blank images and record every shape.

    Args:
        model: A timm model, in float; its mode and function stay as they are.
        input_size: (3, H, W).
    """
    record = Survey()
    parameter = next(model.parameters())
    was_training = model.training
    model.eval()
    for batch in (1, 2):
        handles = [h for name, m in model.named_modules() for h in _watch(name, m, record, single=batch == 1)]
        try:
            with torch.no_grad():
                model(torch.zeros(batch, *input_size, device=parameter.device, dtype=parameter.dtype))
        finally:
            for handle in handles:
                handle.remove()
    model.train(was_training)
    return record


def _watch(name: str, module: nn.Module, record: Survey, *, single: bool) -> list[RemovableHandle]:
    if isinstance(module, nn.Linear | nn.Conv2d):
        seen = record.inputs.setdefault(name, Seen())
        return [module.register_forward_pre_hook(partial(_note_input, seen, single))]
    form = form_of(module)
    if form is None:
        return []
    open_products(module)
    products = _Recorder(record.operands.setdefault(name, {}), single=single)
    entered: list[Redirected] = []

    def enter(_module: nn.Module, _args: Any) -> None:
        entered.append(Redirected(products, fused=form.fused))
        entered[-1].__enter__()  # type: ignore[no-untyped-call]

    def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
        entered.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]


def _note_input(seen: Seen, single: bool, _module: nn.Module, args: tuple[Any, ...]) -> None:
    (seen.single if single else seen.double).append(tuple(args[0].shape))
