from pathlib import Path

import datasets
import pytest

from ofqctl.data import DataSpec, LabelSpace, image_loader, open_data
from ofqctl.errors import DataError

SHARED = Path(__file__).resolve().parents[3] / "shared/data"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the real images in {SHARED}"),
]


def test_the_549_classes_of_the_validation_images_keep_their_imagenet_labels():
    ids = (SHARED / "imagenet-wnids.txt").read_text().split()
    data = open_data(DataSpec(str(SHARED / "imagenet-val-800")), LabelSpace(1000))
    assert (data.class_count, data.image_count) == (549, 800)
    assert data.mapping == "549 WordNet-id folders mapped onto the 1000 ImageNet-1k classes"
    for record in data._records:
        assert data._label(record) == ids.index(Path(record.name).parent.name)


def test_the_list_of_ids_is_a_class_map_with_the_same_labels():
    spec = DataSpec(str(SHARED / "imagenet-val-800"), class_map=SHARED / "imagenet-wnids.txt")
    mapped, plain = open_data(spec, LabelSpace(1000)), open_data(DataSpec(spec.path), LabelSpace(1000))
    assert [mapped._label(record) for record in mapped._records] == [plain._label(record) for record in plain._records]


def test_549_classes_are_never_numbered_for_a_model_of_another_size():
    with pytest.raises(DataError, match="549 folders do not fit a model with 10 classes"):
        open_data(DataSpec(str(SHARED / "imagenet-val-800")), LabelSpace(10))


def test_imagenette_opens_by_split():
    data = open_data(DataSpec(str(SHARED / "imagenette-128"), split="val"), LabelSpace(1000))
    assert (data.class_count, data.image_count) == (10, 2000)


def test_the_local_table_opens_and_loads(tmp_path, monkeypatch, config):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    data = open_data(DataSpec(str(SHARED / "cifar10-24k"), split="test"), LabelSpace(10))
    assert (data.class_count, data.image_count) == (10, 4000)
    assert data.label_space.names[:3] == ("airplane", "automobile", "bird")
    images, labels = next(iter(image_loader(data, config, batch_size=8, limit=8)))
    assert images.shape == (8, 3, 16, 16)
    assert len(set(labels.tolist())) > 1
