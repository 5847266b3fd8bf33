"""The colours of curves can be told apart, also by those who see with two kinds of cones, and stand out on the card."""

import re

import numpy as np
import pytest

from ofqctl.reports.plots import PALETTE

# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB
SEEN_BY = {
    "all": np.eye(3),
    "protanopes": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopes": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopes": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}
TO_CONES = [
    [0.41222147, 0.53633254, 0.05144599],
    [0.2119035, 0.68069955, 0.10739696],
    [0.08830246, 0.28171884, 0.6299787],
]
TO_LAB = [
    [0.21045426, 0.79361779, -0.00407205],
    [1.9779985, -2.42859221, 0.45059371],
    [0.02590404, 0.78277177, -0.80867577],
]


def linear(colour):
    values = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def oklab(colours):
    return np.cbrt(colours @ np.transpose(TO_CONES)) @ np.transpose(TO_LAB)


def colours(look):
    light, dark = PALETTE.split("@media")
    return dict(re.findall(r"--(\w+): (#\w{6})", light if look == "light" else dark))


@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("who", SEEN_BY)
def test_no_two_colours_of_curves_look_alike(look, who):
    palette = np.array([linear(colours(look)[f"c{number}"]) for number in range(1, 9)])
    lab = oklab(np.clip(palette @ np.transpose(SEEN_BY[who]), 0, 1))
    distances = np.linalg.norm(lab[:, None] - lab[None], axis=-1)[np.triu_indices(8, 1)]
    assert distances.min() > 0.08  # two colours of 0.02 can just be told apart side by side


@pytest.mark.parametrize("look", ["light", "dark"])
def test_colours_stand_out_on_the_card(look):
    palette = colours(look)
    card, *rest = (
        linear(palette[name]) @ [0.2126, 0.7152, 0.0722] + 0.05 for name in ("card", *(f"c{n}" for n in range(1, 9)))
    )
    assert all(max(card, own) / min(card, own) > 2.5 for own in rest)
