"""Damaged documents of any kind are one sentence that names the file."""

import pytest
from pydantic import BaseModel

from ofqctl.documents import check_lengths, checked, fitting, parse_json, parse_yaml, read_text
from ofqctl.errors import ArtifactError, ModelError, RecipeError
from ofqctl.recipe import Plan

DEEP = "[" * 70 + "]" * 70


@pytest.mark.parametrize("text", ["", "{", "[1,]", "[" * 100000, DEEP, "9" * 5000, "\x00", '{"a": 1}}'])
def test_text_that_is_no_json_is_named(text):
    with pytest.raises(ArtifactError, match="somewhere cannot be read"):
        parse_json(text, "somewhere")


@pytest.mark.parametrize(
    "text", ["{", "a: b: c", "[" * 100000, DEEP, "a: 2020-99-99", "? {a: 1}\n: 2", "a: .nan", "a: -.inf", "a: !!int ''"]
)
def test_text_that_is_no_yaml_is_named(text):
    with pytest.raises(RecipeError, match="somewhere: not valid YAML"):
        parse_yaml(text, "somewhere", RecipeError)


def test_numbers_that_json_lacks_are_null():
    text = '[NaN, Infinity, -Infinity, 1e999, 1.5, "\\ud800"]'
    assert parse_json(text, "x") == [None, None, None, None, 1.5, "\ud800"]


def test_what_a_yaml_document_names_many_times_is_followed_once():
    lines = ["a0: &a0 [1, 1]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 40)]
    assert len(parse_yaml("\n".join(lines), "x")) == 40


def test_files_that_are_no_text_or_too_large_are_named(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(ModelError, match="not a text file"):
        read_text(path, ModelError)
    monkeypatch.setattr("ofqctl.documents.LARGEST_BYTES", 2**20)
    path.write_bytes(b" " * 2**20 + b"1")
    with pytest.raises(ArtifactError, match="larger than 1 MiB"):
        read_text(path)
    with pytest.raises(ArtifactError, match="cannot be read: Is a directory"):
        read_text(tmp_path)


class Inner(BaseModel):
    size: int


class Outer(BaseModel):
    inner: Inner
    name: str


def test_the_first_field_at_fault_is_named_with_what_was_seen():
    with pytest.raises(ArtifactError) as refused:
        checked(Outer, {"inner": {"size": "y" * 500}}, "file")
    assert str(refused.value).startswith("file: inner.size: Input should be a valid integer")
    assert "seen 'yyy" in str(refused.value)
    assert str(refused.value).endswith("(and 1 more)")
    assert len(str(refused.value)) < 250


@pytest.mark.parametrize("value", [10**12, -(10**6), float("inf"), [1, {"a": 2**17}]])
def test_lengths_that_no_model_has_are_refused(value):
    with pytest.raises(ValueError, match="too large"):
        check_lengths({"depth": value, "name": "x", "flag": True})
    assert check_lengths({"depth": 12, "img_size": [224, 224]}) == {"depth": 12, "img_size": [224, 224]}


def test_what_libraries_raise_on_values_that_do_not_fit_becomes_one_line():
    with pytest.raises(ArtifactError, match=r"^file: does not fit: a b$"), fitting("file: does not fit"):
        raise RuntimeError("a\n  b")
    with pytest.raises(KeyboardInterrupt), fitting("file"):
        raise KeyboardInterrupt


def test_a_method_whose_name_is_no_unicode_is_refused():
    plan = {"modules": {"head": {"kind": "linear", "weight": {"method": "\ud800", "bits": 4, "step_shape": []}}}}
    with pytest.raises(ArtifactError, match=r"^file: "):
        checked(Plan, plan, "file")
