"""What a page needs of a model and of the runtime."""

import pytest

from ofqctl.errors import ArtifactError, PackageError
from ofqctl.export.browser import WebRuntime, check_runs, check_shown
from ofqctl.export.metadata import Description

CONFIG = {
    "input_size": [3, 32, 32],
    "interpolation": "bicubic",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "crop_pct": 0.9,
    "crop_mode": "center",
}


def described(classes=10, **config):
    return Description(
        architecture="vit_tiny_patch16_224",
        num_classes=classes,
        model_args={},
        data_config=CONFIG | config,
        label_names=None,
        recipe=None,
        target=None,
        input="normalized",
        source="",
    )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (described(classes=0), "has no classes"),
        (described(input_size=[4, 32, 32], mean=[0.5] * 4, std=[0.5] * 4), "takes 4 channels"),
        (described(interpolation="random"), "resizes images at random"),
    ],
)
def test_a_model_that_no_page_can_show_is_refused(model, message):
    with pytest.raises(ArtifactError, match=message):
        check_shown(model.data_config, model.num_classes, "x")


def test_the_runtime_must_be_as_new_as_the_file_needs():
    check_runs(WebRuntime("1.24.1", None), "1.24")
    check_runs(WebRuntime("1.30.0", None), "1.24")
    check_shown(described().data_config, described().num_classes, "x")
    with pytest.raises(PackageError, match="cannot load") as told:
        check_runs(WebRuntime("1.9.0", None), "1.24")
    assert "--target portable" in told.value.hint
    with pytest.raises(PackageError) as told:
        check_runs(WebRuntime("1.22.0", None), "1.23")
    assert "portable" not in told.value.hint
