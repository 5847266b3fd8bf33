"""The card of a run: what the hub reads of it, and what people do."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from ofqctl.artifact import load_run
from ofqctl.hub.card import card
from ofqctl.hub.contents import contents_of

TIMM = {"hf_hub_id": "timm/", "license": "apache-2.0", "num_classes": 10}


@pytest.fixture
def contents(run):
    return contents_of(load_run(run))


def made(contents, *, source=None, results=None, **changes):
    """The card of a run of which this is different, as its own parser reads it."""
    run = contents.run
    config = run.config.model_copy(update=changes | ({} if source is None else {"source": source}))
    told = run.results if results is None else run.results | results
    return ModelCard(card(replace(contents, run=replace(run, config=config, results=told)), "acme/vit"))


def measured(data, top1=90.0):
    figures = {"top1": top1, "top5": 99.5, "images": 50}
    return {"evaluation": {"data": data, "float": figures | {"top1": 91.0}, "quantized": figures}}


def test_the_front_matter_is_what_the_hub_wants(contents):
    read = made(contents, source="timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k", pretrained_cfg=TIMM).data.to_dict()
    assert read == {
        "library_name": "ofqctl",
        "pipeline_tag": "image-classification",
        "tags": ["ofqctl", "timm", "safetensors", "vision-transformer", "quantized", "w4a4"],
        "base_model": "timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k",
        "base_model_relation": "quantized",
        "license": "apache-2.0",
    }


def test_accuracy_is_told_with_the_data_it_was_measured_on(contents):
    read = made(contents, results=measured("hfds/uoft-cs/cifar10:test"))
    assert read.data.datasets == ["uoft-cs/cifar10"]
    first, second = read.data.eval_results
    assert (first.task_type, first.dataset_type) == ("image-classification", "uoft-cs/cifar10")
    assert (first.dataset_name, first.dataset_split) == ("hfds/uoft-cs/cifar10", "test")
    assert (first.metric_type, first.metric_name, first.metric_value) == ("accuracy", "top-1 accuracy", 0.9)
    assert first.dataset_args == {"images": 50}
    assert second.metric_value == 0.995
    assert "| top-1 accuracy | 91.00 % | 90.00 % |" in read.content
    assert "--data hfds/uoft-cs/cifar10 --split test" in read.content


def test_a_trained_run_tells_its_validation_and_the_command_that_trains_it(contents):
    training = {"calibration": None, "training": {"data": "/data/flowers/train", "epochs": []}}
    told = training | {"evaluation": {"data": "/data/flowers/val", "val_top1": 81.5}, "seed": 7}
    read = made(contents, results=told)
    assert read.data.eval_results[0].metric_value == 0.815
    assert read.data.eval_results[0].dataset_name == "flowers/val"
    words = read.content.partition("ofqctl train")[2].replace("\\\n", "").split()
    for option, value in (("--data", "flowers/train"), ("--val-data", "flowers/val"), ("--seed", "7")):
        assert words[words.index(option) + 1] == value


def test_nothing_is_invented(contents):
    read = made(contents)  # weights of no origin, and nothing measured
    for key in ("license", "base_model", "base_model_relation", "datasets", "model-index", "metrics"):
        assert key not in read.data.to_dict()
    assert "Nothing was measured" in read.content
    assert "--no-pretrained" in read.content
    assert "base_model" not in made(contents, source="timm/made_up", pretrained_cfg={}).data.to_dict()
    assert made(contents, source="hf-hub:acme/vit@v2", pretrained_cfg={}).data.base_model == "acme/vit"
    trained = made(contents, source=f"run hf-hub:acme/float@{'0' * 40}", pretrained_cfg=TIMM)
    assert trained.data.base_model == "acme/float"
    assert "license" not in trained.data.to_dict()


@pytest.mark.parametrize(
    ("licence", "front"),
    [
        ("cc-by-nc-4.0", {"license": "cc-by-nc-4.0"}),
        ("dinov3-license", {"license": "other", "license_name": "dinov3-license"}),
        ("unknown", {}),
        (None, {}),
    ],
)
def test_a_licence_is_that_of_the_float_weights_by_a_name_that_the_hub_knows(contents, licence, front):
    read = made(contents, source="timm/vit.tag", pretrained_cfg=TIMM | {"license": licence}).data.to_dict()
    assert {key: value for key, value in read.items() if key.startswith("license")} == front


def test_paths_of_the_machine_are_shortened(contents):
    for source, told in (
        ("local-dir:/home/someone/models/vit", "local-dir:models/vit"),
        ("checkpoint /home/someone/models/vit.pth", "--checkpoint models/vit.pth"),
    ):
        text = made(contents, source=source, results=measured("/home/someone/photos/val")).content
        assert told in text
        assert "someone" not in text


def test_names_of_others_are_no_markup(contents):
    note = "<script>alert(1)</script> [x](http://y) | *z*\n# heading"
    text = made(contents, results={"notes": [note]} | measured("a`b|c/d")).content
    assert "<script>" not in text
    assert "\n# heading" not in text
    assert "[x](" not in text.replace("\\[", "")
    assert "`a'b/c/d`" in text


def test_the_same_run_gives_the_same_card(contents, run):
    again = contents_of(load_run(run))
    assert card(contents, "acme/vit") == card(again, "acme/vit")


def test_a_model_without_a_classifier_is_filed_under_features(contents):
    figures = {"knn": 81.0, "recall1": 75.5, "images": 50, "likeness": {"cosine": 0.99871}}
    before = {"knn": 82.0, "recall1": 76.0, "images": 50, "likeness": None}
    told = {"data": "flowers/val", "float": before, "quantized": figures, "paired": {"knn": {"difference": -1.0}}}
    read = made(contents, num_classes=0, label_names=None, results={"evaluation": told})
    assert read.data.pipeline_tag == "image-feature-extraction"
    assert read.data.metrics == ["accuracy", "recall"]
    assert [(one.metric_type, one.metric_value) for one in read.data.eval_results] == [
        ("accuracy", 0.81),
        ("recall", 0.755),
    ]
    for row in ("| recall@1 | 76.00 % | 75.50 % |", "| cosine of embeddings to the float model's | | 0.9987 |"):
        assert row in read.content
