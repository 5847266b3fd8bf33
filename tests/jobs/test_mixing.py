"""Bits of each layer from its sensitivity."""

import pytest
import torch

from ofqctl.jobs.mixing import Target, mix_precision
from ofqctl.progress import silent
from ofqctl.ptq import on_disk
from ofqctl.recipe.catalogue import load


def test_sensitivities_are_measured_on_the_same_images_whatever_the_batches(tiny_vit):
    images = torch.randn(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    target = Target(bits=5, candidates=(4, 8))
    found = []
    for batch_size in (6, 1):
        with on_disk(images.split(batch_size), torch.device("cpu")) as stored:
            _, figures = mix_precision(tiny_vit, load("ptq/mse"), target, (3, 32, 32), stored, silent)
        found.append(figures.sensitivities)
    assert found[0].keys() == found[1].keys()
    for name, widths in found[0].items():
        assert widths == pytest.approx(found[1][name], rel=1e-3), name
