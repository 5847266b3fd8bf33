"""Which part a layer plays in its model: query, key, value and so on, by its name."""

from typing import Literal, get_args

from torch import Tensor

Role = Literal["q", "k", "v", "qk", "proj", "fc1", "fc2", "patch", "head", "other"]
"""Projections of attention (``qk`` is the merged query-key product), the two layers of an MLP, the patch embedding,
the classifiers, and anything else."""

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
    """The roles of a weight: one, or those of the equal parts that its rows fall into.

    A fused projection is taken to hold all rows of the query, then those of the key, then those of the value, as
    timm's plain attention has them.

    Args:
        module: Name of its module, such as ``blocks.0.attn.qkv``.
        rows: Length of its first dimension.
    """
    first, _, _ = module.partition(".")
    if first in _BY_FIRST:
        return (_BY_FIRST[first],)
    if module.endswith(_MERGED):
        return ("qk",)
    roles = _BY_LAST.get(module.rpartition(".")[2], ("other",))
    return roles if rows % len(roles) == 0 else ("other",)


def in_parts(tensor: Tensor, parts: int) -> tuple[Tensor, ...]:
    """The equal parts of the rows of ``tensor``; one row that all parts share is given to each."""
    return (tensor,) * parts if tensor.shape[0] == 1 else tensor.chunk(parts)
