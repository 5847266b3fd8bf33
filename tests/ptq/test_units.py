"""A model in units: which they are, and what flows through them."""

import copy
from itertools import repeat

import pytest
import timm
import torch

from ofqctl.convert import convert
from ofqctl.ptq import calibrate, on_disk
from ofqctl.ptq.units import Part, find_units, rebatched, variance_over, walk
from ofqctl.ptq.views import views_of
from ofqctl.recipe.catalogue import load

CPU = torch.device("cpu")


def units_of(name, size, **kwargs):
    model = timm.create_model(name, num_classes=10, **kwargs).eval()
    plan = convert(copy.deepcopy(model), load("ptq/minmax"), (3, size, size))
    return [(unit.name, unit.chained) for unit, _ in find_units(model, plan, torch.randn(2, 3, size, size))]


def test_a_unit_is_a_transformer_block_an_embedding_or_a_head():
    found = units_of("vit_tiny_patch16_224", 32, img_size=32, patch_size=8, embed_dim=48, depth=3, num_heads=3)
    assert found == [
        ("patch_embed", False),
        ("blocks.0", False),
        ("blocks.1", True),
        ("blocks.2", True),
        ("head", False),
    ]


def test_a_hierarchical_model_gives_its_blocks_and_the_layers_between_them():
    kwargs = {"img_size": 56, "embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4)}
    names = [name for name, _ in units_of("swin_tiny_patch4_window7_224", 56, **kwargs)]
    assert names == [
        "patch_embed",
        "layers.0.blocks.0",
        "layers.0.blocks.1",
        "layers.1.downsample",
        "layers.1.blocks.0",
        "layers.1.blocks.1",
        "head",
    ]


def test_the_walk_gives_each_unit_what_the_two_whole_models_give_it(tiny_vit, images):
    original = copy.deepcopy(tiny_vit)
    plan = convert(tiny_vit, load("ptq/minmax", ["weights.bits=3", "activations.bits=3"]), (3, 32, 32))
    calibrate(tiny_vit, plan, [images])
    seen = {}
    for kind, model in (("quantized", tiny_vit), ("original", original)):
        block = model.blocks[1]
        block.register_forward_hook(lambda _m, args, output, kind=kind: seen.update({kind: (args[0], output)}))
    with torch.no_grad():
        tiny_vit(images[2:])
        original(images[2:])
    expected = dict(seen)
    with on_disk(images.split(2), CPU) as stored:
        for piece in walk(tiny_vit, original, plan, stored):
            if piece.name == "blocks.1":
                assert torch.equal(piece.inputs[1], expected["quantized"][0])
                assert torch.equal(piece.original_inputs[1], expected["original"][0])
                assert torch.equal(piece.targets[1], expected["original"][1])
                with torch.no_grad():
                    assert torch.equal(piece.run(piece.inputs[1]), expected["quantized"][1])


def test_only_the_images_and_what_one_unit_needs_lie_on_disk(tiny_vit, images):
    original = copy.deepcopy(tiny_vit)
    plan = convert(tiny_vit, load("ptq/minmax"), (3, 32, 32))
    calibrate(tiny_vit, plan, [images])
    with on_disk(images.split(2), CPU) as stored:
        folder = stored._folder
        for _ in walk(tiny_vit, original, plan, stored):
            assert len(list(folder.iterdir())) <= 8  # 2 batches each of images, both inputs and targets
        assert folder.is_dir()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("sizes", "found"), [(repeat(2), [2, 2]), (repeat(3), [3, 1]), (repeat(9), [4]), ([1, 3], [1, 3])]
)
def test_rebatching_keeps_every_image(images, sizes, found):
    with on_disk(images.split(3), CPU) as stored:
        again = list(rebatched(stored, sizes, stored.beside("again")))
    assert [len(batch) for batch in again] == found
    assert torch.equal(torch.cat(again), images)


@pytest.mark.parametrize(("start", "stop"), [(0, None), (1, 3), (3, None), (0, 2), (2, 9), (4, None)])
def test_a_part_has_the_images_between_its_ends(images, start, stop):
    with on_disk(images.split(3), CPU) as stored:
        part = list(Part(stored, start, stop))
        assert Part(stored, start, stop).images == len(images[start:stop])
    assert torch.equal(torch.cat([images[:0], *part]), images[start:stop])


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_variances_are_those_of_all_images_whatever_the_batches(images, size):
    apart = 100.0 + images
    with on_disk(apart.split(size), CPU) as stored:
        found = variance_over(stored)
    assert torch.allclose(found, images.var(dim=0, unbiased=False), rtol=1e-4, atol=1e-5)


def test_views_are_the_images_and_crops_that_a_seed_decides(images):
    def views(seed):
        return torch.cat(list(views_of(images.split(3), 10, torch.Generator().manual_seed(seed))))

    state = torch.get_rng_state()
    first = views(1)
    assert torch.equal(torch.get_rng_state(), state)
    assert first.shape == (10, *images.shape[1:])
    assert torch.equal(first[:4], images)
    assert all(not torch.equal(first[i], images[i % 4]) for i in range(4, 10))
    assert torch.equal(first, views(1))
    assert not torch.equal(first, views(2))


@pytest.mark.parametrize("count", [1, 3, 4])
def test_enough_images_need_no_crops(images, count):
    assert torch.equal(torch.cat(list(views_of(images.split(3), count, torch.Generator()))), images)
