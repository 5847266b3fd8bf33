"""Every shipped recipe that says how to train takes steps in the real engine, in every one of its phases."""

import pytest
import timm
from PIL import Image

from ofqctl.artifact import load_run
from ofqctl.data import DataSpec
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load, names

TRAINABLE = [name for name in names() if load(name).training is not None]
BOUND = {load(name).model: name for name in TRAINABLE if load(name).model is not None}  # one for each architecture
SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}


def shortened(name):
    """The recipe with an epoch a phase, two images a step and short stages; the model itself as its teacher."""
    training, stages = load(name).training, load(name).ptq
    batch = 2 * training.augmentation.crops
    sets = [f"training.batch_size={batch}", "calibration.images=2", "calibration.batch_size=2"]
    for index in range(len(training.phases)):
        sets += [f"training.phases.{index}.{key}" for key in ("epochs=1", "warmup_epochs=0", "warmup_steps=0")]
    for index, stage in enumerate(stages):
        sets += [f"ptq.{index}.{key}=2" for key in ("iterations", "views") if hasattr(stage, key)]
    if training.distillation is not None:
        sets.append("training.distillation.teacher=self")
    return load(name, sets)


def model_for(recipe, *, whole=False):
    """The architecture that a recipe is bound to, on small images; a tiny ViT where any will do.

    Less of it, unless the whole is asked for.
    """
    if recipe.model is None:
        features = "embedding" in recipe.training.objective
        classes = None if features else 2
        return ModelRequest("vit_tiny_patch16_224", None, False, classes, kwargs=SMALL, features=features)
    architecture = timm.list_models(recipe.model)[0]
    less = {"depths": [1, 1, 1, 1], "embed_dim": 24} if architecture.startswith("swin") else {"depth": 2}
    return ModelRequest(architecture, pretrained=False, num_classes=2, img_size=64, kwargs={} if whole else less)


@pytest.fixture(scope="module")
def four_images(tmp_path_factory):
    root = tmp_path_factory.mktemp("four")
    for label, colour in enumerate(((200, 40, 40), (40, 200, 40))):
        (root / f"class{label}").mkdir()
        for number in range(2):
            Image.new("RGB", (72, 72), (*colour[:2], 60 * number)).save(root / f"class{label}" / f"{number}.png")
    return DataSpec(str(root))


def steps_of(recipe, model, data, output):
    """Train with it, in every phase; the rows of the epochs."""
    rows = train(TrainRequest(model, recipe, data, data, output, device="cpu")).training.epochs
    assert [row.phase for row in rows] == [phase.name for phase in recipe.training.phases]
    assert rows[-1].step == 2 * len(rows)
    assert all(0.0 < row.loss < 100.0 for row in rows)


@pytest.mark.parametrize("name", TRAINABLE)
def test_a_shipped_recipe_takes_two_steps_in_each_phase(name, four_images, tmp_path):
    recipe = shortened(name)
    steps_of(recipe, model_for(recipe), four_images, tmp_path / "run")
    modules = load_run(tmp_path / "run").config.quantization_config.plan.modules.values()
    layers = (
        recipe.weights,
        recipe.first.weights,
        recipe.last.weights,
        *(o.weights for o in recipe.layers if o.weights),
    )
    assert {module.weight.bits for module in modules if module.weight} <= {weights.bits for weights in layers}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOUND.values())
def test_the_whole_architecture_that_a_recipe_is_for_takes_two_steps(name, four_images, tmp_path):
    recipe = shortened(name)
    steps_of(recipe, model_for(recipe, whole=True), four_images, tmp_path / "run")
