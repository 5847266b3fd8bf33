"""A batch taken at once, in micro-batches or by several processes: the same steps of a quantized model.

Run as a script by torchrun, the file trains and records what each of its processes saw.
"""

import os
import pickle
import sys
from pathlib import Path

import pytest
import torch
from timm.models import VisionTransformer

from ofqctl.jobs.train import train
from ofqctl.quantizers import Quantizer

STEPS = 5
ALIKE = 3  # steps that must be compared; all 5 are, unless a processor rounds a value across a threshold
SETS = [
    "training.optimizer={name: momentum, lr: 0.05, weight_decay: 0.05, clip_grad: 1.0}",
    "training.phases=[{epochs: 1, schedule: constant, dampening: {start: 0.1, delay: 0.0, reduction: sum}}]",
    f"training.steps_per_epoch={STEPS}",
]


def recorded(request):
    """Train; of every step, the codes of each quantizer in each of this process's forward passes, by name, and the loss
    and the parameters that came of it.
    """
    steps, codes, models = [], {}, []

    def listen(module, inputs):
        if isinstance(module, VisionTransformer) and module.training and not models:
            models.append(module)
        elif isinstance(module, Quantizer) and module.training and models:
            name = next(name for name, own in models[0].named_modules() if own is module)
            codes.setdefault(name, []).append(module.encode(inputs[0].detach()).codes)

    def step(row, _total):
        parameters = {name: p.detach().clone() for name, p in models[0].named_parameters()}
        steps.append((dict(codes), {"loss": torch.tensor(row["step_loss"])} | parameters))
        codes.clear()

    with torch.nn.modules.module.register_module_forward_pre_hook(listen):
        train(request, on_step=step)
    return steps


def of_whole_batch(*processes):
    """What several processes recorded, as one records it that takes the whole batch at once."""
    for step in zip(*processes, strict=True):
        codes = {}
        for name in step[0][0]:
            passes = [codes for turn in zip(*(codes[name] for codes, _ in step), strict=True) for codes in turn]
            codes[name] = passes[0] if name.endswith("weight_quantizer") else torch.cat(passes)
        yield codes, step[0][1]


def steps_alike(one, other):
    """Compare parameters and loss, step by step, up to the first step that computes with another code.

    Returns:
        How many steps were compared.
    """
    for number, ((codes, figures), (other_codes, other_figures)) in enumerate(zip(one, other, strict=True)):
        if not all(torch.equal(codes[name], other_codes[name]) for name in codes):
            return number
        for name, value in figures.items():
            # what stays below 1e-10 is a sum that is 0 but for rounding
            tolerance = 1e-5 * value.abs().max() + 1e-10
            assert (other_figures[name] - value).abs().max() <= tolerance, (number, name)
    return STEPS


def test_micro_batches_take_the_steps_of_the_whole_batch(request_for):
    whole = recorded(request_for("whole", sets=SETS))
    split = recorded(request_for("split", sets=SETS, grad_accum=4))
    assert len(whole) == STEPS
    assert steps_alike(of_whole_batch(whole), of_whole_batch(split)) >= ALIKE


@pytest.mark.slow
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_two_processes_take_the_steps_of_the_whole_batch(request_for, torchrun, tmp_path, micro_batches):
    whole = recorded(request_for("whole", sets=SETS))
    request = tmp_path / "request"
    request.write_bytes(pickle.dumps(request_for("split", sets=SETS, grad_accum=micro_batches)))
    ended = torchrun(2, __file__, request)
    assert ended.returncode == 0, ended.stderr
    split = (torch.load(f"{request}{rank}") for rank in (0, 1))
    assert steps_alike(of_whole_batch(whole), of_whole_batch(*split)) >= ALIKE


if __name__ == "__main__":
    torch.save(recorded(pickle.loads(Path(sys.argv[1]).read_bytes())), sys.argv[1] + os.environ["RANK"])
