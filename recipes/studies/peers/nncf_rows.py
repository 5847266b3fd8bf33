"""NNCF, Intel's quantizer, with OpenVINO, which runs what it makes.

Settings: ``model_type=TRANSFORMER``, as the documentation asks for models with attention (docs.openvino.ai, *Basic
Quantization Flow*): activations asymmetric, SmoothQuant, fast bias correction. ``accurate`` takes the exact bias
correction instead, which the same page names where accuracy falls short, at the cost of time to quantize. Floats are
computed in float32 (``INFERENCE_PRECISION_HINT``), as in every other program.
"""

from functools import partial

from common import Made, Task, importing, main

with importing("nncf"):
    import nncf  # noqa: F401

    from ofqctl.export import OnnxModel, openvino, peers

    openvino.package()


def _made(task: Task, *, fast_bias_correction: bool) -> Made:
    file = peers.nncf(task.float_file, task.folder / "peer", task.images, fast_bias_correction=fast_bias_correction)
    return Made(OnnxModel(file, threads=1, runtime="openvino"), [file, file.with_suffix(".bin")])


VARIANTS = {
    "transformer": partial(_made, fast_bias_correction=True),
    "accurate": partial(_made, fast_bias_correction=False),
}

if __name__ == "__main__":
    main(VARIANTS, ["nncf", "openvino", "onnxruntime"])
