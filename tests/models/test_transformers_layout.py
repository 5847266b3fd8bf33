"""Weights under the names of the transformers library."""

import json
import re

import pytest
import timm
import torch
from safetensors.torch import save_file

from ofqctl.errors import ModelError
from ofqctl.models import ModelRequest, load_model

from .conftest import ARCHITECTURE, TINY

SWIN = {"img_size": 32, "embed_dim": 16, "depths": [1, 2], "num_heads": [1, 2], "window_size": 4, "patch_size": 2}


def split_qkv(state_dict, name):
    """Query, key and value of each block as layers of their own, called ``name``.query and so on."""
    for key in [key for key in state_dict if ".attn.qkv." in key]:
        for part, value in zip(("query", "key", "value"), state_dict.pop(key).chunk(3), strict=True):
            state_dict[key.replace("attn.qkv", f"{name}.{part}")] = value.contiguous()
    return state_dict


def renamed(state_dict, prefix, *rules):
    new = {}
    for key, value in state_dict.items():
        own = key
        for here, there in rules:
            own = re.sub(here, there, own)
        new[own if own.startswith(("classifier", "cls_class", "distillation_class")) else f"{prefix}.{own}"] = value
    return new


EMBEDDINGS = (
    (r"^patch_embed\.proj", "embeddings.patch_embeddings.projection"),
    (r"^patch_embed\.norm", "embeddings.norm"),
    (r"^cls_token", "embeddings.cls_token"),
    (r"^dist_token", "embeddings.distillation_token"),
    (r"^reg_token", "embeddings.register_tokens"),
    (r"^pos_embed", "embeddings.position_embeddings"),
    (r"^norm\.", "layernorm."),
)
LAYERS = (
    (r"^blocks\.(\d+)", r"encoder.layer.\1"),
    (r"attn\.proj", "attention.output.dense"),
)
MLP = (
    (r"mlp\.fc1", "intermediate.dense"),
    (r"mlp\.fc2", "output.dense"),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
)


def vit(model):
    state = split_qkv(model.state_dict(), "attention.attention")
    return renamed(state, "vit", *EMBEDDINGS, *MLP, *LAYERS, (r"^head\.", "classifier."))


def vit_since_5(model):
    changes = ((r"encoder\.layer\.", "layers."), (r"attention\.output\.dense", "attention.o_proj"))
    changes += ((r"attention\.attention\.(.)[a-z]+", r"attention.\1_proj"),)
    changes += ((r"intermediate\.dense", "mlp.fc1"), (r"output\.dense", "mlp.fc2"))
    state = vit(model)
    for here, there in changes:
        state = {re.sub(here, there, key): value for key, value in state.items()}
    return state


def deit(model):
    state = split_qkv(model.state_dict(), "attention.attention")
    heads = ((r"^head\.", "cls_classifier."), (r"^head_dist\.", "distillation_classifier."))
    return renamed(state, "deit", *EMBEDDINGS, *MLP, *LAYERS, *heads)


def dinov2(model):
    state = split_qkv(model.state_dict(), "attention.attention")
    scales = ((r"ls(\d)\.gamma", r"layer_scale\1.lambda1"), (r"^head\.", "classifier."))
    first = torch.randn(1, 1, 48)  # the position of the class token, which timm has within it
    state["cls_token"] = state["cls_token"] - first
    state["pos_embed"] = torch.cat([first, state["pos_embed"]], dim=1)
    state = renamed(state, "dinov2_with_registers", *EMBEDDINGS, *LAYERS, *scales)
    return state | {"dinov2_with_registers.embeddings.mask_token": torch.zeros(1, 48)}


def swin(model):
    state = {k: v for k, v in split_qkv(model.state_dict(), "attention.self").items() if "attn_mask" not in k}
    rules = (
        (r"attn\.proj", "attention.output.dense"),
        (r"attn\.relative", "attention.self.relative"),
        (r"^head\.fc\.", "classifier."),
        (r"^layers\.(\d+)\.downsample", lambda found: f"layers.{int(found[1]) - 1}.downsample"),
        (r"^layers\.", "encoder.layers."),
    )
    return renamed(state, "swin", *EMBEDDINGS, *MLP, *rules)


@pytest.mark.parametrize(
    ("architecture", "kwargs", "there"),
    [
        (ARCHITECTURE, TINY, vit),
        ("deit_tiny_distilled_patch16_224", TINY, deit),
        (ARCHITECTURE, TINY | {"init_values": 0.5, "reg_tokens": 4, "no_embed_class": True}, dinov2),
        (ARCHITECTURE, TINY, vit_since_5),
        ("swin_tiny_patch4_window7_224", SWIN, swin),
    ],
)
def test_the_same_architecture_computes_the_same(tmp_path, architecture, kwargs, there):
    model = timm.create_model(architecture, num_classes=7, **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)  # no two of them alike
    state = there(model)
    assert not set(state) & set(model.state_dict())
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "model.safetensors")
    request = ModelRequest(architecture, checkpoint=tmp_path / "model.safetensors", num_classes=7, kwargs=kwargs)
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        assert torch.allclose(load_model(request).model(images), model(images), atol=1e-5)


def test_mean_and_standard_deviation_come_from_the_file_beside_the_weights(tiny, tmp_path):
    save_file(vit(tiny), tmp_path / "model.safetensors")
    request = ModelRequest(ARCHITECTURE, checkpoint=tmp_path / "model.safetensors", num_classes=7, kwargs=TINY)
    assert "images are prepared as timm says" in load_model(request).notes[-1]
    values = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6], "size": 224}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(values))
    loaded = load_model(request)
    assert loaded.data_config["mean"] == [0.1, 0.2, 0.3]
    assert loaded.data_config["std"] == [0.4, 0.5, 0.6]
    assert loaded.notes[-1].endswith("are those of preprocessor_config.json")


def test_weights_that_lack_something_are_refused(tiny, tmp_path):
    state = vit(tiny)
    del state["vit.encoder.layer.1.attention.attention.key.bias"]
    save_file(state, tmp_path / "model.safetensors")
    request = ModelRequest(ARCHITECTURE, checkpoint=tmp_path / "model.safetensors", num_classes=7, kwargs=TINY)
    with pytest.raises(ModelError, match=r"1 missing: blocks\.1\.attn\.qkv\.bias; 2 not expected"):
        load_model(request)


def test_a_directory_of_the_library_names_the_command_that_reads_it(tiny, tmp_path):
    save_file(vit(tiny), tmp_path / "model.safetensors")
    config = {"model_type": "vit", "id2label": {str(n): str(n) for n in range(7)}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"is of the transformers library \(vit\)") as error:
        load_model(ModelRequest(f"local-dir:{tmp_path}"))
    assert f"--checkpoint {tmp_path / 'model.safetensors'} --num-classes 7" in error.value.hint
