"""Ways to damage a file: bytes of any file, values of JSON and YAML, tensors. All are drawn from a given generator."""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import safetensors.torch
import torch
import yaml

from ofqctl.artifact import digest, sign_config

Spot = tuple[Any, Any]  # a container and a key or position in it


def _deep(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


STRANGE = (
    None,
    True,
    False,
    0,
    1,
    -1,
    2,
    3,
    7,
    64,
    10**12,
    -(10**12),
    10**400,
    0.0,
    -0.5,
    0.4,
    1e-300,
    1e300,
    float("nan"),
    float("inf"),
    "",
    "x",
    "²",
    "\x1b]0;title\x07",
    "../../..",
    "\ud800",
    "a" * 5000,
    [],
    [1],
    [10**12, 10**12],
    {},
    {"a": {"b": []}},
    _deep(100),
)


def flip_bit(path: Path, draw: random.Random) -> str:
    """Flip one bit."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content) * 8)
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)
    return f"bit {place} flipped"


def overwrite(path: Path, draw: random.Random) -> str:
    """Replace some bytes in a row by others."""
    content = bytearray(path.read_bytes())
    start, length = draw.randrange(len(content)), draw.choice((1, 4, 64, 1024))
    content[start : start + length] = draw.choice((bytes(length), b"\xff" * length, draw.randbytes(length)))
    path.write_bytes(content)
    return f"{length} bytes at {start} replaced"


def truncate(path: Path, draw: random.Random) -> str:
    """Cut off the end, or all."""
    content = path.read_bytes()
    length = draw.choice((0, 1, 8, 100, draw.randrange(len(content)), len(content) - 1))
    path.write_bytes(content[:length])
    return f"cut to {length} bytes"


def insert(path: Path, draw: random.Random) -> str:
    """Insert bytes, or write a part twice."""
    content = path.read_bytes()
    place = draw.randrange(len(content))
    new = draw.choice((draw.randbytes(8), content[place : place + 500], b"\n", b"[" * 100000))
    path.write_bytes(content[:place] + new + content[place:])
    return f"{len(new)} bytes inserted at {place}"


def remove(path: Path, _draw: random.Random) -> str:
    """Delete the file."""
    path.unlink()
    return "deleted"


BYTES = (flip_bit, flip_bit, overwrite, truncate, insert)


def change_json(path: Path, draw: random.Random, *, unsigned: bool = False) -> str:
    """Change one value of a JSON file; ``unsigned`` also drops the digest, as files of earlier versions have none."""
    values = json.loads(path.read_text())
    if unsigned:
        values["quantization_config"].pop("config_sha256", None)
    told = change(values, draw)
    path.write_text(json.dumps(values))
    return told


def change_yaml(path: Path, draw: random.Random) -> str:
    """Change one value of a YAML file."""
    values = yaml.safe_load(path.read_text())
    told = change(values, draw)
    path.write_text(yaml.dump(values, Dumper=yaml.Dumper))
    return told


def change(values: Any, draw: random.Random) -> str:
    """Change, delete, rename or add one value anywhere in a document."""
    holder, key = draw.choice(list(_spots(values)))
    kind = draw.choice(("value", "value", "value", "near", "delete", "rename"))
    if kind == "delete":
        del holder[key]
    elif kind == "rename" and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif kind == "near" and isinstance(holder[key], int | float):
        holder[key] = draw.choice((holder[key] + 1, -holder[key], holder[key] * 2, holder[key] / 3))
    else:
        holder[key] = draw.choice(STRANGE)
        return f"{key!r} = {str(holder[key])[:40]!r}"
    return f"{kind} {key!r}"


def _spots(value: Any) -> Iterator[Spot]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield value, key
        yield from _spots(inner)


def change_tensor(tensors: dict[str, torch.Tensor], draw: random.Random) -> str:
    """Change one tensor: a value, its type, its shape or its name."""
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    kind = draw.choice(("value", "value", "value", "type", "shape", "rename", "delete"))
    if kind == "value" and tensor.numel():
        number = draw.choice((float("nan"), float("inf"), -float("inf"), 0.0, -1.0, 1e38, 255.0))
        changed = tensor.clone().reshape(-1)
        changed[draw.randrange(len(changed))] = number if tensor.is_floating_point() else int(draw.random() * 100)
        tensors[name] = changed.reshape(tensor.shape)
        return f"{name}: a value is {number}"
    if kind == "type":
        tensors[name] = tensor.to(draw.choice((torch.float16, torch.float64, torch.int64, torch.bool, torch.uint8)))
    elif kind == "shape":
        tensors[name] = draw.choice((tensor[..., None].clone(), tensor.reshape(-1)[:-1].clone(), torch.zeros(0)))
    elif kind == "rename":
        tensors[f"{name}x"] = tensors.pop(name)
    else:
        del tensors[name]
    return f"{name}: {kind}"


def change_weights(path: Path, draw: random.Random) -> str:
    """Change a tensor of a run, and make every digest right again, as a faulty program would write it."""
    tensors = safetensors.torch.load_file(path)
    told = change_tensor(tensors, draw)
    content = safetensors.torch.save(tensors, metadata={"ofqctl_format": "2"})
    path.write_bytes(content)
    config = path.parent / "config.json"
    values = json.loads(config.read_text())
    values["quantization_config"]["sha256"] = digest(content)
    config.write_text(json.dumps(values))
    sign_config(path.parent)
    return told


def change_state(path: Path, draw: random.Random) -> str:
    """Change one value or tensor of a training state, and write it again with right sums."""
    values = torch.load(path, weights_only=True)
    part = draw.choice(sorted(values))
    if part in ("model", "tracker") and isinstance(values[part], dict) and draw.random() < 0.7:
        values[part] = dict(values[part])
        told = f"{part}: {change_tensor(values[part], draw)}"
    elif isinstance(values[part], dict | list) and values[part] and draw.random() < 0.8:
        told = f"{part}: {change(values[part], draw)}"
    else:
        values[part] = draw.choice(STRANGE)
        told = f"{part} = {str(values[part])[:40]!r}"
    torch.save(values, path)
    return told


def change_graph(path: Path, draw: random.Random) -> str:
    """Change the description, a node, the input or a tensor of an ONNX file, and drop its digest."""
    model = onnx.load(path)
    said = {prop.key: prop.value for prop in model.metadata_props if prop.key != "ofqctl.sha256"}
    kind = draw.choice(("description", "description", "node", "input", "tensor"))
    told = kind
    if kind == "description":
        key = draw.choice(sorted(said))
        values = json.loads(said[key])
        told = f"{key}: {change(values, draw)}"
        said[key] = json.dumps(values)
    elif kind == "node":
        node = draw.choice(list(model.graph.node))
        node.CopyFrom(draw.choice((onnx.NodeProto(op_type="Nothing"), onnx.NodeProto(op_type=node.op_type))))
    elif kind == "input":
        shape = model.graph.input[0].type.tensor_type.shape
        shape.dim[draw.randrange(len(shape.dim))].dim_value = draw.choice((0, -1, 1, 7, 10**12))
    else:
        tensor = draw.choice(list(model.graph.initializer))
        told = f"tensor {tensor.name}"
        other = {"data_location": 1, "raw_data": b"", "name": "gone", "data_type": 7}
        key = draw.choice((*other, "dims"))
        tensor.dims.append(10**12) if key == "dims" else setattr(tensor, key, other[key])
    onnx.helper.set_model_props(model, said)
    path.write_bytes(model.SerializeToString())
    return told
