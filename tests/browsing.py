"""A real browser for tests of pages: Chromium without a window, driven through playwright.

A test module or its conftest imports the fixtures:

    from browsing import browser, open_page

On a machine without Chromium these tests are skipped, and fail where `CI` is set: there it has to be.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

Open = Callable[..., "Visit"]


@dataclass
class Visit:
    """A page in the browser, and what it said and asked for since it was opened."""

    page: Any
    said: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for all tests of a module."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        if os.environ.get("CI"):
            pytest.fail("there is no chromium: install it, for the pages are tested in it")
        pytest.skip("there is no chromium to test pages in")
    sync = pytest.importorskip("playwright.sync_api")
    with sync.sync_playwright() as playwright:
        chrome = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield chrome
        chrome.close()


@pytest.fixture
def open_page(browser: Any) -> Iterator[Open]:
    """Open an address in a context of its own: `open_page(url, width=320, height=640, color_scheme="dark")`.

    What the console says, errors that nobody caught, and every request are written down in the `Visit`.
    """
    contexts: list[Any] = []

    def visit(url: str, *, width: int = 1280, height: int = 900, **settings: Any) -> Visit:
        context = browser.new_context(viewport={"width": width, "height": height}, **settings)
        contexts.append(context)
        seen = Visit(context.new_page())
        seen.page.on("console", lambda message: seen.said.append(message.text))
        seen.page.on("pageerror", lambda error: seen.said.append(str(error)))
        seen.page.on("request", lambda request: seen.asked.append(request.url))
        seen.page.goto(url)
        return seen

    yield visit
    for context in contexts:
        context.close()
