"""What the site does to a page before it is drawn, so that the same Markdown serves the repository and the site.

- *Links that leave `docs/`* (to source files, to README.md) lead to the repository's page of that file where `repo_url`
  is set in mkdocs.yml, and are plain text where it is not.
- *Mermaid's flowchart* would need a script from elsewhere: it becomes a list of questions and what follows from them.
- *Skip comments*, which are for the runner of the snippets, go.
"""

from __future__ import annotations

import posixpath
import re
from html import escape
from typing import Any

LINK = re.compile(r"(?<!!)\[(?P<text>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<to>[^)\s]+)\)")
FENCED = re.compile(r"^( *)(```+|~~~+)[^\n]*\n.*?^\1\2 *$", re.MULTILINE | re.DOTALL)
MERMAID = re.compile(r"^```mermaid\n(?P<chart>.*?)^```$", re.MULTILINE | re.DOTALL)
SKIP = re.compile(r"^\s*<!--\s*skip\b.*?-->\s*\n", re.MULTILINE)
NODE = re.compile(r'(?P<id>\w+)(?:\{"(?P<question>.*?)"\}|\["(?P<what>.*?)"\])')
EDGE = re.compile(r'^\s*(?P<from>\w+)(?:[\[{].*?[\]}])? -->(?:\|"?(?P<when>.*?)"?\|)? (?P<to>\w+)')


def on_page_markdown(markdown: str, page: Any, config: Any, **_: Any) -> str:
    """Return the page's Markdown as the site shows it."""
    markdown = SKIP.sub("", MERMAID.sub(lambda chart: decisions(chart["chart"]), markdown))
    folder = posixpath.dirname(page.file.src_uri)
    parts: list[str] = []
    end = 0
    for fence in FENCED.finditer(markdown):
        parts += [_links(markdown[end : fence.start()], folder, config.repo_url), fence[0]]
        end = fence.end()
    return "".join([*parts, _links(markdown[end:], folder, config.repo_url)])


def _links(text: str, folder: str, repository: str | None) -> str:
    def lead(link: re.Match[str]) -> str:
        path, mark, anchor = link["to"].partition("#")
        if ":" in path or not path:
            return link[0]
        target = posixpath.normpath(posixpath.join("docs", folder, path))
        if target.startswith("docs/"):
            if path.endswith("/"):  # a folder: its index
                return f"[{link['text']}]({path}index.md{mark}{anchor})"
            return link[0] if not path.endswith(".json") else link["text"]
        return (
            f"[{link['text']}]({repository.rstrip('/')}/blob/main/{target}{mark}{anchor})"
            if repository
            else link["text"]
        )

    return LINK.sub(lead, text)


def decisions(chart: str) -> str:
    """Return a flowchart of questions as a list: each question, its answers, and what each leads to.

    >>> print(decisions('flowchart TD\\n a{"Labels?"}\\n a -->|yes| b["Contrastive"]'))
    <dl class="decide">
    <dt id="decide-a">Labels?</dt>
    <dd>yes: Contrastive</dd>
    </dl>
    """
    questions: dict[str, str] = {}
    things: dict[str, str] = {}
    for node in NODE.finditer(chart):
        (questions if node["question"] else things)[node["id"]] = node["question"] or node["what"]
    edges = [edge for line in chart.splitlines() if (edge := EDGE.match(line))]
    after = {edge["from"]: edge["to"] for edge in edges if not edge["when"]}
    lines = ['<dl class="decide">']
    for name, question in questions.items():
        lines.append(f'<dt id="decide-{name}">{question}</dt>')
        for edge in edges:
            if edge["from"] == name:
                lines.append(f"<dd>{escape(edge['when'] or '')}: {_said(edge['to'], questions, things, after)}</dd>")
    return "\n".join([*lines, "</dl>"])


def _said(name: str, questions: dict[str, str], things: dict[str, str], after: dict[str, str]) -> str:
    """Say what an answer leads to: the next question, or a thing to do and what follows it."""
    if name in questions:
        return f'go to <a href="#decide-{name}">{questions[name]}</a>'
    said = things[name].replace("<br/>", " ")
    return f"{said}; then {_said(after[name], questions, things, after)}" if name in after else said
