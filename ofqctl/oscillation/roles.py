"""The role of a layer in its model, such as query, key or value, by its name."""

from typing import get_args

from torch import Tensor

from ofqctl.results.layers import Role

ROLES: tuple[Role, ...] = get_args(Role)

_MERGED = "products.qk"
_BY_LAST: dict[str, tuple[Role, ...]] = {
    "qkv": ("q", "k", "v"),
    "kv": ("k", "v"),
    "qk": ("q", "k"),
    "q": ("q",),
    "q_proj": ("q",),
    "k": ("k",),
    "k_proj": ("k",),
    "v": ("v",),
    "v_proj": ("v",),
    "proj": ("proj",),
    "out_proj": ("proj",),
    "fc1": ("fc1",),
    "fc1_g": ("fc1",),
    "fc1_x": ("fc1",),
    "w12": ("fc1",),
    "fc2": ("fc2",),
    "w3": ("fc2",),
}
_BY_FIRST: dict[str, Role] = {
    "patch_embed": "patch",
    "stem": "patch",
    "head": "head",
    "head_dist": "head",
    "classifier": "head",
    "fc": "head",
}


def roles_of(module: str, rows: int) -> tuple[Role, ...]:
    """The roles of a weight: one, or one for each of the equal parts of its rows.

    A fused projection is assumed to contain all rows of the query, then of the key, then of the value, as in timm's
    plain attention.

    Args:
        module: Name of the module, such as ``blocks.0.attn.qkv``.
        rows: Number of rows of the weight.
    """
    first, _, _ = module.partition(".")
    if first in _BY_FIRST:
        return (_BY_FIRST[first],)
    if module.endswith(_MERGED):
        return ("qk",)
    roles = _BY_LAST.get(module.rpartition(".")[2], ("other",))
    return roles if rows % len(roles) == 0 else ("other",)


def role_of(module: str, kind: str) -> str:
    """One word for what a quantized module of a kind does: its role, ``qkv`` and ``kv`` where it is fused.

    Args:
        module: Name of the module.
        kind: Kind of the module; ``attention`` is that of products, whose role is ``products``.
    """
    return "products" if kind == "attention" else "".join(roles_of(module, 6))


def in_parts(tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    """Split the rows of ``tensor`` into equal parts; a single row that all parts share is returned for each."""
    return (tensor,) * parts if tensor.shape[0] == 1 else tensor.chunk(parts)
