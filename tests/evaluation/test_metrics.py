"""Figures of two models on the same images."""

import pytest
import torch

from ofqctl.evaluation import Metrics, paired


def measured(hits):
    """Metrics of a model that is right where ``hits`` says, in two batches."""
    metrics = Metrics()
    for part in torch.tensor(hits).split(3):
        logits = torch.nn.functional.one_hot((~part).long(), 7).float()
        metrics.add(logits, torch.zeros(len(part), dtype=torch.long), 0.0)
    return metrics


def test_a_paired_difference_counts_images_and_has_the_error_of_their_differences():
    before, after = [True, True, True, False, False], [True, False, False, True, False]
    found = paired(measured(before), measured(after))
    changes = torch.tensor([0.0, -1.0, -1.0, 1.0, 0.0])
    assert (found["gained"], found["lost"]) == (1, 2)
    assert found["difference"] == pytest.approx(-20.0)
    assert found["standard_error"] == pytest.approx(100 * float(changes.std()) / 5**0.5, abs=1e-3)


def test_a_model_differs_from_itself_by_nothing():
    model = measured([True, False, True, True])
    assert paired(model, model) == {"difference": 0.0, "standard_error": 0.0, "gained": 0, "lost": 0}
