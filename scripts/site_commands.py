"""Write the site's page of the command line from the commands themselves, so that it says what `--help` says.

The page `reference/command-line.md` has a mark; what stands there in the site is made here, when the site is built.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import typer.main

MARK = "<!-- the subcommands -->"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Return the page with every subcommand in the place of the mark."""
    if MARK not in markdown:
        return markdown
    from fedrag.cli.app import app

    return markdown.replace(MARK, "\n".join(described(typer.main.get_command(app), "fedrag")))


def described(command: Any, name: str) -> Iterator[str]:
    """Describe a command: usage, help, arguments and options; of a group, its subcommands."""
    if getattr(command, "commands", None):
        if name != "fedrag":
            yield from (f"## {name}", "", _said(command.help), "")
        for key, inner in command.commands.items():
            if not inner.hidden:
                yield from described(inner, f"{name} {key}")
        return
    parameters = [parameter for parameter in command.params if not getattr(parameter, "hidden", False)]
    arguments = [parameter for parameter in parameters if parameter.param_type_name == "argument"]
    options = [parameter for parameter in parameters if parameter.param_type_name == "option"]
    usage = " ".join(
        [name, *(["[OPTIONS]"] if options else []), *(p.make_metavar(_context(command)) for p in arguments)]
    )
    yield from (f"{'#' * (1 + len(name.split()))} {name}", "", "```text", usage, "```", "", _said(command.help), "")
    if parameters:
        yield from ("| | | default |", "|---|---|---|")
        for parameter in [*arguments, *options]:
            names = [*parameter.opts, *parameter.secondary_opts] if parameter in options else [_metavar(parameter)]
            names_said = ", ".join(f"`{one}`" for one in names)
            yield f"| {names_said} | {_cell(parameter.help)} | {_default(parameter)} |"
        yield ""


def _context(command: Any) -> Any:
    return command.make_context("fedrag", [], resilient_parsing=True)


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name).upper()


def _said(text: str | None) -> str:
    """Return a help text as Markdown: what is indented in it is an example, and stands as such."""
    kept = inspect.cleandoc(text or "").replace("\b\n", "").replace("\f", "").strip()
    return re.sub(r"(?m)^(?=<)", "\\\\", kept)


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", "\\|").replace("<", "&lt;")


def _default(parameter: Any) -> str:
    default = parameter.default
    if parameter.required:
        return "required"
    if default is None or default is False or default in ((), [], "") or callable(default) or not str(default).strip():
        return ""
    return "" if type(default).__name__ == "Sentinel" else f"`{default}`"
