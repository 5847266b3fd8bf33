"""Images for models that do not take three channels."""

import pytest
import torch

from ofqctl.data import DataSpec, image_loader, open_data
from ofqctl.errors import DataError
from ofqctl.recipe.training import Training
from ofqctl.training import Share, TrainingBatches


@pytest.fixture
def data(make_folder):
    return open_data(DataSpec(str(make_folder({"cat": 4, "dog": 4}))))


def config_of(config, channels):
    size = {"input_size": (channels, 16, 16), "mean": (0.5,) * channels, "std": (0.25,) * channels}
    return config | size | {"interpolation": "bilinear"}  # stays between its neighbours


@pytest.mark.parametrize("workers", [0, 2])
def test_a_model_with_one_channel_gets_the_brightness_of_colour_images(data, config, workers):
    ((grey, _),) = image_loader(data, config_of(config, 1), batch_size=8, workers=workers)
    ((colour, _),) = image_loader(data, config_of(config, 3), batch_size=8)
    brightness = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1) * colour
    assert grey.shape == (8, 1, 16, 16)
    assert torch.allclose(grey, brightness.sum(1, keepdim=True), atol=0.06)


def test_it_is_trained_on_grey_images_too(data, config):
    training = Training(augmentation={"auto_augment": "rand-m9"})
    (batch,) = TrainingBatches(data, config_of(config, 1), training, Share(8), seed=0).epoch(0)
    assert batch.images.shape == (8, 1, 16, 16)


def test_photographs_have_no_four_channels(data, config):
    with pytest.raises(DataError, match="the model takes 4 channels") as error:
        image_loader(data, config_of(config, 4), batch_size=8)
    assert "predict --array" in error.value.hint
