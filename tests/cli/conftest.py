"""A vision transformer that is quantized in a second, and the program run in this process."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import jsonschema
import pytest
import torch

from ofqctl.cli.app import main
from ofqctl.results.documents import FAILURE, schema_file

SCHEMAS = Path(__file__).resolve().parents[2] / "docs" / "schemas"
TINY = ("--no-pretrained", "--num-classes", "10", "--model-kwargs")
TINY += ("img_size=32", "patch_size=8", "embed_dim=48", "depth=2", "num_heads=3")
QUICK = ("--set", "calibration.images=8", "calibration.batch_size=4")


@cache
def _validator(command: str) -> jsonschema.Draft202012Validator:
    schema = json.loads((SCHEMAS / schema_file(command)).read_text(encoding="utf-8"))
    return jsonschema.Draft202012Validator(schema)


def check_documented(document: Any) -> None:
    """Check a document that ``--json`` printed against the schema of its command."""
    _validator(document.get("command", FAILURE)).validate(document)


@dataclass
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on stdout, which keeps to the schema in the docs."""
        document = json.loads(self.out)
        check_documented(document)
        return document


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    """Threads that wait for each other on a busy machine cost these small models far more than they win."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _alone(monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("OFQCTL_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def ofqctl(capsys) -> Callable[..., Ended]:
    """Runs the program with these arguments."""

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        return Ended(code, *capsys.readouterr())

    return run


def quantize_tiny(*more: object) -> Sequence[object]:
    """Arguments that quantize the small model to 4 bits by rounding."""
    rounding = ("--recipe", "ptq/minmax", "--wbits", 4, "--abits", 4)
    return ("quantize", "vit_tiny_patch16_224", *TINY, *rounding, *QUICK, *more)


@pytest.fixture(scope="session")
def _made(_one_thread, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("made") / "run"
    assert main([str(a) for a in quantize_tiny("--calib-data", "digits", "--output", run)]) == 0
    return run


@pytest.fixture
def run(_made, tmp_path) -> Path:
    """A run directory of one's own."""
    return Path(shutil.copytree(_made, tmp_path / "run"))
