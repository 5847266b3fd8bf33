"""Every command that the documentation shows is one that the program understands."""

import importlib.util
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest

from ofqctl.cli.app import parsed
from ofqctl.recipe.catalogue import names

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACEHOLDERS = {"N": "4", "S": "0", "BITS": "4", "SECONDS": "60"}


def commands_of(text):
    """The command lines in the blocks of code of a page, without what is piped or commented behind them."""
    joined = re.sub(r"\\\n\s*", " ", text)
    for line in joined.splitlines():
        found = re.match(r"(?: {4,}|\t)?(?:\$ )?(?:[A-Z_]+=\S+ )*(?:torchrun .*-m )?(ofqctl \S.*)", line)
        if found and "[OPTIONS]" not in line and not found[1].startswith("ofqctl:"):
            yield re.split(r"\s[|>#&;]|; ", found[1])[0]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_parses(page):
    for line in commands_of(page.read_text()):
        words = [PLACEHOLDERS.get(word, word) for word in shlex.split(line)[1:]]
        try:
            context = parsed(words)
        except Exception as error:
            raise AssertionError(f"{page.name}: {line}: {error}") from error
        recipe = context.params.get("recipe")
        if isinstance(recipe, str) and recipe.islower() and not re.search(r"[$]|\.yaml$", recipe):
            assert recipe in names(), line


def test_commands_are_found_in_the_pages():
    found = {page.name: len(list(commands_of(page.read_text()))) for page in PAGES}
    assert found["cli.md"] > 40
    assert found["README.md"] >= 7


def test_a_command_that_the_program_lacks_is_told():
    with pytest.raises(Exception, match="No such option"):
        parsed(["quantize", "deit_small", "--bits", "4"])


def test_the_plot_of_the_readme_shows_the_figures_of_the_documentation():
    spec = importlib.util.spec_from_file_location("generate_images", ROOT / "docs" / "generate_images.py")
    images = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(images)
    points = images.points()
    assert [point.name for point in points] == ["deploy/w8a8", "float", "quantize_dynamic", "quantize_static"]
    for mode in images.PAPER:
        drawn = ElementTree.fromstring(images.speed(mode))
        kept = ElementTree.parse(images.IMAGES / f"speed-{mode}.svg").getroot()
        for root in (drawn, kept):
            words = {"".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")}
            assert {f"{point.name}, {point.megabytes:g} MB" for point in points} <= words


def test_every_picture_and_page_that_the_readme_links_is_there():
    text = (ROOT / "README.md").read_text()
    links = re.findall(r"""(?:\]\(|src="|srcset=")([^)"#:]+)[)"#]""", text)
    assert len(links) > 5
    assert [link for link in links if not (ROOT / link).exists()] == []
