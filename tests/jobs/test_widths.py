"""One set of weights at several widths: of a float model, of latent weights, and of what codes stand for."""

import json

import pytest
import timm
import torch

import ofqctl
from ofqctl.data import DataSpec
from ofqctl.errors import ModelError
from ofqctl.evaluation import of_model, open_subject
from ofqctl.jobs.evaluate import EvaluateRequest, evaluate
from ofqctl.jobs.export import ExportRequest, export_onnx
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.jobs.widths import at_widths
from ofqctl.layers import weight_sites
from ofqctl.models import ModelRequest, load_model
from ofqctl.recipe.catalogue import load

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 1, "num_heads": 3}
SHORT = ("training.phases.0.epochs=1", "training.steps_per_epoch=3", "training.batch_size=16")
QUANTIZED = (*SHORT, "calibration.images=16", "calibration.batch_size=16", "training.distillation=null")


def trained(recipe, output, *assignments):
    model = ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY)
    train(
        TrainRequest(
            model=model, recipe=load(recipe, assignments), data=DataSpec("digits"), output=output, device="cpu"
        )
    )
    return output


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


def test_a_run_with_several_latents_a_weight_is_rounded_from_its_values(tmp_path):
    run = trained("denseshift/vit_w3a8", tmp_path / "run", *QUANTIZED, "training.phases.0.warmup_epochs=0")
    subject = open_subject(ModelRequest(str(run)))
    (name, own), *_ = [item for item in weight_sites(subject.model) if item[1].weight_quantizer.plan.bits == 3]
    rounded = dict(weight_sites(at_widths(subject, (8,), None)[8]))[name].quantized_weight()
    value = own.quantized_weight()
    assert float((rounded - value).abs().max()) < 0.01 * float(value.abs().max())


def test_its_own_width_is_measured_once(tmp_path):
    run = trained("demo/digits_ofq_w2a2", tmp_path / "run", *QUANTIZED, "training.phases.1.epochs=1")
    result = evaluate(EvaluateRequest(ModelRequest(str(run)), DataSpec("digits"), limit=20, device="cpu", widths=(2,)))
    assert result.widths[0].model_dump(exclude={"wbits"}) == {
        key: getattr(result, key) for key in ("top1", "top5", "loss", "images", "images_per_second")
    }


def test_what_cannot_be_rounded_is_refused_with_the_reason(tmp_path):
    run = trained("demo/digits_ofq_w2a2", tmp_path / "run", *QUANTIZED, "training.phases.1.epochs=1")
    export_onnx(ExportRequest(ModelRequest(str(run)), output=tmp_path / "x.onnx", images=2))
    with pytest.raises(ModelError, match="an ONNX file"):
        at_widths(open_subject(ModelRequest(str(tmp_path / "x.onnx"))), (2,), None)
    with pytest.raises(ModelError, match="is quantized already; name its run"):
        ofqctl.evaluate(ofqctl.load(run), "digits", limit=4, input_size=(3, 32, 32), wbits=(2,))
    features = ModelRequest("vit_tiny_patch16_224", pretrained=False, features=True, kwargs=TINY)
    with pytest.raises(ModelError, match="it gives embeddings"):
        evaluate(EvaluateRequest(features, DataSpec("digits"), limit=4, device="cpu", widths=(2,)))
