"""The page as a person meets it: drawn, narrow, dark, by keyboard, without a script, and asking for nothing."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from browsing import Open, Visit
from fedrag.evaluation import Record, summarize
from fedrag.pages import write_page
from fedrag.types import Example


@pytest.fixture(scope="module")
def address(run: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = write_page(tmp_path_factory.mktemp("page") / "page.html", **run).path
    return path.as_uri()


def quiet(visit: Visit, address: str) -> None:
    assert visit.said == []
    assert visit.asked == [address]


def test_charts_are_drawn_and_nothing_is_asked_for(address: str, open_page: Open) -> None:
    visit = open_page(address)
    charts = visit.page.evaluate(
        """() => [...document.querySelectorAll("main svg[role=img]")].filter((svg) => svg.checkVisibility())
          .map((svg) => {
          const box = svg.getBoundingClientRect();
          return {kind: svg.className.baseVal, wide: box.width, high: box.height,
            title: svg.querySelector("title").textContent, desc: svg.querySelector("desc").textContent,
            paths: [...svg.querySelectorAll("path")].map((path) => path.getBoundingClientRect().width),
            dots: svg.querySelectorAll("circle").length,
            table: !!svg.closest("section").querySelector("table caption")};
        })"""
    )
    kinds = [chart["kind"] for chart in charts]
    assert kinds.count("intervals") == 3
    assert kinds.count("lines") >= 7
    for chart in charts:
        assert chart["wide"] > 300
        assert chart["high"] > 100
        assert chart["title"]
        assert chart["desc"]
        assert chart["table"]
        assert chart["dots"] > 2
        if chart["kind"] == "lines":
            assert chart["paths"]
            assert all(width > 100 for width in chart["paths"])
    assert visit.page.title() == "The handbook, tuned & <measured>"
    quiet(visit, address)


def test_a_dot_is_where_its_number_is(address: str, run: dict[str, Any], open_page: Open) -> None:
    page = open_page(address).page
    grid = page.evaluate(
        """() => { const svg = document.querySelector("svg.intervals"), at = (item) => item.getBoundingClientRect();
          const places = (all) => [...svg.querySelectorAll(all)].map((item) => at(item).x + at(item).width / 2);
          return {dots: places("g circle"), zero: places(".zero"), ticks: places(".grid")}; }"""
    )
    zero, one = grid["zero"][0], grid["ticks"][-1]
    assert one - zero > 500
    reports = [run["before"], run["after"], *run["more"].values()]
    wanted = [report.metrics[name].mean for name in run["after"].metrics for report in reports]
    assert [(dot - zero) / (one - zero) for dot in grid["dots"]] == pytest.approx(wanted, abs=0.01)


@pytest.mark.parametrize("width", [320, 390, 768])
def test_a_narrow_screen_does_not_scroll_sideways(address: str, open_page: Open, width: int) -> None:
    visit = open_page(address, width=width, height=640)
    visit.page.evaluate("document.querySelectorAll('details').forEach((item) => { item.open = true; })")
    assert visit.page.evaluate("document.documentElement.scrollWidth") == width
    outside = visit.page.evaluate(
        """(width) => [...document.querySelectorAll("h1, h2, p, summary, figcaption, .answer, .text, svg text")]
          .filter((item) => item.checkVisibility() && !item.closest(".scroll"))
          .filter((item) => { const box = item.getBoundingClientRect(); return box.left < 0 || box.right > width; })
          .map((item) => item.outerHTML.slice(0, 80))""",
        width,
    )
    assert outside == []


def luminance(colour: str) -> float:
    parts = [int(part) / 255 for part in re.findall(r"\d+", colour)[:3]]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: str, two: str) -> float:
    high, low = sorted([luminance(one), luminance(two)], reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_contrast_is_enough_in_the_light_and_in_the_dark(address: str, open_page: Open) -> None:
    grounds: list[str] = []
    for scheme in ("light", "dark"):
        page = open_page(address, color_scheme=scheme).page
        page.evaluate("document.querySelectorAll('.flips details').forEach((item) => { item.open = true; })")
        texts, marks, ground = page.evaluate(
            """() => {
              const behind = (item) => { for (; item; item = item.parentElement) {
                const colour = getComputedStyle(item).backgroundColor;
                if (colour !== "rgba(0, 0, 0, 0)") return colour; } };
              const words = [...document.querySelectorAll("body *")].filter((item) => item.checkVisibility() &&
                [...item.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()));
              const pairs = words.map((item) => [item.namespaceURI.endsWith("svg") ? getComputedStyle(item).fill
                : getComputedStyle(item).color, behind(item)].join("|"));
              const marks = [...document.querySelectorAll(".line, .dot circle, .whisker")].map((item) =>
                [item.tagName === "circle" && !item.closest(".was") ? getComputedStyle(item).fill
                : getComputedStyle(item).stroke, behind(item)].join("|"));
              return [[...new Set(pairs)], [...new Set(marks)], getComputedStyle(document.body).backgroundColor]; }"""
        )
        assert len(texts) > 5
        assert len(marks) > 3
        assert [pair for pair in texts if contrast(*pair.split("|")) < 4.5] == []
        assert [pair for pair in marks if contrast(*pair.split("|")) < 3] == []
        grounds.append(ground)
    assert luminance(grounds[0]) > 0.8
    assert luminance(grounds[1]) < 0.05


def focused(page: Any) -> dict[str, Any]:
    return page.evaluate(
        """() => { const item = document.activeElement;
          const style = getComputedStyle(item), box = item.getBoundingClientRect();
          return {tag: item.tagName, text: item.textContent.trim().slice(0, 40), id: item.id,
            outlined: style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 2,
            seen: box.bottom > 0 && box.top < innerHeight && box.width > 0}; }"""
    )


def test_the_page_is_walked_by_keyboard(address: str, open_page: Open) -> None:
    visit = open_page(address)
    page = visit.page
    page.keyboard.press("Tab")
    first = focused(page)
    assert (first["text"], first["seen"], first["outlined"]) == ("Skip to the content", True, True)
    page.keyboard.press("Enter")
    assert focused(page)["id"] == "main"
    seen: list[dict[str, Any]] = []
    for _ in range(200):
        page.keyboard.press("Tab")
        seen.append(focused(page))
        if seen[-1]["tag"] == "BODY":
            break
    stops = seen[:-1]
    assert all(stop["seen"] and stop["outlined"] for stop in stops), [
        s for s in stops if not (s["seen"] and s["outlined"])
    ]
    order = page.evaluate(
        """() => [...document.querySelectorAll("main summary, main .scroll, main input, main button")]
          .filter((item) => item.checkVisibility()).map((item) => item.tagName)"""
    )
    assert [stop["tag"] for stop in stops] == order
    assert visit.said == []


def test_a_question_opens_by_keyboard_and_shows_both_sides(address: str, open_page: Open) -> None:
    page = open_page(address).page
    page.locator(".flips summary").first.focus()
    page.keyboard.press("Enter")
    item = page.locator(".flips > li").first
    assert item.locator(".side-of").count() == 2
    before, after = (item.locator(".side-of").nth(place).bounding_box() for place in (0, 1))
    assert before["y"] == after["y"]
    assert before["x"] + before["width"] <= after["x"]
    assert item.locator(".badge").count() >= 1
    assert re.search(r"rank \d", item.locator(".golds").inner_text())
    page.keyboard.press("Space")
    assert not item.locator(".side-of").first.is_visible()


def test_the_filter_finds_words_and_all_is_shown_when_asked(address: str, open_page: Open) -> None:
    visit = open_page(address)
    page = visit.page
    kind = page.locator(".kind").first
    rows = kind.locator(".flips > li")
    count = rows.count()
    assert count > 20
    shown = "(items) => items.filter((item) => item.checkVisibility()).length"
    assert rows.evaluate_all(shown) == 20
    page.locator("#filter").focus()
    last = rows.last.locator(".question").text_content()  # of those that are not shown yet
    page.keyboard.type(" ".join(reversed(last.upper().split())))
    words = last.lower().split()
    texts = page.locator(".flips > li").all_text_contents()
    wanted = [text for text in texts if all(word in text.lower() for word in words)]
    visible = page.locator(".flips > li:visible .question").all_text_contents()
    assert last in visible
    assert 1 <= len(visible) == len(wanted) < 20
    many = f"{len(visible)} question{'s match' if len(visible) > 1 else ' matches'}"
    assert page.locator("#found").inner_text() == many
    page.keyboard.press("Escape")
    assert page.locator("#filter").input_value() == ""
    assert rows.evaluate_all(shown) == 20
    kind.locator("button.all").focus()
    page.keyboard.press("Enter")
    assert rows.evaluate_all(shown) == count
    assert not kind.locator("button.all").is_visible()
    assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
    quiet(visit, address)


def test_without_a_script_all_is_there(address: str, open_page: Open) -> None:
    page = open_page(address, java_script_enabled=False).page
    assert page.locator("svg.intervals").first.is_visible()
    assert not page.locator("#filter").is_visible()
    assert page.locator(".kind").first.locator(".flips > li:visible").count() > 20
    page.locator(".flips summary").first.click()
    assert page.locator(".side-of").first.is_visible()


def test_a_text_that_is_a_program_is_a_text(address: str, open_page: Open, tmp_path: Path) -> None:
    evil = "<script>document.title = 'taken over'</script><img src='http://127.0.0.1:9/x' onerror=alert(1)>"
    example = Example(evil, [evil], positives=[evil], metadata={evil: evil})
    before, after = (summarize([Record(example, {evil: v}, evil, (evil,))]) for v in (0.0, 1.0))
    log = [{"stage": evil, "step": step, evil: 1.0} for step in (1, 2)]
    written = write_page(
        tmp_path / "e.html", before=before, after=after, more={evil: after}, log=log, by=evil, about={evil: evil}
    )
    visit = open_page(written.path.as_uri())
    assert visit.page.title() == "Evaluation report"
    assert visit.page.locator("img, main script").count() == 0
    assert visit.page.locator(".question").first.inner_text() == evil
    quiet(visit, written.path.as_uri())
    # and were one put into it, the policy would not let it run, nor anything be asked for
    forbidden = visit.page.evaluate(
        """() => new Promise((done) => {
          document.addEventListener("securitypolicyviolation", (it) => done(it.blockedURI));
          const image = new Image(); image.src = "http://127.0.0.1:9/x";
          setTimeout(() => done("nothing was refused"), 3000); })"""
    )
    assert forbidden.startswith("http://127.0.0.1:9")
    inline = visit.page.evaluate(
        """() => { const made = document.createElement("script"); made.textContent = "document.title = 'taken over'";
          document.body.append(made); return document.title; }"""
    )
    assert inline == "Evaluation report"


def test_it_prints_in_black_on_white(address: str, open_page: Open) -> None:
    page = open_page(address, color_scheme="dark").page
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator("nav").is_visible()
    assert not page.locator("#filter").is_visible()
    assert len(page.pdf()) > 20_000


def test_several_gold_answers_stand_below_each_other(open_page: Open, tmp_path: Path) -> None:
    golds = ["yes", "a long gold answer, " * 20, "W" + "o" * 300]
    reports = [summarize([Record(Example("Is it?", golds), {"f1": right}, "yes")]) for right in (0.0, 1.0)]
    visit = open_page(write_page(tmp_path / "page.html", before=reports[0], after=reports[1]).path.as_uri(), width=320)
    visit.page.locator(".flips summary").click()
    lefts = visit.page.eval_on_selector_all(".golds dd", "found => found.map(dd => dd.getBoundingClientRect().left)")
    assert len(lefts) == 3
    assert len(set(lefts)) == 1
    assert visit.page.evaluate("document.documentElement.scrollWidth") == 320
