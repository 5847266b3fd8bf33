"""Weights of the `transformers` library, which most fine-tuned models on the hub are stored with, under timm's names.

The same architecture computes the same in both; only names differ, and query, key and value are separate layers there.
ViT, DeiT, DINOv2 (with registers, too) and Swin are known; `_RENAMED` is the whole map.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

_SIGN = "embeddings.patch_embeddings.projection.weight"
_PREFIX = re.compile(r"^(vit|deit|dinov2|dinov2_with_registers|swin)\.")

# Name there, and timm's. Swin's are those of its authors, which timm's own function converts further.
_RENAMED = tuple(
    (re.compile(f"^{there}(?=\\.|$)"), here)
    for there, here in (
        (r"embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
        (r"embeddings\.norm", "patch_embed.norm"),
        (r"embeddings\.position_embeddings", "pos_embed"),
        (r"embeddings\.cls_token", "cls_token"),
        (r"embeddings\.distillation_token", "dist_token"),
        (r"embeddings\.register_tokens", "reg_token"),
        (r"encoder\.layer\.(\d+)", r"blocks.\1"),
        (r"layers\.(\d+)", r"blocks.\1"),
        (r"encoder\.layers\.(\d+)", r"layers.\1"),
        (r"layernorm", "norm"),
        (r"classifier", "head"),
        (r"cls_classifier", "head"),
        (r"distillation_classifier", "head_dist"),
    )
)
_RENAMED_IN_BLOCKS = tuple(
    (re.compile(rf"^(.*blocks\.\d+)\.{there}(?=\.|$)"), rf"\1.{here}")
    for there, here in (
        (r"attention\.(?:attention|self)\.(query|key|value)", r"attn.\2"),
        (r"attention\.([qkv])_proj", r"attn.\2"),
        (r"attention\.self\.relative_position_bias_table", "attn.relative_position_bias_table"),
        (r"attention\.relative_position_bias\.relative_position_bias_table", "attn.relative_position_bias_table"),
        (r"attention\.(?:output\.dense|o_proj)", "attn.proj"),
        (r"intermediate\.dense", "mlp.fc1"),
        (r"output\.dense", "mlp.fc2"),
        (r"layernorm_before", "norm1"),
        (r"layernorm_after", "norm2"),
        (r"layer_scale1\.lambda1", "ls1.gamma"),
        (r"layer_scale2\.lambda1", "ls2.gamma"),
        (r"mlp\.weights_in", "mlp.fc1"),
        (r"mlp\.weights_out", "mlp.fc2"),
    )
)
# Of other tasks, and a table that follows from the size of a window.
_UNUSED = re.compile(r"embeddings\.mask_token$|pooler\.|.*\.relative_position_index$")
_PROJECTIONS = (("query", "key", "value"), ("q", "k", "v"))  # up to release 4, and since


def in_transformers_layout(state_dict: Mapping[str, Tensor]) -> bool:
    """Whether the names are those of a vision transformer of the `transformers` library."""
    return any(name.endswith(_SIGN) for name in state_dict)


def from_transformers(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights under timm's names; names that are not known stay, and are refused when they are loaded."""
    renamed = {}
    for name, value in state_dict.items():
        own = _PREFIX.sub("", name)
        if not _UNUSED.match(own):
            renamed[_rename(own)] = value
    if {"reg_token", "pos_embed"} <= renamed.keys():
        # timm adds positions to patches alone where there are registers, so the class token has its own in it
        positions = renamed["pos_embed"]
        renamed["cls_token"] = renamed["cls_token"] + positions[:, :1]
        renamed["pos_embed"] = positions[:, 1:]
    return _fused(renamed)


def follow_preprocessor(weights: Path, config: dict[str, Any]) -> str:
    """Take mean and standard deviation from the ``preprocessor_config.json`` beside ``weights``, if there is one.

    Args:
        weights: The weight file.
        config: timm's description of the weights; changed.

    Returns:
        A sentence on what was done.
    """
    path = weights.parent / "preprocessor_config.json"
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        values = {key: tuple(map(float, said[f"image_{key}"])) for key in ("mean", "std")}
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return f"names of the transformers library; images are prepared as timm says, mean {tuple(config['mean'])}"
    if all(len(value) == len(config[key]) for key, value in values.items()):
        config.update(values)
    return f"names of the transformers library; mean {values['mean']} and std {values['std']} are those of {path.name}"


def _rename(name: str) -> str:
    for pattern, here in (*_RENAMED, *_RENAMED_IN_BLOCKS):
        name = pattern.sub(here, name)
    return name


def _fused(separate: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value as one layer, in this order, where all three are there."""
    fused = dict(separate)
    for name in separate:
        own = re.fullmatch(r"(.*\.attn)\.(query|q)\.(weight|bias)", name)
        if own is None:
            continue
        parts = [f"{own[1]}.{part}.{own[3]}" for part in _PROJECTIONS[own[2] == "q"]]
        if separate.keys() >= set(parts):
            fused[f"{own[1]}.qkv.{own[3]}"] = torch.cat([fused.pop(part) for part in parts])
    return fused
