import numpy as np
import onnxruntime
import pytest
import timm
import torch
from torch import nn

from ofqctl.errors import ModelError
from ofqctl.export.tracing import trace

TINY = {"depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 3}


@pytest.mark.parametrize(
    "name, config",
    [
        ("vit_tiny_patch16_224", TINY),
        ("beit_base_patch16_224", TINY),  # its attention adds a bias
        ("eva02_tiny_patch14_224", TINY),
        ("swin_tiny_patch4_window7_224", {"embed_dim": 32, "depths": (1, 1, 1, 2), "num_classes": 3}),  # and a mask
    ],
)
def test_a_float_model_is_traced_for_any_number_of_images(name, config):
    torch.manual_seed(0)
    model = timm.create_model(name, **config).eval()
    graph = trace(model, (3, 224, 224), batch=None, pixels=False)
    images = torch.randn(3, 3, 224, 224)
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(images)
    np.testing.assert_allclose(session.run(None, {"image": images.numpy()})[0], expected.numpy(), atol=1e-4)


class Curious(nn.Module):
    def forward(self, images):
        return images.mean((1, 2, 3), keepdim=True)[: int(images.sum() > 0) + 1]


def test_a_model_that_cannot_be_traced_is_refused_with_the_reason_in_one_line():
    with pytest.raises(ModelError, match=r"^export: Curious cannot be traced for any number of images: .") as raised:
        trace(Curious(), (3, 8, 8), batch=None, pixels=False)
    assert "\n" not in str(raised.value) and "\x1b" not in str(raised.value)
