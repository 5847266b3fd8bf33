"""The weights of a layer as a matrix whose columns, one for each input, are rounded one after the other."""

from dataclasses import replace
from operator import itemgetter

import torch
from torch import Tensor

from ofqctl.grids import Grid
from ofqctl.ptq.layer_inputs import Layer


class Columns:
    """Weight and bias of a layer as one matrix; the bias is the last column and stays in float.

    Grid steps are those that the weights have when this is created.

    Args:
        layer: A layer with a quantized weight.

    Attributes:
        matrix: (out, in) or (out, in + 1), float64, to be changed.
        codes: Codes of the weights, (out, in), to be filled.
    """

    def __init__(self, layer: Layer) -> None:
        assert layer.weight_quantizer is not None
        self._layer, self._quantizer = layer, layer.weight_quantizer
        self._encoded = layer.weight_quantizer.encode(layer.latent().detach())
        self._steps, self._grid = self._spread(self._encoded.step), self._encoded.grid.map(self._spread)
        self.matrix = matrix_of(layer)
        self.codes = torch.zeros_like(self.matrix[:, : self.inputs])

    @property
    def inputs(self) -> int:
        """Number of columns that are rounded."""
        return self._layer.weight[0].numel()

    def steps_and_grid(self, which: slice | Tensor) -> tuple[Tensor, Grid]:
        """Grid steps and grid of the weights in some columns."""
        return self._steps[:, which], self._grid.map(itemgetter((slice(None), which)))

    def install(self) -> None:
        """Give the layer latent weights that are encoded as the codes, and the bias."""
        codes = self.codes.reshape(self._layer.weight.shape).to(self._encoded.codes)
        latent = self._quantizer.latent_of(replace(self._encoded, codes=codes))
        self.matrix[:, : self.inputs] = latent.flatten(1).cpu()
        install(self._layer, self.matrix)

    def _spread(self, tensor: Tensor) -> Tensor:
        return tensor.cpu().double().expand(self._layer.weight.shape).flatten(1)


def matrix_of(layer: Layer) -> Tensor:
    """Weight and bias as one matrix, (out, in) or (out, in + 1), float64."""
    weight = layer.weight.detach().flatten(1).cpu()
    if layer.bias is not None:
        weight = torch.cat([weight, layer.bias.detach().cpu()[:, None]], dim=1)
    return weight.double()


def install(layer: Layer, matrix: Tensor) -> None:
    """Set weight and bias to what `matrix_of` then returns."""
    with torch.no_grad():
        inputs = layer.weight[0].numel()
        layer.weight.copy_(matrix[:, :inputs].reshape(layer.weight.shape))
        if layer.bias is not None:
            layer.bias.copy_(matrix[:, -1])
