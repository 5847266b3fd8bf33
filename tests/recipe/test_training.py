"""The training part of recipes: the published rows, and what cannot be asked for."""

import pytest

from ofqctl.errors import RecipeError
from ofqctl.recipe.catalogue import load, names

PUBLISHED = {  # lr, weight decay, warm-up epochs, global batch, mixup, repeats
    "ofq/deit_tiny_distilled_w2a2": (5.47e-4, 0.05, 5, 560, 0.0, 0),
    "ofq/deit_tiny_distilled_w3a3": (5.47e-4, 0.05, 5, 560, 0.0, 0),
    "ofq/deit_tiny_distilled_w4a4": (5.47e-4, 0.05, 5, 560, 0.0, 0),
    "ofq/deit_small_distilled_w2a2": (5.47e-4, 0.05, 5, 560, 0.0, 0),
    "ofq/deit_small_distilled_w3a3": (3.2e-4, 0.0, 0, 800, 0.8, 3),
    "ofq/deit_small_distilled_w4a4": (3.2e-4, 0.0, 0, 800, 0.8, 3),
    "ofq/swin_tiny_w2a2": (5.0e-4, 0.05, 5, 512, 0.0, 0),
    "ofq/swin_tiny_w3a3": (2.0e-4, 0.0, 0, 512, 0.8, 0),
    "ofq/swin_tiny_w4a4": (2.0e-4, 0.0, 0, 512, 0.8, 0),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_nine_published_rows_have_their_hyper_parameters(name):
    training = load(name).training
    settings = training.optimizer, training.phases[0], training.augmentation
    optimizer, phase, augmentation = settings
    got = (
        optimizer.lr,
        optimizer.weight_decay,
        phase.warmup_epochs,
        training.batch_size,
        augmentation.mixup,
        augmentation.repeats,
    )
    assert got == PUBLISHED[name]
    assert [p.epochs for p in training.phases] == [300, 30]
    assert training.phases[1].cga.boundary_range == 0.005
    assert "published top-1" in load(name).source


def test_every_published_row_is_shipped():
    assert set(PUBLISHED) <= set(names())


def test_learning_rates_scale_together():
    training = load("bench/imagenette_ofq_w2a2").training
    scaled = training.scaled(2.0)
    assert scaled.optimizer.lr == 2 * training.optimizer.lr
    assert [p.lr for p in scaled.phases] == [None, 2e-5]


def test_averaged_weights_and_annealing_exclude_each_other():
    with pytest.raises(RecipeError, match="ema averages weights"):
        load("demo/digits_ofq_w2a2", ["training.ema=0.999"])


@pytest.mark.parametrize(
    ("name", "assignments", "told"),
    [
        ("ofq/vit_w2a2", ["training.optimizer.lr=1e-6"], "ends at min_lr 1e-05, above its peak of 1e-06"),
        ("demo/digits_ofq_w2a2", ["training.distillation={hard: 0, soft: 0}"], "labels and answers have a weight of 0"),
        ("ofq/vit_w2a2", ["attention.products=false"], "qkr merges query and key of quantized products"),
        ("ptq/mse", ["layers=[{target: head}]"], "says nothing about 'head'"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(name, assignments, told):
    with pytest.raises(RecipeError, match=told):
        load(name, assignments)


def test_only_recipes_of_our_own_start_their_cosine_behind_the_warm_up():
    trained = {name: load(name).training for name in names() if load(name).training is not None}
    warmed = {name for name, training in trained.items() if any(p.warmup_steps for p in training.phases)}
    found = {name for name, training in trained.items() if any(p.warmup_prefix for p in training.phases)}
    assert found == {name for name in warmed if name.startswith(("bench/", "fast/"))}
