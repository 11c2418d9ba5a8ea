"""`fedrag serve`: a saved system behind an address, for every program that speaks OpenAI's API or MCP."""

from __future__ import annotations

import ipaddress
import json
import os
import secrets
import shlex
import socket
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from fedrag.bundles.place import parts_in
from fedrag.cli.opening import open_system
from fedrag.errors import ConfigError
from fedrag.optional import require

_SHORTEST = 16  # characters of a token


class Mcp(StrEnum):
    """How the system's MCP server is reached."""

    http = "http"
    stdio = "stdio"
    off = "off"


def serve(
    system: Annotated[Path, typer.Argument(help="Folder of a saved system.", show_default=False)],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0: a free one, which is printed.", min=0, max=65535)] = 8000,
    token_file: Annotated[Path | None, typer.Option(help="Made if absent; default: SYSTEM.token.")] = None,
    no_token: Annotated[bool, typer.Option("--no-token", help="Let every program of this machine in.")] = False,
    name: Annotated[str | None, typer.Option(help="What clients call it; the folder's name by default.")] = None,
    slots: Annotated[int, typer.Option(help="Answers written at the same time.", min=1)] = 2,
    waiting: Annotated[int, typer.Option(help="Requests that may wait beside those.", min=0)] = 64,
    grace: Annotated[float, typer.Option(help="Seconds for open answers at the end.", min=1)] = 30,
    mcp: Annotated[Mcp, typer.Option(help="MCP: at /mcp, on stdin and stdout alone, or not.")] = Mcp.http,
) -> None:
    """Serve a system over OpenAI's HTTP API and MCP, until Ctrl-C."""
    require("starlette", extra="serve")
    require("uvicorn", extra="serve")
    from fedrag.serving.served import Served

    local = _is_local(host)
    if no_token and not local:
        raise ConfigError(f"--no-token with --host {host}: others could ask without a token; leave one of them out")
    parts_in(system)  # says now that there is no system
    called = system.resolve().name if name is None else name
    if mcp is Mcp.stdio:
        from fedrag.serving.mcp import run_stdio

        return run_stdio(Served(open_system(system), name=called, slots=slots, waiting=waiting))
    from fedrag.serving.http import application, listen

    folder = os.path.abspath(system)  # "." has no name; a link keeps its own, wherever it leads
    path = Path(f"{folder}.token") if token_file is None else token_file
    token = None if no_token else _token(path)
    listener = _listener(host, port)
    address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
    if not local:
        typer.echo(
            f"fedrag: {host} can be reached from elsewhere, and there is no TLS here: token and questions go in clear. "
            "Put a proxy with TLS in front",
            err=True,
        )
    served = Served(open_system(system), name=called, slots=slots, waiting=waiting)
    hosts = {"localhost", "127.0.0.1", "::1", host.lower()} if local else set[str]()
    app = application(served, token=token, hosts=hosts, mcp=mcp is Mcp.http)
    typer.echo(_introduction(address, called, None if token is None else path, mcp is Mcp.http))
    listen(app, listener, grace=grace)


def _is_local(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:  # a name
        return False


def _token(path: Path) -> str:
    """Read the token in a file, or write a fresh one, for its owner alone."""
    try:
        with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            token = secrets.token_urlsafe(32)
            file.write(token + "\n")
            return token
    except FileExistsError:
        pass  # it is read
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}): name another --token-file") from None
    try:
        token, mode = path.read_text(encoding="utf-8", errors="replace").strip(), path.stat().st_mode
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): name another --token-file") from None
    if len(token) < _SHORTEST or not token.isascii() or any(letter.isspace() for letter in token):
        raise ConfigError(
            f"{path} holds no token: it takes {_SHORTEST} ASCII characters or more, without white space; remove it to "
            "get a fresh one"
        )
    if os.name == "posix" and mode & 0o077:
        raise ConfigError(
            f"{path} may be read or changed by others of this machine: chmod 600 {shlex.quote(str(path))}"
        )
    return token


def _listener(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigError(
            f"{host}:{port} cannot be listened on ({error.strerror}): name another --host or --port; 0 is a free port"
        ) from None


def _introduction(address: str, name: str, path: Path | None, mcp: bool) -> str:
    """What a person needs to ask."""
    if path is None:
        who, header, key = "no token: every program of this machine may ask", "", '"none"'
    else:
        who = f"token in {path}"
        header = f' -H "Authorization: Bearer $(cat {shlex.quote(str(path))})"'
        key = f"open({str(path)!r}).read().strip()"
    asked = json.dumps({"model": name, "messages": [{"role": "user", "content": "..."}]})
    return f"""\
{address}  serves {name}{f", MCP at {address}/mcp" if mcp else ""}; Ctrl-C ends it
{who}

curl {address}/v1/chat/completions{header} -H "Content-Type: application/json" -d {shlex.quote(asked)}

client = openai.OpenAI(base_url="{address}/v1", api_key={key})
client.chat.completions.create(model={name!r}, messages=[{{"role": "user", "content": "..."}}])
"""
