"""The pages hold what was found, in one file that loads nothing."""

import re
from html.parser import HTMLParser

import pytest

from ofqctl.diagnosis.comparison import compared
from ofqctl.jobs.analyze import AnalyzeRequest, analyze
from ofqctl.reports import comparison_page, oscillation_page
from ofqctl.reports.comparison import _short_names
from ofqctl.reports.plots import Dot, Line, curves, dots, histogram
from ofqctl.results.analyze_oscillation import Analysis
from ofqctl.results.compare import ComparedRun, Comparison

EMPTY = {"meta", "link", "br", "hr", "img", "input"}


class Page(HTMLParser):
    """Headings, whole text, and a check that every element is closed in turn."""

    def __init__(self, text):
        super().__init__()
        self.open, self.headings, self.text, self.references = [], [], "", []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in EMPTY:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.references += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open[-1:]:
            return
        self.text += data
        if self.open[-1:] in (["h2"], ["h1"]):
            self.headings.append(data)


@pytest.fixture(scope="module")
def page(analysis) -> str:
    return oscillation_page(analysis)


def test_the_page_has_every_part_and_is_well_formed(page):
    assert Page(page).headings == [
        "Oscillation of weights",
        "Findings",
        "Where",
        "Over training",
        "Single weights",
        "Latent weights and thresholds",
        "Layers",
        "Between checkpoints",
        "Live steps",
        "Words",
    ]


def test_the_page_loads_nothing(page):
    assert all(ref.startswith(("#", "data:")) for ref in Page(page).references)
    assert not re.search(r"@import|<script|url\((?!#)", page)
    addresses = set(re.findall(r"https?://[^\s\"'<]+", page))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_names_are_escaped(page, run):
    assert str(run) in Page(page).text
    assert run.name not in page.replace("&quot;", "'")


def test_plots_take_their_colours_from_the_page_and_keep_their_text(page):
    svgs = re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL)
    assert len(svgs) > 10
    for svg in svgs:
        assert not re.search(r"#[0-9a-f]{6}", svg), "a colour that does not follow the page"
        assert "<text" in svg and "font-family" not in svg and "DejaVu" not in svg
    used = set(re.findall(r"var\((--[a-z0-9]+)\)", page))
    light, dark = page.split("prefers-color-scheme: dark")[0], page.split("prefers-color-scheme: dark")[1]
    assert all(f"{name}:" in light for name in used - {"--h"})
    assert all(f"{name}:" in dark for name in used - {"--h", "--card", "--paper"})


def test_the_same_analysis_gives_the_same_bytes(page, analysis):
    assert oscillation_page(analysis) == page


def test_findings_stand_on_the_page_word_by_word(page, analysis):
    text = Page(page).text
    assert all(finding.text in text and finding.advice.replace("`", "") in text for finding in analysis.findings)


def test_thresholds_are_drawn_into_histograms():
    svg = histogram([-2.0, -1.0, 0.0, 1.0], [0.2, 0.5, 0.3], [-0.5, 0.5], x_label="position")
    plain = histogram([-2.0, -1.0, 0.0, 1.0], [0.2, 0.5, 0.3], [], x_label="position")
    assert svg.count("stroke-dasharray") - plain.count("stroke-dasharray") == 2


def test_gaps_in_a_curve_stay_gaps():
    svg = curves([1.0, 2.0, 3.0], [Line("c1", [1.0, float("nan"), 2.0])], x_label="x", y_label="y")
    assert "nan" not in svg.lower()


def test_packed_codes_and_old_trackers_make_a_page_too(run, tmp_path):
    packed = analyze(AnalyzeRequest([run / "model.safetensors"]))
    headings = Page(oscillation_page(packed)).headings
    assert "Where" not in headings and "Layers" in headings
    assert "Over training" in headings  # by the epochs in results.json
    report = packed.checkpoints[0].model_copy(update={"epochs": ()})
    assert "Over training" not in Page(oscillation_page(Analysis(checkpoints=(report,)))).headings


def test_runs_are_compared_on_a_page(run):
    comparison = compared([run, run / "model.safetensors"])
    text = comparison_page(comparison)
    page = Page(text)
    assert page.headings == ["Runs compared", "All figures", "Side by side"]
    assert "W2A2" in page.text and f"{comparison.runs[0].top1:.2f} %" in page.text
    assert len(re.findall("<svg", text)) == 5


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["a/b/lsq", "a/b/ofq"], ["lsq", "ofq"]),
        (["/data/one/run", "two/run/"], ["one/run", "two/run"]),
        (["/run", "run"], ["//run", "run"]),
        (["x", "x"], ["x", "x"]),
    ],
)
def test_runs_have_names_in_place_of_paths(paths, names):
    runs = tuple(ComparedRun.model_construct(run=path) for path in paths)
    assert _short_names(Comparison.model_construct(runs=runs)) == names


def test_points_have_the_names_of_their_runs_and_no_two_names_overlap():
    points = [Dot(1.0, 80.0 + at / 1000, "c1", "o", f"run {at}") for at in range(4)]
    svg = dots(points, x_label="MB", y_label="%")
    heights = [float(y) for y in re.findall(r"<text[^>]*translate\([\d.]+ ([\d.]+)\)[^>]*>run \d<", svg)]
    heights = heights or [float(y) for y in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>run \d<', svg)]
    assert len(heights) == 4
    assert min(abs(a - b) for a in heights for b in heights if a != b) > 10


@pytest.mark.slow
@pytest.mark.parametrize("look", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_the_page_without_complaint(analysis, run, browse, tmp_path, width, look):
    from PIL import Image

    for name, text in (("oscillation", oscillation_page(analysis)), ("compare", comparison_page(compared([run])))):
        path, picture = tmp_path / f"{name}.html", tmp_path / f"{name}.png"
        path.write_text(text, encoding="utf-8")
        options = [f"--screenshot={picture}", f"--window-size={width},2400"]
        ended = browse(path, *options, *(["--blink-settings=preferredColorScheme=0"] if look == "dark" else []))
        assert "CONSOLE" not in ended.stderr, ended.stderr
        image = Image.open(picture).convert("L")
        assert image.width == width
        corner = image.getpixel((2, 2))
        assert (corner < 60) == (look == "dark")
        ink = sum(1 for value in image.resize((200, 300)).getdata() if abs(value - corner) > 40)
        assert ink > 300


@pytest.mark.slow
def test_nothing_is_wider_than_a_small_screen(analysis, browse, tmp_path):
    script = "<script>document.title = document.documentElement.scrollWidth</script>"
    path = tmp_path / "page.html"
    path.write_text(oscillation_page(analysis).replace("</body>", f"{script}</body>"), encoding="utf-8")
    dom = browse(path, "--dump-dom", "--window-size=500,900").stdout
    assert int(re.search(r"<title>(\d+)</title>", dom)[1]) <= 500
