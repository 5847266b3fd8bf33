import pytest

from ofqctl.cli.arguments import parse_img_size, parse_model_kwargs, spread
from ofqctl.errors import ModelError


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("q m --set a.b=1 c=2 --json", "q m --set a.b=1 --set c=2 --json"),
        ("q --model-kwargs a=1 b=2 m", "q --model-kwargs a=1 --model-kwargs b=2 m"),
        ("q --set a=1 --set b=2 c=3", "q --set a=1 --set b=2 --set c=3"),
        ("q --set a=1 b=2 --model-kwargs c=3 d=4", "q --set a=1 --set b=2 --model-kwargs c=3 --model-kwargs d=4"),
        ("q --set=a=1 b=2", "q --set=a=1 --set b=2"),
        ("q --recipe r a=1", "q --recipe r a=1"),
        ("q --set a=1 -- b=2", "q --set a=1 -- b=2"),
        ("q --set", "q --set"),
        ("", ""),
    ],
)
def test_several_values_after_one_flag_get_a_flag_each(typed, expected):
    assert spread(typed.split()) == expected.split()


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["a=1", "b=x"], {"a": 1, "b": "x"}),
        (["a=1 b=2.5"], {"a": 1, "b": 2.5}),
        (["a=1, b=(2, 3),c=[4,5]"], {"a": 1, "b": (2, 3), "c": [4, 5]}),
        (["a=true", "b=False", "c=none"], {"a": True, "b": False, "c": None}),
        (["a='x y'"], {"a": "x y"}),
    ],
)
def test_model_kwargs_are_python_literals_or_text(texts, expected):
    assert parse_model_kwargs(texts) == expected


@pytest.mark.parametrize("text", ["a", "=1", "a b=1", "a=", "2a=1"])
def test_a_model_kwarg_that_is_no_pair_is_refused(text):
    with pytest.raises(ModelError, match="expected NAME=VALUE"):
        parse_model_kwargs([text])


def test_a_size_of_images_is_one_number_or_height_and_width():
    assert (parse_img_size("224"), parse_img_size("224x128")) == (224, (224, 128))
    for text in ("large", "224x", "224,128", "1x2x3"):
        with pytest.raises(ModelError, match=f"--img-size {text}"):
            parse_img_size(text)
