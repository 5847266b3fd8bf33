"""Figures of embeddings: likeness, neighbours against scikit-learn, shares of several processes."""

import numpy as np
import pytest
import timm
import torch
from sklearn.neighbors import KNeighborsClassifier

from ofqctl.errors import ModelError
from ofqctl.evaluation import compare_embeddings, embed, likeness, merged_embeddings
from ofqctl.evaluation.neighbours import NEIGHBOURS, TEMPERATURE, look_up
from ofqctl.models import with_tokens
from tests.conftest import TINY

CPU = torch.device("cpu")


def clusters(images, classes=5, width=16, seed=0):
    """Embeddings around class centres, far enough apart that some are found and some are not."""
    drawn = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images,), generator=drawn)
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9))
    return centres[labels] + 1.5 * torch.randn(images, width, generator=drawn), labels


def by_sklearn(index, known, queries, neighbours):
    weighing = lambda distances: np.exp((1.0 - distances) / TEMPERATURE)  # noqa: E731
    found = KNeighborsClassifier(neighbours, metric="cosine", algorithm="brute", weights=weighing)
    return found.fit(index.numpy(), known.numpy()).predict(queries.numpy())


def test_neighbours_in_an_index_vote_as_those_of_scikit_learn():
    (index, known), (queries, labels) = clusters(150, seed=1), clusters(1100, seed=2)  # more than are compared at once
    found = look_up(queries, labels, index, known)
    assert found.neighbours == NEIGHBOURS
    assert torch.equal(found.knn, torch.from_numpy(by_sklearn(index, known, queries, NEIGHBOURS)) == labels)
    assert torch.equal(found.nearest, torch.from_numpy(by_sklearn(index, known, queries, 1)) == labels)
    assert 0.2 < found.knn.float().mean() < 1.0


def test_without_an_index_each_image_is_looked_up_among_the_others():
    queries, labels = clusters(40)
    found = look_up(queries, labels)
    for left_out in range(40):
        others = torch.arange(40) != left_out
        alone = queries[left_out : left_out + 1]
        voted = by_sklearn(queries[others], labels[others], alone, NEIGHBOURS)
        assert bool(found.knn[left_out]) == (voted[0] == int(labels[left_out]))


def test_few_images_have_fewer_neighbours():
    queries, labels = clusters(4)
    assert look_up(queries, labels).neighbours == 3


def test_likeness_is_the_cosine_and_the_length_of_the_difference():
    theirs = torch.tensor([[3.0, 4.0], [1.0, 0.0]])
    ours = torch.tensor([[3.0, 4.0], [1.0, 1.0]])
    assert torch.allclose(likeness(ours, theirs), torch.tensor([[1.0, 0.0], [0.5**0.5, 1.0]]))
    tokens = likeness(ours[None], theirs[None])
    assert torch.allclose(tokens, torch.tensor([[(1 + 0.5**0.5) / 2, 1 / 26**0.5]]))


@pytest.fixture
def backbone():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY).eval()


@pytest.mark.parametrize("processes", [1, 3])
def test_figures_of_shared_images_are_those_of_one_process(backbone, processes):
    images, labels = torch.randn(22, 3, 32, 32), torch.randint(3, (22,))
    batches = list(zip(images.split(4), labels.split(4), strict=True))
    torch.manual_seed(1)
    models = {"float": backbone, "model": timm.create_model("vit_tiny_patch16_224", num_classes=0, **TINY).eval()}
    alone = embed(models, batches, device=CPU, tokens=True)
    shares = [embed(models, batches[rank::processes], device=CPU, tokens=True) for rank in range(processes)]
    together = {name: merged_embeddings([share[name] for share in shares]) for name in models}
    one, other = (compare_embeddings(found, labelled=True) for found in (alone, together))
    assert other.paired == one.paired
    for name in models:
        first, second = (found.models[name].model_dump(exclude={"images_per_second"}) for found in (one, other))
        for alike in ("likeness", "tokens") if name == "model" else ():
            assert second.pop(alike) == pytest.approx(first.pop(alike))
        assert second == first


def test_a_model_is_like_itself_and_differs_by_no_image(backbone):
    batches = [(torch.randn(8, 3, 32, 32), torch.arange(8) % 2)]
    found = compare_embeddings(embed({"a": backbone, "b": backbone}, batches, device=CPU, tokens=True), labelled=True)
    alike = found.models["b"].likeness.model_dump()
    assert alike == pytest.approx({"cosine": 1, "lowest_cosine": 1, "relative_error": 0})
    assert found.models["b"].tokens.relative_error == 0
    assert found.paired.knn.gained == found.paired.knn.lost == 0
    assert found.neighbours.k == 7


def test_without_labels_there_are_no_neighbours(backbone):
    batches = [(torch.randn(3, 3, 32, 32), torch.full((3,), -1))]
    found = compare_embeddings(embed({"a": backbone, "b": backbone}, batches, device=CPU), labelled=False)
    assert (found.paired, found.neighbours, found.models["b"].knn) == (None, None, None)


@pytest.mark.parametrize(
    ("name", "kwargs", "tokens"),
    [
        ("vit_small_patch14_reg4_dinov2", {"img_size": 28, "embed_dim": 48, "depth": 1, "num_heads": 3}, (4, 48)),
        ("eva02_tiny_patch14_224", {"img_size": 28, "embed_dim": 48, "depth": 1, "num_heads": 3}, (4, 48)),
        (
            "swin_tiny_patch4_window7_224",
            {"img_size": 56, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 4)},
            (49, 48),
        ),
        (
            "samvit_base_patch16",
            {"img_size": 64, "embed_dim": 48, "depth": 1, "num_heads": 3, "neck_chans": 16},
            (16, 16),
        ),
    ],
)
def test_tokens_are_of_the_patches_alone_and_the_embedding_is_the_models_own(name, kwargs, tokens):
    model = timm.create_model(name, num_classes=0, **kwargs).eval()
    images = torch.randn(2, 3, kwargs["img_size"], kwargs["img_size"])
    with torch.inference_mode():
        embedding, dense = with_tokens(model, images)
        features = model.forward_features(images)
        assert torch.equal(embedding, model(images))
    assert dense.shape == (2, *tokens)
    if name.startswith("samvit"):  # a map, channels first
        assert torch.equal(dense[0, 5], features[0, :, 1, 1])
    elif name.startswith("swin"):  # a map, channels last
        assert torch.equal(dense[0, 8], features[0, 1, 1])
    else:
        assert torch.equal(dense[0], features[0, model.num_prefix_tokens :])


def test_a_model_without_pooling_is_refused_with_what_gives_it_some():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=0, global_pool="", **TINY).eval()
    with pytest.raises(ModelError, match=r"gives \(2, 17, 48\) for 2 images") as fault:
        embed({"a": model}, [(torch.randn(2, 3, 32, 32), torch.zeros(2))], device=CPU)
    assert "global_pool=avg" in fault.value.hint
