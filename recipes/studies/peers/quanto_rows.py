"""optimum-quanto, Hugging Face's quantizer for PyTorch.

Settings: the workflow of its README: ``quantize``, a calibration with momentum 0.9 where activations are quantized,
``freeze``, and weights as safetensors beside the quantization map. It computes eagerly; compiling is not supported.
"""

import json
from functools import partial

from common import Made, Task, importing, in_torch, main

with importing("optimum-quanto"):
    import torch
    from optimum.quanto import Calibration, freeze, qint4, qint8, quantization_map, quantize
    from safetensors.torch import save_file


def _made(task: Task, *, weights: object, activations: object = None) -> Made:
    quantize(task.model, weights=weights, activations=activations)
    if activations is not None:
        with torch.no_grad(), Calibration(momentum=0.9):
            for images in task.images:
                task.model(images)
    freeze(task.model)
    file, described = task.folder / "peer.safetensors", task.folder / "peer.json"
    save_file(task.model.state_dict(), file)
    described.write_text(json.dumps(quantization_map(task.model)))
    return Made(in_torch(task.model), [file, described])


VARIANTS = {
    "int8": partial(_made, weights=qint8, activations=qint8),
    "int8-weights": partial(_made, weights=qint8),
    "int4-weights": partial(_made, weights=qint4),
}

if __name__ == "__main__":
    main(VARIANTS, ["optimum-quanto", "torch", "onnxruntime"], beside_torch=True)
