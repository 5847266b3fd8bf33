"""Decodes model.safetensors and ONNX initializers; written from docs/format.md alone, without ofqctl.

Usage: independent_decoder.py RUN FILE.onnx; exits with 1 unless both hold the same float32 weights, bit for bit.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx


def stream(packed, bits, count):
    """Integers from a stream of bytes, lowest bits first."""
    flat = np.unpackbits(np.frombuffer(packed, np.uint8), bitorder="little")[: count * bits].reshape(count, bits)
    return flat @ (1 << np.arange(bits))


def from_run(run):
    plan = json.loads((run / "config.json").read_text())["quantization_config"]["plan"]["modules"]
    content = (run / "model.safetensors").read_bytes()
    start = 8 + int.from_bytes(content[:8], "little")
    header = json.loads(content[8:start])
    tensor = lambda name: content[start + header[name]["data_offsets"][0] : start + header[name]["data_offsets"][1]]
    for module, entry in plan.items():
        name = f"{module}.products.qk.weight" if entry["kind"] == "qkr" else f"{module}.weight"
        if entry["weight"] is None:
            continue
        bits, method = entry["weight"]["bits"], entry["weight"]["method"]
        step = np.frombuffer(tensor(f"{name}.step"), np.float32).reshape(header[f"{name}.step"]["shape"])
        signed = entry["weight"]["signed"] and (entry["weight"]["symmetric"] or method != "uniform")
        offset = np.float32(0.5 if method == "statsq" else 0)
        if f"{name}.offset" in header:
            offset = np.frombuffer(tensor(f"{name}.offset"), np.float32).reshape(step.shape)
        count = len(tensor(f"{name}.codes")) * 8 // bits
        codes = stream(tensor(f"{name}.codes"), bits, count) - (1 << (bits - 1) if signed else 0)
        rows = max(step.size, 1)
        yield name, (codes.astype(np.float32).reshape(rows, -1) + offset.reshape(-1, 1)) * step.reshape(-1, 1)


def from_onnx(path):
    model = onnx.load(path)
    table = json.loads(next(p.value for p in model.metadata_props if p.key == "ofqctl.weights"))
    tensors = {t.name: t for t in model.graph.initializer}
    for name, entry in table.items():
        stored = stream(tensors[f"{name}.codes"].raw_data, entry["bits"], int(np.prod(entry["shape"])))
        integers = entry["multiplier"] * stored.reshape(entry["shape"]) + np.array(entry["zero"]).reshape(-1)
        step = onnx.numpy_helper.to_array(tensors[f"{name}.step"])
        yield name, integers.astype(np.float32) * step, len(entry["shape"])


if __name__ == "__main__":
    run, file = dict(from_run(Path(sys.argv[1]))), list(from_onnx(sys.argv[2]))
    for name, value, rank in file:
        expected = run[name].reshape(-1, value.shape[0]).T if rank == 2 else run[name].reshape(value.shape)
        if not np.array_equal(expected, value):
            sys.exit(f"{name} differs")
    print(f"{len(file)} weights are the same, bit for bit")
    sys.exit(0 if {name for name, *_ in file} == set(run) else "weights are missing")
