import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import timm.models._builder
import torch
from safetensors.torch import load_file, save_file

from ofqctl.errors import ModelError
from ofqctl.models import ModelRequest, build_architecture, load_model, loading, origins
from ofqctl.models.checkpoints import resampled

from .conftest import ARCHITECTURE, TINY

RESAMPLED = (  # to the tiny model's image and patch size
    "2 tensors were resampled for other image or patch sizes: "
    "pos_embed (1, 197, 48) -> (1, 17, 48), patch_embed.proj.weight (48, 3, 16, 16) -> (48, 3, 8, 8)"
)
WITHOUT_WEIGHTS = "vit_large_patch14_224"
REAL = Path(__file__).resolve().parents[3] / "shared/data/vit_tiny_patch16_224"


def request(name=ARCHITECTURE, kwargs=TINY, **options):
    return ModelRequest(name, kwargs=kwargs, **options)


def local(directory, **options):
    return ModelRequest(f"local-dir:{directory}", **options)


def same_weights(model, expected, without=()):
    state = model.state_dict()
    return all(torch.equal(state[key], value) for key, value in expected.items() if key not in without)


@pytest.fixture
def hub(monkeypatch, tiny):
    """A hub that answers with the tiny model's weights."""
    state_dict = tiny.state_dict()
    for module in (loading, origins):
        monkeypatch.setattr(module, "check_reachable", lambda hub_id: None)
    monkeypatch.setattr(timm.models._builder, "load_state_dict_from_hf", lambda *_, **__: dict(state_dict))
    return state_dict


def test_a_local_directory_gives_model_arguments_and_preprocessing(directory, tiny):
    loaded = load_model(local(directory))
    assert same_weights(loaded.model, tiny.state_dict())
    assert not loaded.model.training
    assert (loaded.architecture, loaded.num_classes, loaded.model_kwargs) == (ARCHITECTURE, 7, TINY)
    assert loaded.data_config == {
        "input_size": [3, 32, 32],
        "interpolation": "bilinear",
        "mean": [0.1, 0.2, 0.3],
        "std": [0.4, 0.5, 0.6],
        "crop_pct": 0.8,
        "crop_mode": "center",
    }
    assert loaded.source == f"local-dir:{directory}"
    assert loaded.notes == []


def test_a_relative_local_directory_works(directory, monkeypatch):
    monkeypatch.chdir(directory.parent)
    assert load_model(local(directory.name)).num_classes == 7


def test_what_a_loaded_model_says_builds_it_again(directory):
    loaded = load_model(local(directory, num_classes=5, img_size=48))
    described = json.loads(json.dumps([loaded.model_kwargs, loaded.pretrained_cfg]))
    assert str(directory) not in json.dumps(described)
    rebuilt = build_architecture(
        loaded.architecture, num_classes=5, model_kwargs=described[0], pretrained_cfg=described[1]
    )
    rebuilt.load_state_dict(loaded.model.state_dict())
    images = torch.rand(2, 3, 48, 48)
    assert torch.equal(rebuilt(images), loaded.model(images))
    config = timm.data.resolve_model_data_config(rebuilt)
    assert json.loads(json.dumps(config)) == loaded.data_config


def test_the_architecture_is_built_with_unknown_keys_in_its_description():
    cfg = {"mean": [0.5, 0.5, 0.5], "from_the_future": 1}
    model = build_architecture(ARCHITECTURE, num_classes=3, model_kwargs=TINY, pretrained_cfg=cfg)
    assert timm.data.resolve_model_data_config(model)["mean"] == [0.5, 0.5, 0.5]
    with pytest.raises(ModelError, match="no architecture"):
        build_architecture("vit_tiny", num_classes=3, model_kwargs={}, pretrained_cfg=None)


def test_another_image_size_resamples_positions_and_changes_the_data_config(directory):
    loaded = load_model(local(directory, img_size=64))
    assert loaded.model.pos_embed.shape == (1, 65, 48)
    assert loaded.data_config["input_size"] == [3, 64, 64]
    assert loaded.model_kwargs["img_size"] == 64
    assert loaded.notes == [
        "1 tensors were resampled for other image or patch sizes: pos_embed (1, 17, 48) -> (1, 65, 48)"
    ]


def test_another_number_of_classes_is_noted(directory, tiny):
    loaded = load_model(local(directory, num_classes=3))
    assert loaded.notes == ["the classifier of 7 classes was replaced by a random one with 3"]
    assert loaded.model.head.weight.shape == (3, 48)
    assert same_weights(loaded.model, tiny.state_dict(), without=("head.weight", "head.bias"))


HEAD = ("head.weight", "head.bias")


def test_features_are_what_comes_ahead_of_the_classifier(directory, weights, tiny):
    """However the weights are found, all of them but the classifier's are loaded; that is no news to tell."""
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        wanted = tiny.forward_head(tiny.forward_features(images), pre_logits=True)
    for given in (local(directory), request(checkpoint=weights)):
        loaded = load_model(replace(given, features=True))
        with torch.inference_mode():
            assert torch.equal(loaded.model(images), wanted)
        assert (loaded.num_classes, loaded.notes) == (0, [])
        again = build_architecture(
            loaded.architecture, num_classes=0, model_kwargs=loaded.model_kwargs, pretrained_cfg=loaded.pretrained_cfg
        )
        assert again.state_dict().keys() == tiny.state_dict().keys() - set(HEAD)


def test_features_and_classes_are_not_asked_for_at_once(weights):
    with pytest.raises(ModelError, match="--features leaves the classifier out, and --num-classes 3"):
        load_model(request(checkpoint=weights, num_classes=3, features=True))


@pytest.mark.parametrize("name", ["efficientvit_m0", "shvit_s1"])
def test_features_of_models_that_do_not_find_the_classifier_they_lack(name, tmp_path):
    torch.manual_seed(0)
    save_file(timm.create_model(name, num_classes=3).state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(ModelRequest(name, checkpoint=tmp_path / "w.safetensors", features=True))
    assert loaded.num_classes == 0


def test_a_size_of_two_sides_is_height_and_width():
    kwargs = {key: value for key, value in TINY.items() if key != "img_size"}
    loaded = load_model(ModelRequest(ARCHITECTURE, pretrained=False, features=True, img_size=(32, 48), kwargs=kwargs))
    assert loaded.data_config["input_size"] == [3, 32, 48]
    with pytest.raises(ModelError, match="img_size is -8"):
        load_model(ModelRequest(ARCHITECTURE, pretrained=False, img_size=(32, -8), kwargs=kwargs))


def test_a_random_local_directory_needs_no_weights(directory):
    (directory / "model.safetensors").unlink()
    assert load_model(local(directory, pretrained=False)).source == "random initialization"
    with pytest.raises(ModelError, match="no weights"):
        load_model(local(directory))


def test_a_checkpoint_replaces_the_pretrained_weights(weights, tiny):
    loaded = load_model(request(checkpoint=weights, num_classes=7))
    assert same_weights(loaded.model, tiny.state_dict())
    assert loaded.source == f"checkpoint {weights}"
    assert loaded.notes == []


def test_a_checkpoint_with_other_patches_is_resampled_and_noted(weights):
    loaded = load_model(request(checkpoint=weights, num_classes=7, kwargs=TINY | {"patch_size": 16}))
    assert "patch_embed.proj.weight (48, 3, 8, 8) -> (48, 3, 16, 16)" in loaded.notes[0]


def test_positions_of_renamed_tensors_are_known_by_their_number_of_values():
    given = {"visual.positional_embedding": torch.zeros(17, 48), "visual.conv1.weight": torch.zeros(48, 3, 8, 8)}
    kept = {"pos_embed": torch.zeros(1, 17, 48), "patch_embed.proj.weight": torch.zeros(48, 3, 8, 8)}
    assert resampled(given, kept) == []
    assert "1 tensors were resampled" in resampled(given, kept | {"pos_embed": torch.zeros(1, 65, 48)})[0]


@pytest.mark.parametrize("pretrained", [True, False], ids=["checkpoint", "random"])
def test_other_weights_than_timms_bear_no_tag_of_what_they_were_trained_on(weights, pretrained):
    options = {"checkpoint": weights, "num_classes": 7} if pretrained else {"pretrained": False}
    assert "tag" not in load_model(request(**options)).pretrained_cfg


def test_a_half_precision_checkpoint_gives_a_float32_model(tiny, tmp_path):
    torch.save({"state_dict": {k: v.half() for k, v in tiny.state_dict().items()}}, tmp_path / "half.pt")
    loaded = load_model(request(checkpoint=tmp_path / "half.pt", num_classes=7))
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}


def test_a_checkpoint_with_another_classifier_needs_the_number_of_classes(weights):
    with pytest.raises(ModelError, match=r"head\.weight \(7, 48\) instead of \(1000, 48\)") as caught:
        load_model(request(checkpoint=weights))
    assert "--num-classes 7" in caught.value.hint


def test_a_checkpoint_without_classifier_gets_a_random_one(tiny, tmp_path):
    body = {key: value for key, value in tiny.state_dict().items() if not key.startswith("head.")}
    save_file(body, tmp_path / "body.safetensors")
    loaded = load_model(request(checkpoint=tmp_path / "body.safetensors", num_classes=4))
    assert loaded.notes == ["a random classifier with 4 classes was added"]
    with pytest.raises(ModelError, match=r"2 missing: head\.bias, head\.weight"):
        load_model(request(checkpoint=tmp_path / "body.safetensors"))


@pytest.mark.parametrize("num_classes", [None, 7, 3])
def test_a_checkpoint_of_another_architecture_is_refused(weights, num_classes):
    with pytest.raises(ModelError, match=r"does not fit deit_tiny_distilled_patch16_224: .*dist_token"):
        load_model(request("deit_tiny_distilled", checkpoint=weights, num_classes=num_classes))


def test_a_missing_and_an_unexpected_tensor_are_named(tiny, tmp_path):
    state = {**tiny.state_dict(), "extra": torch.ones(1)}
    del state["norm.weight"]
    save_file(state, tmp_path / "odd.safetensors")
    with pytest.raises(ModelError, match=r"1 missing: norm\.weight; 1 not expected: extra"):
        load_model(request(checkpoint=tmp_path / "odd.safetensors", num_classes=3))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_are_named_and_counted(tiny, tmp_path, value):
    state = {key: tensor.clone() for key, tensor in tiny.state_dict().items()}
    state["blocks.0.attn.qkv.weight"][:2, 0] = value
    state["norm.bias"][0] = value
    torch.save(state, tmp_path / "bad.pt")
    with pytest.raises(ModelError, match=r"'blocks\.0\.attn\.qkv\.weight' has 2 values .*2 such tensors, 3 "):
        load_model(request(checkpoint=tmp_path / "bad.pt", num_classes=7))


def test_fetched_weights_are_loaded(hub, monkeypatch):
    monkeypatch.setitem(hub, "head.weight", torch.ones(1000, 48))
    monkeypatch.setitem(hub, "head.bias", torch.ones(1000))
    loaded = load_model(request("vit_tiny"))
    assert same_weights(loaded.model, hub)
    assert loaded.source == "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k"
    assert loaded.notes == ["'vit_tiny' completed to 'vit_tiny_patch16_224'", RESAMPLED]
    smaller = load_model(request(num_classes=10))
    assert smaller.notes == [RESAMPLED, "the classifier of 1000 classes was replaced by a random one with 10"]
    assert same_weights(smaller.model, hub, without=("head.weight", "head.bias"))


def test_fetched_weights_with_a_missing_tensor_are_refused_whatever_the_classes(hub, monkeypatch):
    monkeypatch.delitem(hub, "norm.weight")
    for num_classes in (None, 10):
        with pytest.raises(ModelError, match=r"norm\.weight"):
            load_model(request(num_classes=num_classes))


@pytest.mark.parametrize("name", ["vit_tiny", "hf-hub:org/name", "hf_hub:org/name@main"])
def test_a_hub_out_of_reach_is_an_error_with_a_way_out(name):
    with pytest.raises(ModelError, match="could not be downloaded") as caught:
        load_model(ModelRequest(name))
    for way_out in ("--no-pretrained", "--checkpoint FILE", "local-dir:PATH"):
        assert way_out in caught.value.hint


def test_an_error_of_the_http_client_is_one_of_the_network(monkeypatch):
    client = sys.modules.get("httpx2") or sys.modules.get("httpx")
    if client is None:
        pytest.skip("this release of huggingface_hub uses another HTTP client")

    def fail(hub_id):
        raise client.ConnectError("Name or service not known")

    monkeypatch.setattr(loading, "check_reachable", fail)
    with pytest.raises(ModelError, match="could not be downloaded: Name or service not known"):
        load_model(ModelRequest("vit_tiny"))


def test_a_malformed_hub_id_is_refused():
    with pytest.raises(ModelError, match="not on the Hugging Face hub"):
        load_model(ModelRequest("hf-hub:not a repository"))


def test_a_model_without_pretrained_weights_is_random_and_says_so():
    loaded = load_model(request(WITHOUT_WEIGHTS))
    assert loaded.notes == [f"no pretrained weights exist for {WITHOUT_WEIGHTS}: random initialization"]
    assert loaded.source == "random initialization"


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"num_classes": 0}, "num_classes is 0; allowed: 1 or more"),
        ({"img_size": -8}, "img_size is -8; allowed: 1 or more"),
        ({"img_size": 64}, "img_size is 64 and, among the model's arguments, 32"),
        ({"kwargs": {"colour": 1}}, "unexpected keyword argument 'colour'"),
        ({"kwargs": {"patch_size": "big"}}, "cannot build it with the arguments"),
        ({"kwargs": {"num_classes": 3}}, "'num_classes' is not an argument of the architecture"),
        ({"kwargs": {"norm_layer": torch.nn.LayerNorm}}, "cannot be written as JSON"),
    ],
)
def test_bad_arguments_are_refused(options, complaint):
    with pytest.raises(ModelError, match=complaint):
        load_model(request(**{"kwargs": TINY, "pretrained": False, **options}))


def test_an_image_size_too_small_for_the_patches_is_refused(weights):
    for checkpoint in (None, weights):
        with pytest.raises(ModelError, match="does not work with images of 4x4 pixels"):
            load_model(request(kwargs={**TINY, "img_size": 4}, pretrained=False, checkpoint=checkpoint))


def test_a_convolutional_model_takes_an_image_size_it_has_no_argument_for():
    loaded = load_model(ModelRequest("resnet10t", pretrained=False, img_size=64))
    assert loaded.data_config["input_size"] == [3, 64, 64]
    kwargs, cfg = loaded.model_kwargs, loaded.pretrained_cfg
    rebuilt = build_architecture("resnet10t", num_classes=2, model_kwargs=kwargs, pretrained_cfg=cfg)
    assert timm.data.resolve_model_data_config(rebuilt)["input_size"] == (3, 64, 64)


def test_an_image_size_that_an_architecture_cannot_change_is_refused():
    with pytest.raises(ModelError, match="does not work with images of 100x100 pixels"):
        load_model(ModelRequest("levit_128s", pretrained=False, img_size=100))


def test_the_data_config_follows_the_number_of_channels():
    loaded = load_model(request(kwargs={**TINY, "in_chans": 1}, pretrained=False))
    assert loaded.data_config["input_size"] == [1, 32, 32]
    assert loaded.data_config["mean"] == [0.5]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("{", "config.json cannot be read"),
        ("[]", "contains a list"),
        ("{}", "'architecture' is None"),
        ('{"architecture": "vit_tinny"}', "no architecture called 'vit_tinny'"),
        (None, "no config.json"),
    ],
)
def test_a_local_directory_with_a_bad_config_is_refused(directory, content, complaint):
    config = directory / "config.json"
    config.unlink() if content is None else config.write_text(content)
    with pytest.raises(ModelError, match=complaint):
        load_model(local(directory))


def test_a_missing_local_directory_and_an_unknown_source_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no such directory"):
        load_model(local(tmp_path / "none"))
    for name in ("ftp:somewhere", "local-dir:"):
        with pytest.raises(ModelError, match="unknown source; allowed: "):
            load_model(ModelRequest(name))


def test_several_weight_files_need_a_choice(directory, tiny):
    weights = directory / "model.safetensors"
    weights.rename(directory / "a.safetensors")
    assert load_model(local(directory)).num_classes == 7
    save_file(tiny.state_dict(), directory / "b.safetensors")
    with pytest.raises(ModelError, match=r"several weight files \(a\.safetensors, b\.safetensors\)"):
        load_model(local(directory))
    assert load_model(local(directory, checkpoint=directory / "b.safetensors")).num_classes == 7


def test_the_real_model_comes_with_its_preprocessing():
    if not REAL.is_dir():
        pytest.skip(f"needs the pretrained model in {REAL}")
    loaded = load_model(local(REAL))
    assert same_weights(loaded.model, load_file(REAL / "model.safetensors"))
    assert (loaded.data_config["mean"], loaded.data_config["std"]) == ([0.5] * 3, [0.5] * 3)
    assert loaded.data_config["crop_pct"] == 0.9
