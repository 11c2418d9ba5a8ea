"""Web pages: the text that a reader sees, in blocks, and what the head says about it.

Needs beautifulsoup4, in the extra `documents`.

>>> import tempfile
>>> path = Path(tempfile.mkdtemp()) / "keys.html"
>>> _ = path.write_text("<title>Keys</title><script>spin()</script><h1>Keys</h1><p>Rotate&nbsp;them <b>monthly</b>.")
>>> said = read(path)
>>> said.text, said.metadata
('Keys\\n\\nRotate them monthly.', {'title': 'Keys'})
"""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Any

from fedrag.data.rows import opened
from fedrag.data.text import Text, parsing, told, unicode
from fedrag.optional import require

require("bs4", extra="documents")

from bs4 import BeautifulSoup, UnicodeDammit  # noqa: E402
from bs4.element import CData, NavigableString, Tag  # noqa: E402
from bs4.exceptions import ParserRejectedMarkup  # noqa: E402

_UNSEEN = (
    "iframe", "link", "meta", "noscript", "object", "script", "style", "svg", "template", "title",
)  # fmt: skip
_APART = (
    "article", "blockquote", "dl", "figure", "form", "h1", "h2", "h3", "h4", "h5", "h6", "ol", "p", "pre",
    "section", "table", "ul",
)  # fmt: skip
_LINES = (
    "address", "aside", "body", "caption", "dd", "details", "div", "dt", "fieldset", "figcaption", "footer",
    "header", "hr", "html", "li", "main", "nav", "option", "summary", "tbody", "tfoot", "thead", "tr",
)  # fmt: skip
_TOLD = ("author", "description", "keywords", "date")
_CELLS = ("td", "th")


def read(path: Path) -> Text:
    """Read a page. Its encoding is what it declares, else UTF-8, else what it looks like."""
    with opened(path):
        data = path.read_bytes()
    with parsing(path, "HTML", ParserRejectedMarkup), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a page looks like XML, or like an address: it is a page all the same
        page = BeautifulSoup(UnicodeDammit(data, is_html=True).unicode_markup or "", "html.parser")
        found: dict[str, Any] = {"title": _line(page.title.get_text()) if page.title else None}
        for meta in page.find_all("meta"):
            name = str(meta.get("name", "")).lower()
            if name in _TOLD and (content := _line(str(meta.get("content", "")))):
                found.setdefault(name, content)
        if page.html is not None:
            found["language"] = _line(str(page.html.get("lang", "")))
        text = unicode(_visible(page))
    return Text(text, told({name: value for name, value in found.items() if value}, str(path)))


def _line(text: str) -> str:
    return unicode(" ".join(text.split()))


def _visible(page: Tag) -> str:
    """The text in reading order: blocks on lines of their own, bars between cells, spaces as browsers show them."""
    text = _Lines()
    stack: list[tuple[object, bool]] = [(page, False)]  # no recursion, however deep the page
    while stack:
        node, as_it_is = stack.pop()
        if isinstance(node, int):
            text.apart(node)
        elif isinstance(node, Tag):
            if node.name in _UNSEEN or node.has_attr("hidden"):
                continue
            if node.name == "br":
                text.add("\n", as_it_is=True)
            elif node.name in _CELLS:
                text.add(" | " if node.find_previous_sibling(_CELLS) else " ")
            lines = 2 if node.name in _APART else 1 if node.name in _LINES else 0
            text.apart(lines)
            stack.append((lines, False))
            stack.extend((inner, as_it_is or node.name == "pre") for inner in reversed(node.contents))
        elif type(node) in (NavigableString, CData):
            text.add(str(node), as_it_is=as_it_is)
    return re.sub(r"[^\S\n]+(?=\n)", "", "".join(text.pieces)).strip()


class _Lines:
    """Text in the making: no two spaces in a row, none where a line begins, save in what stays as it is."""

    def __init__(self) -> None:
        self.pieces: list[str] = []
        self._apart = 0
        self._last = "\n"

    def add(self, text: str, *, as_it_is: bool = False) -> None:
        if not as_it_is:
            text = re.sub(r"\s+", " ", text)
            text = text.lstrip(" ") if self._apart or self._last.isspace() else text
        if text:
            self.pieces.append("\n" * self._apart + text)
            self._apart, self._last = 0, text[-1]

    def apart(self, lines: int) -> None:
        """Let what comes next begin on the next line, or after an empty one."""
        self._apart = max(self._apart, lines)
