"""Figures of two models on the same images."""

import pytest
import torch

from ofqctl.evaluation import Metrics, embed, evaluate, merged, paired
from ofqctl.results.accuracy import Paired


def measured(hits):
    """Metrics of a model that is right where ``hits`` says, in two batches."""
    metrics = Metrics()
    for part in torch.tensor(hits).split(3):
        logits = torch.nn.functional.one_hot((~part).long(), 7).float()
        metrics.add(logits, torch.zeros(len(part), dtype=torch.long), 0.0)
    return metrics


def test_a_paired_difference_counts_images_and_has_the_error_of_their_differences():
    before, after = [True, True, True, False, False], [True, False, False, True, False]
    found = paired(measured(before).right, measured(after).right)
    changes = torch.tensor([0.0, -1.0, -1.0, 1.0, 0.0])
    assert (found.gained, found.lost) == (1, 2)
    assert found.difference == pytest.approx(-20.0)
    assert found.standard_error == pytest.approx(100 * float(changes.std()) / 5**0.5, abs=1e-3)


def test_a_model_differs_from_itself_by_nothing():
    model = measured([True, False, True, True])
    none = Paired(difference=0.0, standard_error=0.0, gained=0, lost=0)
    assert paired(model.right, model.right) == none


@pytest.mark.parametrize("measure", [evaluate, embed])
def test_what_is_kept_of_a_batch_holds_no_memory_of_loader_processes(tiny_vit, measure):
    images, labels = torch.randn(4, 3, 32, 32), torch.arange(4).share_memory_()
    found = measure({"model": tiny_vit}, [(images, labels)], device=torch.device("cpu"))
    assert not found["model"].labels[0].is_shared()


@pytest.mark.parametrize("processes", [2, 3, 9])
def test_figures_of_shared_images_are_those_of_one_process(tiny_vit, processes):
    torch.manual_seed(0)
    images, labels = torch.randn(33, 3, 32, 32), torch.randint(0, 10, (33,))
    batches = list(zip(images.split(5), labels.split(5), strict=True))
    models = {"before": tiny_vit, "after": torch.nn.Sequential(tiny_vit, torch.nn.Linear(10, 10).eval())}
    alone, *shares = (
        evaluate(models, part, device=torch.device("cpu"))
        for part in (batches, *(batches[rank::processes] for rank in range(processes)))
    )
    together = {name: merged([share[name] for share in shares]) for name in models}
    for name in models:
        one, other = dict(alone[name].accuracy), dict(together[name].accuracy)
        speeds = [share[name].images_per_second for share in shares]
        assert other.pop("images_per_second") == pytest.approx(sum(speeds), abs=0.01)
        assert other == {key: one[key] for key in other}
        assert other["images"] == 33
    assert paired(together["before"].right, together["after"].right) == paired(
        alone["before"].right, alone["after"].right
    )
