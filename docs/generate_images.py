"""Draw the pictures of the README under docs/images/, each for light and dark pages.

``python docs/generate_images.py`` draws speed against accuracy, from the table in docs/export.md;
``--report runs/demo/digits-w2a2`` also the report page of the run that `make demo` trains, as Chromium shows it.
"""

import argparse
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

DOCS = Path(__file__).resolve().parent
IMAGES = DOCS / "images"
PAPER = {"light": ("#ffffff", "#1b1f24", "#5a6470", "#dcdfe3"), "dark": ("#0d1117", "#e8eaed", "#a3acb8", "#343b45")}
COLOURS = {"light": ("#0b62a4", "#6b7580", "#c8500a", "#8a54a8"), "dark": ("#6db3f2", "#98a3b0", "#ff9a52", "#cba3e2")}
BESIDE = {"quantize_static": (-12, 0, "right")}  # the others' names stand to the right of their points
FIGURES = ("batch 1", "top-1 of 800", "size")  # rows of the table
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@dataclass(frozen=True)
class Point:
    """One file.

    Attributes:
        name: What made it.
        milliseconds: CPU time of a pass with one image.
        top1: Accuracy in percent.
        megabytes: Its size.
    """

    name: str
    milliseconds: float
    top1: float
    megabytes: float


def points() -> list[Point]:
    """The files of the first table under `Speed` in docs/export.md."""
    text = (DOCS / "export.md").read_text(encoding="utf-8").split("### Speed\n", 1)[1]
    lines = [line.strip("|").split("|") for line in text.split("\n\n|", 1)[1].split("\n\n", 1)[0].splitlines()]
    table = {first.strip(): [cell.strip() for cell in cells] for first, *cells in lines}
    figures = [[float(re.match(r"[\d.]+", cell)[0]) for cell in table[row]] for row in FIGURES]
    return [Point(_short(name), *values) for name, *values in zip(table[""], *figures, strict=True)]


def _short(name: str) -> str:
    """``ONNX Runtime's `quantize_dynamic` `` -> ``quantize_dynamic``."""
    code = re.findall(r"`([^`]+)`", name)
    return code[0] if code else name


def speed(mode: str) -> str:
    """Speed against accuracy, as SVG."""
    paper, ink, muted, line = PAPER[mode]
    style = {"svg.fonttype": "none", "svg.hashsalt": "ofqctl", "font.family": "sans-serif", "font.size": 12}
    with mpl.rc_context(style):
        figure = Figure(figsize=(7.2, 3.6), facecolor=paper)
        FigureCanvasSVG(figure)
        axes = figure.add_axes((0.09, 0.17, 0.87, 0.76), facecolor=paper)
        for point, colour in zip(points(), COLOURS[mode], strict=False):
            axes.scatter(point.milliseconds, point.top1, s=22 * point.megabytes, color=colour, alpha=0.85, linewidth=0)
            across, up, align = BESIDE.get(point.name, (14, -4, "left"))
            axes.annotate(
                f"{point.name}, {point.megabytes:g} MB",
                (point.milliseconds, point.top1),
                (across, up),
                textcoords="offset points",
                ha=align,
                color=ink,
            )
        axes.set_xlabel("CPU ms of one image, one thread", color=muted)
        axes.set_ylabel("top-1, %", color=muted)
        axes.set_xlim(34, 48)
        axes.set_ylim(75, 86)
        axes.grid(color=line, linewidth=0.7)
        axes.set_axisbelow(True)
        axes.tick_params(color=line, labelcolor=muted, length=3)
        for side, spine in axes.spines.items():
            spine.set_visible(side == "bottom")
            spine.set_color(line)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "plot.svg"
            figure.savefig(path, metadata={"Date": None, "Creator": None}, facecolor=paper)
            return path.read_text(encoding="utf-8")


def report(run: Path, mode: str, target: Path) -> None:
    """The upper part of the report page of a run, as PNG.

    Raises:
        SystemExit: There is no Chromium.
    """
    from PIL import Image

    from ofqctl.jobs.analyze import AnalyzeRequest, analyze
    from ofqctl.reports import oscillation_page

    browser = next((path for path in map(shutil.which, BROWSERS) if path), None)
    if browser is None:
        raise SystemExit("the report page is drawn by Chromium, which is not installed")
    page = oscillation_page(analyze(AnalyzeRequest((run,))))
    shown = page.replace("(prefers-color-scheme: dark)", "all" if mode == "dark" else "not all")
    with tempfile.TemporaryDirectory() as folder:
        html, shot = Path(folder) / "page.html", Path(folder) / "shot.png"
        html.write_text(shown, encoding="utf-8")
        flags = ["--headless=new", "--no-sandbox", "--hide-scrollbars", f"--user-data-dir={folder}/profile"]
        size = ["--window-size=1100,1500", f"--screenshot={shot}", html.as_uri()]
        subprocess.run([browser, *flags, *size], check=True, capture_output=True, timeout=120)
        Image.open(shot).convert("RGB").crop((0, 0, 1100, 1150)).quantize(128).save(target, optimize=True)


def main() -> None:
    """Draw the pictures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--report", type=Path, metavar="RUN", help="training run with a tracker")
    run = parser.parse_args().report
    IMAGES.mkdir(exist_ok=True)
    for mode in PAPER:
        (IMAGES / f"speed-{mode}.svg").write_text(speed(mode), encoding="utf-8")
        if run is not None:
            report(run, mode, IMAGES / f"report-{mode}.png")


if __name__ == "__main__":
    main()
