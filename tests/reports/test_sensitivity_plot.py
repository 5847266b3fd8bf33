"""The plot of sensitivities: layers in the order of the model, roles by colour, in the reader's style."""

import re

import pytest

from ofqctl.reports.sensitivity import draw

KL = {name: {2: value, 8: value / 100} for name, value in (("patch", 1.0), ("blocks.0.fc1", 0.1), ("head", 0.0))}
ROLES = {"patch": "patch", "blocks.0.fc1": "fc1", "head": "head"}


def test_layers_stand_in_the_order_of_the_model_with_a_panel_for_each_width_and_a_legend_of_roles():
    svg = draw(KL, ROLES, "one layer at a time", "svg").decode()
    words = re.findall(r">([^<>]+)</text>", svg)
    assert [word for word in words if word in KL] == [*KL, "patch", "head"]  # the last two are roles
    assert [word for word in words if "bits" in word] == ["2 bits", "8 bits"]
    assert words[-3:] == ["patch", "fc1", "head"]


def test_the_drawing_follows_a_light_or_dark_style():
    svg = draw(KL, ROLES, "one layer at a time", "svg").decode()
    assert "prefers-color-scheme: dark" in svg
    assert not re.search("#0a0b", svg)


@pytest.mark.parametrize(("kind", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF")])
def test_a_picture_has_the_format_of_its_name(kind, start):
    assert draw(KL, ROLES, "one layer at a time", kind).startswith(start)
