"""PyTorch's own dynamic quantization of linear layers, ``torch.ao.quantization.quantize_dynamic``.

Settings: its defaults, as the PyTorch tutorials on dynamic quantization use it for transformers: int8 weights,
activations by their range in each pass, the backend ``x86``. PyTorch calls it deprecated in favour of torchao; it still
comes with PyTorch, and needs no compiler.
"""

from common import Made, Task, importing, in_torch, main

with importing("torch"):
    import torch
    from torch.ao.quantization import quantize_dynamic


def _dynamic(task: Task) -> Made:
    model = quantize_dynamic(task.model, {torch.nn.Linear}, dtype=torch.qint8)
    file = task.folder / "peer.pt"
    torch.save(model.state_dict(), file)
    return Made(in_torch(model), [file])


VARIANTS = {"dynamic": _dynamic}

if __name__ == "__main__":
    main(VARIANTS, ["torch", "onnxruntime"], beside_torch=True)
