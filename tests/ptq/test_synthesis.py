"""Images fitted to a float model."""

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from ofqctl.data import synthetic_images, white_noise
from ofqctl.errors import ModelError
from ofqctl.progress import silent
from ofqctl.ptq import fitted_images, synthesis

CONFIG = {"input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


class Normalized(nn.Module):
    """A small model with a batch normalization that was trained on dark images; embeddings if there are no classes."""

    def __init__(self, num_classes):
        super().__init__()
        torch.manual_seed(0)
        self.num_classes = num_classes
        self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        with torch.no_grad():
            for batch in synthetic_images(CONFIG, 64, 16):
                self.norm(self.conv(batch * 0.3 - 0.5))
        self.eval()

    def forward(self, x):
        return self.norm(self.conv(x)).mean(dim=(2, 3))


def fitted(model, steps, sizes=(4,), seed=0):
    return list(fitted_images(model, CONFIG, sizes, steps, seed, silent))


def test_a_model_comes_to_see_the_drawn_classes_in_the_images(lively_vit):
    generator = torch.Generator().manual_seed(0)
    white_noise(CONFIG, 4, generator)
    classes = torch.randint(10, (4,), generator=generator)  # drawn behind the noise
    lively_vit.eval()
    with torch.no_grad():
        lively_vit.head.weight.mul_(10.0)
        noise, images = fitted(lively_vit, 0)[0], fitted(lively_vit, 40)[0]
        losses = [float(F.cross_entropy(lively_vit(batch), classes)) for batch in (noise, images)]
    assert losses[1] < losses[0] - 0.8
    assert images.shape == noise.shape
    assert images.abs().max() <= 1


def test_the_inputs_of_batch_normalization_come_to_have_its_statistics():
    model = Normalized(num_classes=0)

    def apart(images):
        with torch.no_grad():
            return float(synthesis._divergence(model.norm, model.conv(images)))

    noise, images = fitted(model, 0, (16,))[0], fitted(model, 60, (16,))[0]
    assert apart(images) < 0.5 * apart(noise)


def test_the_divergence_is_that_of_normal_distributions():
    norm = nn.BatchNorm2d(3, eps=0.0)
    generator = torch.Generator().manual_seed(0)
    norm.running_mean.copy_(torch.randn(3, generator=generator))
    norm.running_var.copy_(torch.rand(3, generator=generator) + 0.5)
    x = torch.randn(8, 3, 5, 5, generator=generator) * 2 + 1
    flat = x.transpose(0, 1).flatten(1)
    expected = kl_divergence(Normal(flat.mean(1), flat.std(1)), Normal(norm.running_mean, norm.running_var.sqrt()))
    torch.testing.assert_close(synthesis._divergence(norm, x), expected.mean())


def test_images_depend_on_the_seed_and_the_model_stays_as_it_was(lively_vit):
    lively_vit.eval()
    before = {name: tensor.clone() for name, tensor in lively_vit.state_dict().items()}
    one, again, other = fitted(lively_vit, 2), fitted(lively_vit, 2), fitted(lively_vit, 2, seed=1)
    assert torch.equal(one[0], again[0])
    assert not torch.equal(one[0], other[0])
    assert [len(batch) for batch in fitted(lively_vit, 1, (3, 3, 2))] == [3, 3, 2]
    assert all(torch.equal(before[name], tensor) for name, tensor in lively_vit.state_dict().items())
    assert all(p.grad is None for p in lively_vit.parameters())


def test_without_classes_and_statistics_there_is_nothing_to_fit(lively_vit):
    lively_vit.reset_classifier(0)
    with pytest.raises(
        ModelError, match=r"calibration\.fitting: this model has neither classes nor running statistics"
    ):
        fitted(lively_vit, 1)
