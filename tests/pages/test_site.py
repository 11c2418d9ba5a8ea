"""The documentation's site, built strictly and read in a real browser: by keyboard, narrow, dark, nothing fetched."""

from __future__ import annotations

import http.server
import importlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]
pytestmark = pytest.mark.slow  # the build takes ten seconds on a busy machine

FETCHED = re.compile(
    r"""<(?:script|img|iframe|source|video|audio)\b[^>]*\bsrc=["']?(https?:)?//"""
    r"""|<link\b(?![^>]*rel=["']?(?:canonical|prev|next))[^>]*\bhref=["']?(https?:)?//"""
    r"""|url\(["']?(https?:)?//|@import\s+["'](https?:)?//""",
    re.IGNORECASE,
)


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Files over HTTP, without a line for each."""

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "WARNING -" not in done.stderr, done.stderr
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(site))) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


def wide(page: Any) -> int:
    """By how many pixels the page is wider than the window."""
    return page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")


def test_no_page_fetches_anything_from_elsewhere(site: Path) -> None:
    pages = [*site.rglob("*.html"), *site.rglob("*.css")]
    assert len(pages) > 30
    assert not [
        (str(page.relative_to(site)), found[0]) for page in pages if (found := FETCHED.search(page.read_text()))
    ]


@pytest.mark.parametrize(
    "fetched", ['<script src="https://x/y.js">', "<link rel=stylesheet href=//x/y.css>", "url(http://x)"]
)
def test_the_search_for_outside_requests_finds_one(fetched: str) -> None:
    assert FETCHED.search(fetched)


@pytest.mark.parametrize("module", ["fedrag", "fedrag.federated"])
def test_every_public_name_is_in_the_reference(site: Path, module: str) -> None:
    text = "".join(page.read_text() for page in (site / "reference").rglob("*.html"))
    told = set(re.findall(r'id="([\w.]+)"', text))
    names = [f"{module}.{name}" for name in importlib.import_module(module).__all__]
    assert [name for name in names if name not in told] == [], "add them to a page in docs/reference"


def test_every_subcommand_is_in_the_reference(site: Path) -> None:
    from typer.main import get_command

    from fedrag.cli.app import app

    page = (site / "reference/command-line/index.html").read_text()
    for name in get_command(app).commands:  # type: ignore[attr-defined]
        assert f">fedrag {name}" in page


def test_links_to_source_files_and_flowcharts_are_not_left_dangling(site: Path) -> None:
    methods = (site / "methods/index.html").read_text()
    assert "src/fedrag/objectives" not in re.sub(r"<code>.*?</code>", "", methods)
    assert "flowchart TD" not in methods
    assert methods.count("<dt id=") == methods.count('<dt id="decide-') == 4
    assert re.search(r"Are passages labelled for your questions\?</dt>\s*<dd>yes: <b>Contrastive</b>", methods)
    assert "<!-- skip" not in (site / "index.html").read_text()


def test_the_chart_is_of_the_figures_in_the_repository() -> None:
    done = subprocess.run([sys.executable, "scripts/front_chart.py", "--check"], cwd=REPOSITORY)
    assert done.returncode == 0


def test_the_front_page_shows_its_chart_and_asks_for_nothing_else(address: str, open_page: Any) -> None:
    seen = open_page(address)
    page = seen.page
    page.wait_for_load_state("networkidle")
    chart = page.locator("svg.before-after")
    box = chart.bounding_box()
    assert box["width"] > 300
    assert box["height"] > 250
    circles = chart.locator("circle")
    assert circles.count() == 10
    assert len({round(circles.nth(n).bounding_box()["x"]) for n in range(10)}) > 6  # at different places
    assert page.get_by_role("img", name="Before and after tuning").count() == 1
    assert "make quickstart" in page.locator("article pre").first.inner_text()
    assert page.locator("article pre").first.bounding_box()["y"] < 900  # in the first screen
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith(address)] == []


@pytest.mark.parametrize("path", ["", "tutorials/retriever/", "reference/training/", "methods/"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_a_narrow_screen_in_both_palettes(address: str, open_page: Any, path: str, scheme: str) -> None:
    seen = open_page(address + path, width=320, height=640, color_scheme=scheme)
    seen.page.wait_for_load_state("networkidle")
    assert wide(seen.page) <= 0
    shade = seen.page.evaluate("getComputedStyle(document.body).backgroundColor")
    brightness = sum(map(int, re.findall(r"\d+", shade)[:3]))
    assert (brightness < 200) == (scheme == "dark"), shade
    assert seen.said == []
    assert [url for url in seen.asked if not url.startswith(address)] == []


def test_the_keyboard_reaches_content_search_and_palette(address: str, open_page: Any) -> None:
    page = open_page(address + "tutorials/retriever/").page
    page.wait_for_load_state("networkidle")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent.trim()") == "Skip to content"
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("#"))
    page = open_page(address).page
    page.wait_for_load_state("networkidle")
    page.keyboard.press("/")  # the theme's key for the search
    page.keyboard.type("contrastive")
    result = page.locator(".md-search-result__link").first
    result.wait_for(timeout=15_000)
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile("h=contrastive"), timeout=15_000)
