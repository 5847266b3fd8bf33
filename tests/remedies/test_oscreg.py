"""Weights move to the thresholds by the gradient of the paper, and are measured at any width afterwards."""

import json

import pytest
import timm
import torch

from ofqctl.data import DataSpec
from ofqctl.errors import ModelError, RecipeError
from ofqctl.evaluation import of_model, open_subject
from ofqctl.jobs.evaluate import EvaluateRequest, evaluate
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.jobs.widths import at_widths
from ofqctl.layers import weight_sites
from ofqctl.models import ModelRequest, load_model
from ofqctl.recipe.catalogue import load
from ofqctl.remedies.oscreg import OscillationPenalty, OscReg

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
SHORT = ("training.phases.0.epochs=1", "training.steps_per_epoch=3", "training.batch_size=16")


def trained(recipe, output, *assignments):
    model = ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY)
    train(
        TrainRequest(
            model=model, recipe=load(recipe, assignments), data=DataSpec("digits"), output=output, device="cpu"
        )
    )
    return output


def test_penalty_and_gradient_are_those_of_the_paper(tiny_vit):
    OscillationPenalty(tiny_vit, OscReg(weight=0.7, bits=3), 1).penalty().backward()
    total = 0.0
    for module in tiny_vit.modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            w = module.weight.detach().double()
            step = w.abs().max() / 3
            rounded = torch.round(w / step) * step
            total += float((rounded**2 - w**2).mean())
            wanted = 2 * 0.7 / w.numel() * (rounded - w)
            torch.testing.assert_close(module.weight.grad.double(), wanted, rtol=1e-5, atol=1e-9)
    found = OscillationPenalty(tiny_vit, OscReg(weight=0.7, bits=3), 1).penalty()
    assert found.item() == pytest.approx(0.7 * total, rel=1e-4)


def test_descent_moves_weights_from_levels_to_thresholds():
    layer = torch.nn.Linear(8, 8)
    held = layer.weight.detach().abs().max()
    remedy = OscillationPenalty(layer, OscReg(weight=1.0), 1)

    def distance():
        position = (layer.weight.detach() / (held / 3)).flatten()
        return float((position - position.floor() - 0.5).abs().mean())

    before = distance()
    for _ in range(5):
        layer.zero_grad()
        remedy.penalty().backward()
        with torch.no_grad():
            layer.weight -= 2.0 * layer.weight.grad
    assert distance() < before


def test_quantized_weights_are_refused(quantized):
    with pytest.raises(RecipeError, match="is quantized"):
        OscillationPenalty.check(quantized("lsq"), OscReg())


def test_a_float_run_is_measured_at_several_widths_beside_itself(tmp_path):
    run = trained("oscreg/vit_any", tmp_path / "run", *SHORT)
    request = EvaluateRequest(ModelRequest(str(run)), DataSpec("digits"), limit=40, device="cpu", widths=(2, 8))
    result = evaluate(request)
    assert [rounded.wbits for rounded in result.widths] == [2, 8]
    assert all(rounded.images == 40 for rounded in result.widths)
    assert abs(result.widths[1].loss - result.loss) < abs(result.widths[0].loss - result.loss)
    assert json.loads(result.model_dump_json())["widths"][0]["wbits"] == 2


def test_every_layer_of_a_float_model_is_rounded_to_the_width():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, **TINY).eval()
    loaded = load_model(ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY))
    rounded = at_widths(of_model(loaded), (2, 4), load("ptq/minmax"))
    assert len(dict(weight_sites(rounded[2]))) == sum(
        isinstance(m, torch.nn.Linear | torch.nn.Conv2d) for m in model.modules()
    )
    for bits, model in rounded.items():
        for name, site in weight_sites(model):
            own = 8 if name in ("patch_embed.proj.weight", "head.weight") else bits
            assert site.weight_quantizer.plan.bits == own
            assert all(len(row.unique()) <= 2**own for row in site.quantized_weight().flatten(1))


def test_a_quantized_run_is_rounded_from_its_latent_weights_and_is_itself_at_its_own_width(tmp_path):
    run = trained(
        "demo/digits_ofq_w2a2", tmp_path / "run", *SHORT, "training.phases.1.epochs=1", "calibration.images=16"
    )
    subject = open_subject(ModelRequest(str(run)))
    latents = torch.load(run / "last.pt", weights_only=True)["model"]
    models = at_widths(subject, (2, 8), None)
    assert models[2] is subject.model
    sites = dict(weight_sites(models[8]))
    own = dict(weight_sites(subject.model))
    for name, site in sites.items():
        if own[name].weight_quantizer.plan.bits == 2:
            assert site.weight_quantizer.plan.bits == 8
            if name in latents:
                error = (site.quantized_weight() - latents[name]).abs().max()
                assert float(error) < 0.01 * float(latents[name].abs().max())
        else:
            torch.testing.assert_close(site.quantized_weight(), own[name].quantized_weight())
    (run / "last.pt").unlink()
    decoded = dict(weight_sites(at_widths(open_subject(ModelRequest(str(run))), (8,), None)[8]))
    name = "blocks.0.mlp.fc1.weight"
    error = decoded[name].quantized_weight() - own[name].quantized_weight()
    assert float(error.abs().max()) < 0.05 * float(own[name].quantized_weight().abs().max())


def test_models_without_classes_are_refused():
    loaded = load_model(ModelRequest("vit_tiny_patch16_224", pretrained=False, features=True, kwargs=TINY))
    with pytest.raises(ModelError, match="gives embeddings"):
        at_widths(of_model(loaded), (2,), None)
