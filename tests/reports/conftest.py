"""An analysis of every kind of part, and the browser where there is one."""

import shutil
import subprocess
from pathlib import Path

import pytest

from ofqctl.data import DataSpec
from ofqctl.jobs.analyze import AnalyzeRequest, analyze
from ofqctl.jobs.train import TrainRequest, train
from ofqctl.models import ModelRequest
from ofqctl.recipe.catalogue import load
from ofqctl.results.analyze_oscillation import Analysis

TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
QUICK = ["training.distillation=null", "training.batch_size=16", "training.steps_per_epoch=22", "calibration.images=16"]
BROWSERS = ("chromium", "google-chrome")


@pytest.fixture(scope="session")
def run(tmp_path_factory) -> Path:
    """Three epochs on the digits, CGA in the last; beside it the state after each."""
    output = tmp_path_factory.mktemp("runs") / 'ofq <&> "1"'
    phases = "training.phases=[{name: train, epochs: 2, lr: 1.0e-3}, {name: cga, epochs: 1, lr: 1.0e-5, cga: {}}]"

    def keep(row, _total):
        if row["step"] in (23, 45):
            shutil.copy(output / "last.pt", output.with_name(f"{row['step'] - 1}.pt"))

    train(
        TrainRequest(
            model=ModelRequest("vit_tiny_patch16_224", pretrained=False, num_classes=10, kwargs=TINY),
            recipe=load("demo/digits_ofq_w2a2", [phases, *QUICK]),
            data=DataSpec("digits"),
            val_data=DataSpec("digits"),
            output=output,
            device="cpu",
        ),
        on_step=keep,
    )
    return output


@pytest.fixture(scope="session")
def analysis(run) -> Analysis:
    """Two states, the run, and live steps."""
    sources = [run.with_name("22.pt"), run.with_name("44.pt"), run]
    return analyze(AnalyzeRequest(sources, data=DataSpec("digits"), steps=3, device="cpu"))


@pytest.fixture
def browse(tmp_path):
    """Opens a page in a browser without a window: its messages, and the DOM or a picture of it."""
    program = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip(f"no browser here; looked for {', '.join(BROWSERS)}")

    def open_page(page: Path, *options: str) -> subprocess.CompletedProcess[str]:
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        switches += ["--disable-component-update", "--disable-sync", f"--user-data-dir={tmp_path / 'profile'}"]
        switches += ["--enable-logging=stderr", "--v=0", "--hide-scrollbars", *options, page.as_uri()]
        return subprocess.run([program, *switches], capture_output=True, text=True, timeout=120, check=False)

    return open_page
