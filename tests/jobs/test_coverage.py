import timm

from ofqctl.jobs.coverage import CoverageRequest, coverage
from ofqctl.layers.attention.forms import FORMS


def test_no_model_is_built(monkeypatch):
    def refuse(*_args, **_kwargs):
        raise AssertionError("a model was built")

    monkeypatch.setattr(timm, "create_model", refuse)
    assert len(coverage(CoverageRequest()).models) > 1000


def test_families_are_told_apart_by_their_attention():
    families = {family.family: family for family in coverage(CoverageRequest()).families}
    verdicts = {name: (families[name].attention, families[name].qkr) for name in families}
    assert verdicts["vision_transformer"] == ("products", True)
    assert verdicts["deit"] == ("products", True)
    assert verdicts["swin_transformer"] == ("products", True)
    assert verdicts["swin_transformer_v2"] == ("products", False)
    assert verdicts["eva"] == ("products", False)
    assert verdicts["convnext"] == ("none", False)
    assert verdicts["resnet"] == ("none", False)
    assert sum(verdict == "products" for verdict, _ in verdicts.values()) >= 20


def test_a_class_is_either_quantized_or_left_in_float():
    for family in coverage(CoverageRequest()).families:
        registered = {path.rpartition(".")[2] for path in FORMS}
        assert set(family.quantized_classes) <= registered
        assert (family.attention == "none") == (not family.quantized_classes + family.float_classes)


def test_a_tagged_name_keeps_its_family():
    result = coverage(CoverageRequest("vit_tiny_patch16*.augreg*"))
    assert result.models
    assert {model.family for model in result.models} == {"vision_transformer"}
