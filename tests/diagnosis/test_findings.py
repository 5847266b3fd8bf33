"""What is said about a checkpoint, and what is advised."""

import pytest

from ofqctl.diagnosis.findings import findings_of, percent
from ofqctl.diagnosis.opening import open_source
from ofqctl.diagnosis.report import Selection, report_on


def texts(report, recipe):
    return {finding.text: finding for finding in findings_of(report, recipe)}


def first(report, recipe):
    return findings_of(report, recipe)[0]


def test_oscillation_without_a_remedy_is_advised_one(lsq_run):
    opened = open_source(lsq_run)
    report, _ = report_on(opened, Selection())
    layers = [
        layer.model_copy(update={"tracked": layer.tracked.model_copy(update={"flips_per_step": 0.01})})
        for layer in report.layers
    ]
    finding = first(report.model_copy(update={"layers": tuple(layers)}), opened.recipe)
    assert finding.option == "training.phases.N.cga"
    low = [layer for layer in report.layers if layer.bits == 2]
    worst = max(low, key=lambda layer: layer.tracked.oscillating)
    assert worst.title in finding.text
    assert percent(worst.tracked.oscillating) in finding.text
    assert "more than once in 200 steps" in finding.text


def test_codes_at_rest_need_nothing(ofq_run):
    opened = open_source(ofq_run)
    report, _ = report_on(opened, Selection())
    layers = [
        layer.model_copy(update={"tracked": layer.tracked.model_copy(update={"flips_per_step": 1e-6})})
        for layer in report.layers
    ]
    finding = first(report.model_copy(update={"layers": tuple(layers)}), opened.recipe)
    assert finding.option is None and "Nothing needs to be done" in finding.advice


def test_annealing_is_told_with_before_and_after(ofq_run):
    opened = open_source(ofq_run)
    report, _ = report_on(opened, Selection())
    (told,) = [text for text in texts(report, opened.recipe) if text.startswith("Annealing")]
    rows = report.epochs
    assert f"from {percent(rows[1].oscillating)} to {percent(rows[2].oscillating)}" in told
    assert report.annealing == ("cga",)


def test_a_file_without_tracker_says_so_and_how_to_get_one(packed_run):
    opened = open_source(packed_run)
    report, _ = report_on(opened, Selection())
    finding = first(report, opened.recipe)
    assert "does not show whether weights oscillate" in finding.text and finding.option == "training.tracking"
    assert "--data" not in finding.advice  # packed codes cannot be trained on


@pytest.mark.parametrize(
    ("share", "text"), [(0.0, "0 %"), (0.5, "50 %"), (0.0512, "5.1 %"), (0.00487, "0.49 %"), (0.000048, "0.0048 %")]
)
def test_shares_have_the_digits_that_count(share, text):
    assert percent(share) == text
