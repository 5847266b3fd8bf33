"""``ofqctl.register_attention``."""

from typing import TypeVar, get_args

from torch import nn

from ofqctl.errors import ModelError, did_you_mean
from ofqctl.layers.attention import AttentionForm, attention_form
from ofqctl.layers.attention.forms import Role

M = TypeVar("M", bound=type[nn.Module])


def register_attention(cls: M, products: tuple[Role, ...] = (), *, signed_weights: bool = False) -> M:
    """Have the two matrix products of an attention class quantized; without this they stay in float.

    Args:
        cls: The class. Its forward either calls ``torch.nn.functional.scaled_dot_product_attention``, or multiplies
            with ``@``, ``torch.matmul`` and the like.
        products: What each multiplication computes, in the order of the calls: ``query_key``, ``softmax_value``,
            ``value_softmax`` (transposed, in the other order) or ``float`` for one that is left alone; empty if it
            calls ``scaled_dot_product_attention``.
        signed_weights: Whether the left factor of the value may be negative, as softmax outputs mixed across the heads.

    Returns:
        The class, so that this decorates a class that calls ``scaled_dot_product_attention``.

    Raises:
        ModelError: It is no class of modules, or a product is unknown.
    """
    if not (isinstance(cls, type) and issubclass(cls, nn.Module)):
        raise ModelError(f"register_attention: {cls!r} is not a class of torch.nn.Module")
    known = get_args(Role)
    for product in products:
        if product not in known:
            raise ModelError(
                f"register_attention({cls.__name__}): product '{product}' is unknown; allowed are {', '.join(known)}",
                hint=did_you_mean(product, known),
            )
    return attention_form(AttentionForm(tuple(products), signed_weights=signed_weights))(cls)
