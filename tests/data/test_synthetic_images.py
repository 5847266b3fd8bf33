import pytest
import torch

from ofqctl.data import synthetic_images


@pytest.fixture
def pixels(config):
    """Sixty-four images in 0..1, (64, 3, 64, 64)."""
    return torch.cat(synthetic_images({**config, "input_size": (3, 64, 64)}, 64, 16)) * 0.5 + 0.5


def test_images_depend_on_the_seed_and_not_on_the_batch_size(config):
    five, two = (synthetic_images(config, 5, size, seed=3) for size in (5, 2))
    assert [len(batch) for batch in two] == [2, 2, 1]
    assert torch.equal(five[0], torch.cat(two))
    assert torch.equal(five[0][:3], synthetic_images(config, 3, 3, seed=3)[0])
    assert not torch.equal(five[0], synthetic_images(config, 5, 5, seed=4)[0])
    assert five[0].dtype == torch.float32


def test_images_may_be_wider_than_high(config):
    assert synthetic_images({**config, "input_size": (3, 8, 15)}, 1, 1)[0].shape == (1, 3, 8, 15)


def test_colours_are_those_of_photographs(pixels):
    assert torch.allclose(pixels.mean((0, 2, 3)), torch.tensor([0.485, 0.456, 0.406]), atol=0.05)
    assert torch.allclose(pixels.std((0, 2, 3)), torch.full((3,), 0.26), atol=0.05)
    correlation = torch.corrcoef(pixels.transpose(0, 1).flatten(1))
    assert correlation.min() > 0.6


def test_power_falls_with_the_square_of_the_frequency(pixels):
    power = torch.fft.fft2(pixels).abs().square().mean((0, 1))
    ratio = power[0, 2:5].mean() / power[0, 8:20:4].mean()
    assert 8 < ratio < 32


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels_are_grey_noise_like_the_brightness_of_photographs(channels):
    config = {"input_size": (channels, 64, 64), "mean": (0.5,) * channels, "std": (0.5,) * channels}
    grey = torch.cat(synthetic_images(config, 64, 16)) * 0.5 + 0.5
    assert grey.shape == (64, channels, 64, 64)
    assert torch.allclose(grey.mean((0, 2, 3)), torch.full((channels,), 0.449), atol=0.05)
    assert torch.allclose(grey.std((0, 2, 3)), torch.full((channels,), 0.26), atol=0.05)
