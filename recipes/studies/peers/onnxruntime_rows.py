"""ONNX Runtime's own quantizers.

Settings: those that its documentation gives for CPUs and transformers (onnxruntime.ai, *Quantize ONNX Models*, and the
docstring of ``quantize_static``), in ``ofqctl/export/peers.py``: one step for each row of weights, uint8 activations,
int8 weights, QDQ, pre-processed by ``quant_pre_process`` where ranges are calibrated. MatMul, Gemm and Conv are
quantized; with every other operator as well, the default, ViT-Tiny's logits are off three times as far at no gain of
time. CPUs without VNNI saturate at int8 weights: instead of 7 bits (``reduce_range``), the runtime is told to multiply
exactly (``session.x64quantprecision``), which was as fast and as accurate or better.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from common import Made, Task, importing, main

with importing("onnxruntime"):
    import onnxruntime.quantization  # noqa: F401

    from ofqctl.export import OnnxModel, peers, seal_again


def _made(build: Callable[..., Path], task: Task) -> Made:
    file = build(task.float_file, task.folder / "peer", task.images)
    seal_again(file)
    return Made(OnnxModel(file, threads=1), [file])


VARIANTS = {
    "dynamic": partial(_made, peers.ort_dynamic),
    "static-percentile": partial(_made, partial(peers.ort_static, method="Percentile")),
    "static-minmax": partial(_made, partial(peers.ort_static, method="MinMax")),
}

if __name__ == "__main__":
    main(VARIANTS, ["onnxruntime"])
