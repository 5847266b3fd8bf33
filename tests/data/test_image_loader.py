import pytest
import torch

from ofqctl.data import DataSpec, image_loader, open_data
from ofqctl.errors import DataError


@pytest.fixture
def data(make_folder):
    """Ten images, of which label n is that of image n."""
    return open_data(DataSpec(str(make_folder({f"class-{number}": 1 for number in range(10)}))))


def labels_of(loader):
    return torch.cat([labels for _, labels in loader]).tolist()


def test_batches_are_float_images_and_integer_labels(data, config):
    loader = image_loader(data, config, batch_size=4)
    batches = list(loader)
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, 16, 16), (4, 3, 16, 16), (2, 3, 16, 16)]
    assert {images.dtype for images, _ in batches} == {torch.float32}
    assert {labels.dtype for _, labels in batches} == {torch.int64}
    assert len(loader) == 3
    assert labels_of(loader) == list(range(10))


def test_images_are_preprocessed_as_the_model_says(data, config):
    ((images, _),) = image_loader(data, config, batch_size=10)
    assert images.min() >= -1
    assert images.max() <= 1
    ((others, _),) = image_loader(data, {**config, "mean": [0.0] * 3, "std": [1.0] * 3}, batch_size=10)
    assert torch.allclose(others, images * 0.5 + 0.5, atol=1e-6)
    text = image_loader(data, config, batch_size=1).transform_text
    assert "Resize(size=17, interpolation=bicubic" in text
    assert "\n" not in text


def test_workers_change_nothing(data, config):
    options = {"batch_size": 3, "limit": 7, "shuffle": True, "seed": 5}
    alone = list(image_loader(data, config, **options))
    together = list(image_loader(data, config, workers=2, **options))
    for (images, labels), (same_images, same_labels) in zip(alone, together, strict=True):
        assert torch.equal(images, same_images)
        assert torch.equal(labels, same_labels)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [2, 3, 5])
def test_processes_take_turns_at_the_batches_of_one(data, config, world, workers):
    options = {"batch_size": 3, "shuffle": True, "seed": 5}
    alone = [labels.tolist() for _, labels in image_loader(data, config, **options)]
    for rank in range(world):
        loader = image_loader(data, config, workers=workers, rank=rank, world=world, **options)
        assert [labels.tolist() for _, labels in loader] == alone[rank::world]
        assert loader.image_count == sum(map(len, alone[rank::world]))
        assert len(loader) == len(alone[rank::world])


def test_a_limit_draws_from_the_whole_set_whatever_the_batch_size(data, config):
    drawn = [labels_of(image_loader(data, config, batch_size=size, limit=4)) for size in (1, 3)]
    assert drawn[0] == drawn[1]
    assert len(set(drawn[0])) == 4
    assert max(drawn[0]) > 4
    assert drawn[0] != labels_of(image_loader(data, config, batch_size=1, limit=4, seed=1))
    assert drawn[0] == labels_of(image_loader(data, config, batch_size=1, limit=7))[:4]
    assert labels_of(image_loader(data, config, batch_size=4, limit=99)) == list(range(10))


def test_shuffling_depends_on_the_seed_and_the_epoch_alone(data, config):
    loader = image_loader(data, config, batch_size=4, shuffle=True, limit=6)
    first = labels_of(loader)
    assert labels_of(loader) == first
    loader.set_epoch(1)
    assert labels_of(loader) != first
    assert sorted(labels_of(loader)) == sorted(first)


@pytest.mark.parametrize("workers", [0, 2])
def test_damaged_images_are_skipped_and_named(make_folder, config, workers):
    root = make_folder({"cat": 3, "dog": 2})
    broken = [root / "cat" / "001.png", root / "dog" / "000.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    loader = image_loader(open_data(DataSpec(str(root))), config, batch_size=2, workers=workers)
    for _ in range(2):
        assert labels_of(loader) == [0, 0, 1]
        assert [skip.name for skip in loader.skipped] == list(map(str, broken))


def test_a_batch_of_damaged_images_is_left_out(make_folder, config):
    root = make_folder({"cat": 4})
    for number in (0, 1):
        (root / "cat" / f"00{number}.png").write_bytes(b"")
    loader = image_loader(open_data(DataSpec(str(root))), config, batch_size=2)
    assert [len(labels) for _, labels in loader] == [2]


def test_nothing_but_damaged_images_is_an_error(make_folder, config):
    root = make_folder({"cat": 2})
    for path in (root / "cat").iterdir():
        path.write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"none of its 2 images can be used; the first, .*000\.png, is not an image"):
        list(image_loader(open_data(DataSpec(str(root))), config, batch_size=2))


def test_augmentation_is_timms(data, config):
    loader = image_loader(data, config, batch_size=10, augmentation={"scale": (0.5, 1.0), "hflip": 0.5})
    assert "RandomResizedCrop" in loader.transform_text
    ((images, _),) = loader
    assert images.shape == (10, 3, 16, 16)


@pytest.mark.parametrize("option", [{"batch_size": 0}, {"limit": 0}, {"workers": -1}])
def test_counts_out_of_range_are_an_error(data, config, option):
    with pytest.raises(DataError, match="is too small"):
        image_loader(data, config, **{"batch_size": 1, **option})
