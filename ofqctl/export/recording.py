"""Record the inputs of every quantizer and the outputs of every product of a quantized model in torch."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ofqctl.hooks import shadowed
from ofqctl.layers import QuantConv2d, QuantLinear, weight_sites
from ofqctl.layers.attention import AttentionProducts, QKRProducts, QuantAttention
from ofqctl.quantizers import Quantizer


@dataclass
class Recording:
    """The records of one forward pass; the second call of a module is named with ``@2``, and so on.

    Attributes:
        inputs: Inputs of the activation quantizers.
        codes: Codes of these inputs.
        outputs: Outputs of the products.
        results: What the model gives: logits, or an embedding, with patch tokens if the model gives them.
    """

    inputs: dict[str, Tensor] = field(default_factory=dict)
    codes: dict[str, Tensor] = field(default_factory=dict)
    outputs: dict[str, Tensor] = field(default_factory=dict)
    results: tuple[Tensor, ...] = ()


def record(model: nn.Module, images: Tensor) -> Recording:
    """Run ``model`` on ``images`` and record the inputs and outputs of its products.

    Args:
        model: The quantized model, in evaluation mode; its computation is not changed.
        images: Images, (B, 3, H, W).
    """
    kept = Recording()
    with _listening(model, kept), torch.inference_mode():
        kept.results = tuple(result.float() for result in results_of(model, images))
    return kept


def results_of(model: Callable[[Tensor], Any], images: Tensor) -> tuple[Tensor, ...]:
    """What a model gives for a batch, one tensor or several, as several."""
    results = model(images)
    return results if isinstance(results, tuple) else (results,)


def activation_quantizers(model: nn.Module) -> dict[str, Quantizer]:
    """All activation quantizers, by name."""
    of_weights = {site.weight_quantizer for _, site in weight_sites(model)}
    return {name: m for name, m in model.named_modules() if isinstance(m, Quantizer) and m not in of_weights}


@contextmanager
def _listening(model: nn.Module, kept: Recording) -> Iterator[None]:
    with ExitStack() as undo:
        for name, quantizer in activation_quantizers(model).items():
            undo.enter_context(quantizer.register_forward_hook(partial(_keep_codes, kept, name)))
        for name, module in model.named_modules():
            if isinstance(module, QuantLinear | QuantConv2d):
                undo.enter_context(module.register_forward_hook(partial(_keep_output, kept, name)))
            elif isinstance(module, QuantAttention):
                _listen_to_attention(module.products, name, kept, undo)
        yield


def _listen_to_attention(products: AttentionProducts, name: str, kept: Recording, undo: ExitStack) -> None:
    def listen(method: str, product: str, factor: float = 1.0) -> None:
        original = getattr(products, method)

        def call(*args: Any) -> Tensor:
            result: Tensor = original(*args)
            _keep(kept.outputs, product, result / factor)
            return result

        undo.enter_context(shadowed(products, method, call))

    listen("multiply_softmax_value", f"{name}.softmax_value")
    if isinstance(products, QKRProducts):
        listen("_logits", f"{name}.query_key", products.scale)
        undo.enter_context(products.qkx.register_forward_hook(partial(_keep_projection, kept, f"{name}.products.qk")))
    else:
        listen("multiply_query_key", f"{name}.query_key")


def _keep(where: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    calls = sum(known.partition("@")[0] == name for known in where)
    where[f"{name}@{calls + 1}" if calls else name] = tensor


def _keep_codes(kept: Recording, name: str, quantizer: Any, args: tuple[Tensor, ...], _value: Tensor) -> None:
    _keep(kept.inputs, name, args[0].clone())
    _keep(kept.codes, name, quantizer.encode(args[0]).codes)


def _keep_output(kept: Recording, name: str, _module: nn.Module, _args: Any, output: Tensor) -> None:
    _keep(kept.outputs, name, output.clone())


def _keep_projection(kept: Recording, name: str, _module: nn.Module, args: tuple[Tensor, ...], _value: Tensor) -> None:
    """Record ``W x`` of a merged block, (B, H, N, C), as one product, (B, N, H * C)."""
    _keep(kept.outputs, name, args[0].transpose(1, 2).flatten(2))
