"""Decodes model.safetensors and ONNX initializers; written from docs/format.md alone, without ofqctl.

Usage: independent_decoder.py RUN FILE.onnx; fails unless both hold the same float32 weights, bit for bit.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx


def stream(packed, bits, count):
    flat = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    return flat @ (1 << np.arange(bits))


def from_run(run):
    plan = json.loads((run / "config.json").read_text())["quantization_config"]["plan"]["modules"]
    content = (run / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    spans = {name: entry["data_offsets"] for name, entry in header.items() if name != "__metadata__"}
    tensors = {name: content[start + first : start + last] for name, (first, last) in spans.items()}
    for module, entry in plan.items():
        if entry["weight"] is None:
            continue
        name = f"{module}.products.qk.weight" if entry["kind"] == "qkr" else f"{module}.weight"
        bits, method = entry["weight"]["bits"], entry["weight"]["method"]
        step = np.frombuffer(tensors[f"{name}.step"], np.float32).reshape(-1, 1)
        offset = np.float32(0.5 if method == "statsq" else 0)
        if f"{name}.offset" in tensors:
            offset = np.frombuffer(tensors[f"{name}.offset"], np.float32).reshape(-1, 1)
        signed = entry["weight"]["signed"] and (entry["weight"]["symmetric"] or method != "uniform")
        codes = stream(tensors[f"{name}.codes"], bits, len(tensors[f"{name}.codes"]) * 8 // bits)
        if f"{name}.points" in tensors:
            points = np.frombuffer(tensors[f"{name}.points"], np.float32)[codes.reshape(len(step), -1)]
        else:
            offset = np.float32(0.5) if bits == 1 and signed else offset
            codes = codes - (1 << (bits - 1) if signed else 0)
            points = codes.astype(np.float32).reshape(len(step), -1) + offset
        yield name, points * step


def from_onnx(path):
    model = onnx.load(path)
    tensors = {t.name: t for t in model.graph.initializer}
    for name, entry in json.loads({p.key: p.value for p in model.metadata_props}["ofqctl.weights"]).items():
        stored = stream(tensors[f"{name}.codes"].raw_data, entry["bits"], int(np.prod(entry["shape"])))
        step = onnx.numpy_helper.to_array(tensors[f"{name}.step"])
        stored = stored.reshape(entry["shape"])
        if f"{name}.points" in tensors:
            yield name, onnx.numpy_helper.to_array(tensors[f"{name}.points"])[stored] * step, entry
            continue
        zero = np.reshape(entry["zero"], step.shape if isinstance(entry["zero"], list) else ())
        yield name, (entry["multiplier"] * stored + zero).astype(np.float32) * step, entry


if __name__ == "__main__":
    run, file = dict(from_run(Path(sys.argv[1]))), list(from_onnx(sys.argv[2]))
    for name, value, entry in file:
        rows = value.T if entry["transposed"] else value
        assert np.array_equal(run[name].reshape(-1), rows.reshape(-1)), name
    assert {name for name, *_ in file} == set(run)
    print(f"{len(file)} weights are the same, bit for bit")
