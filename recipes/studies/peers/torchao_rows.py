"""torchao: PyTorch's quantizers, compiled by Inductor.

Settings: the configurations' defaults, compiled by ``torch.compile`` (docs.pytorch.org/ao, *Quick Start*, and the
docstrings of the configurations):

* ``int8-dynamic``: a step for each token, found in the pass, and for each row of weights. ``reduce_range`` as the docs
  say: on CPUs without VNNI, where torch has no fast kernel for this product (some 20 times as slow as float).
* ``int8-weights``: weights alone, a step for each row.
* ``int4-weights``: weights alone, a step for each 32. ``Int4WeightOnlyConfig`` needs a GPU; what runs on CPUs is
  ``IntxWeightOnlyConfig``, which keeps a byte for each weight.
* ``pt2e-static``, ``pt2e-dynamic``: ``torch.export``, then ``X86InductorQuantizer`` with its default configuration,
  ``reduce_range`` as above, and compiled with frozen weights (docs.pytorch.org/ao, *PyTorch 2 Export Quantization with
  X86 Backend through Inductor*).
"""

from functools import partial
from typing import Any

from common import Made, Task, importing, in_torch, main

with importing("torchao"):
    import torch
    import torchao.quantization as ao
    from torch._inductor import config as inductor
    from torchao.quantization.granularity import PerGroup
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86
    from torchao.utils import should_reduce_range

_REDUCED = should_reduce_range(torch.device("cpu"))


def _quantized(config: Any, task: Task) -> Made:
    ao.quantize_(task.model, config)
    return _compiled(task.model, task.model.state_dict(), task)


def _exported(task: Task, *, dynamic: bool) -> Made:
    task.model.requires_grad_(False)
    batch = torch.export.Dim("batch", min=1, max=1024)
    graph = torch.export.export(task.model, (task.images[0],), dynamic_shapes=({0: batch},)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config(is_dynamic=dynamic, reduce_range=_REDUCED))
    prepared = prepare_pt2e(graph, quantizer)
    with torch.no_grad():
        for images in task.images[:1] if dynamic else task.images:
            prepared(images)
    converted = move_exported_model_to_eval(convert_pt2e(prepared))
    inductor.freezing = True
    used = {node.target for node in converted.graph.nodes}  # the float weights are still there, beside the graph
    weights = {name: weight for name, weight in converted.state_dict().items() if name in used}
    return _compiled(converted, weights, task)


def _compiled(model: torch.nn.Module, weights: dict[str, Any], task: Task) -> Made:
    """The model, compiled for each size of a batch in its first pass, and its weights as torch saves them."""
    file = task.folder / "peer.pt"
    torch.save(weights, file)
    return Made(in_torch(torch.compile(model, dynamic=False)), [file])


VARIANTS = {
    "int8-dynamic": partial(_quantized, ao.Int8DynamicActivationInt8WeightConfig(reduce_range=_REDUCED)),
    "int8-weights": partial(_quantized, ao.Int8WeightOnlyConfig()),
    "int4-weights": partial(_quantized, ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))),
    "pt2e-static": partial(_exported, dynamic=False),
    "pt2e-dynamic": partial(_exported, dynamic=True),
}

if __name__ == "__main__":
    main(VARIANTS, ["torchao", "torch", "onnxruntime"], beside_torch=True)
