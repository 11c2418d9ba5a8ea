"""`fedrag federate ...`: a task on real machines. Each command imports what it needs when it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrag.errors import InputError

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Train one model at many sites, on real machines.",
)

Where = Annotated[str, typer.Argument(help="Name in Flower's configuration, or HOST:PORT.", show_default=False)]
App = Annotated[Path, typer.Argument(help="Folder of the app.", show_default=False)]
Authority = Annotated[Path | None, typer.Option(help="The server's ca.crt, for HOST:PORT.")]


@app.command()
def init(
    task: Annotated[Path, typer.Argument(help="File that assigns a FederatedTask.", show_default=False)],
    to: Annotated[Path, typer.Option(help="Folder to write.")] = Path(),
    name: Annotated[str | None, typer.Option(help="Of the app; the folder's by default.")] = None,
    publisher: Annotated[str, typer.Option(help="Of the app.")] = "fedrag",
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
) -> None:
    """Write the app of a task: what is submitted and pinned, and a site.toml to fill in."""
    from fedrag.federated.deployment.pins import bundle
    from fedrag.federated.deployment.project import init as write

    folder = write(task, to, name=name, publisher=publisher, force=force)
    typer.echo(f"{folder}: pyproject.toml, {task.name}, site.toml\npin {bundle(folder).hash}")


@app.command()
def keys(
    out: Annotated[Path, typer.Option(help="Folder to write.", show_default=False)],
    server: Annotated[str, typer.Option(help="The server's names and addresses, with commas.")] = "",
    sites: Annotated[str, typer.Option(help="The sites' names, with commas.")] = "",
) -> None:
    """Make a certificate authority, a certificate for the server, and a key pair for each site."""
    from fedrag.federated.deployment.keys import write_keys

    for path in write_keys(out, server=_several(server), sites=_several(sites)):
        typer.echo(str(path))


@app.command()
def pin(app_folder: App, files: Annotated[bool, typer.Option(help="List the files that it covers.")] = True) -> None:
    """Print the hash of an app, after you have read it: what `site --pin` lets run."""
    from fedrag.federated.deployment.pins import bundle

    made = bundle(app_folder)
    if files:
        for name, digest in made.files:
            typer.echo(f"{digest}  {name}", err=True)
    typer.echo(made.hash)


@app.command()
def server(
    keys: Annotated[Path, typer.Option(help="Folder `server` of the keys.", show_default=False)],
    home: Annotated[Path, typer.Option(help="Folder of its own: runs and registered sites.")] = Path("superlink"),
    host: Annotated[str, typer.Option(help="Address that sites reach.")] = "0.0.0.0",
    port: Annotated[int, typer.Option(help="Port for sites.")] = 8000,
    control_port: Annotated[int, typer.Option(help="Port for the operator, on the loopback.")] = 8001,
    gate: Annotated[bool, typer.Option(help="Stand before it; without, a proxy of yours must.")] = True,
) -> None:
    """Start the server: Flower's SuperLink, behind a gate that shows sites the fleet API alone."""
    from fedrag.federated.deployment.server import serve

    status = serve(keys, host=host, port=port, control_port=control_port, home=home, gate=gate, say=typer.echo)
    raise typer.Exit(status)


@app.command()
def site(
    site_file: Annotated[Path, typer.Argument(help="The site's site.toml.", show_default=False)],
    server: Annotated[str, typer.Option(help="HOST:PORT of the server.", show_default=False)],
    keys: Annotated[Path, typer.Option(help="This site's folder of the keys.", show_default=False)],
    pin: Annotated[list[str] | None, typer.Option(help="Hash of an app that may run here; repeatable.")] = None,
    worker: Annotated[Path | None, typer.Option(help="Keep this task's trainer built between messages.")] = None,
    port: Annotated[int | None, typer.Option(help="Port on the loopback; a free one by default.")] = None,
) -> None:
    """Take part: Flower's SuperNode, which runs the apps that are pinned and no other."""
    from fedrag.federated.deployment.site import join

    raise typer.Exit(join(site_file, server=server, keys=keys, pins=pin or [], port=port, worker=worker))


@app.command()
def worker(
    task: Annotated[Path, typer.Argument(help="The task file.", show_default=False)],
    site: Annotated[Path, typer.Option(help="The site's site.toml.", show_default=False)],
) -> None:
    """Keep a task's trainer built at a site, so that a message need not load the base model."""
    from fedrag.federated.deployment.resident import reside

    reside(task, site, say=typer.echo)


@app.command()
def register(
    where: Where,
    key: Annotated[list[Path], typer.Argument(help="Public keys of sites.", show_default=False)],
    ca: Authority = None,
) -> None:
    """Let sites in by their public keys while the server runs; it registers those in its folder when it starts."""
    from fedrag.federated.deployment.submission import connected

    with connected(where, ca=ca) as link:
        for path in key:
            typer.echo(f"site {path.stem}: {'registered' if link.register(path, name=path.stem) else 'is registered'}")


@app.command()
def submit(
    where: Where,
    app_folder: Annotated[Path, typer.Option("--app", help="Folder of the app.")] = Path(),
    ca: Authority = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for its end; 0 does not.")] = 0.0,
) -> None:
    """Start a run of a task."""
    _start(where, app_folder, ca, wait, resume=False)


@app.command()
def resume(
    where: Where,
    app_folder: Annotated[Path, typer.Option("--app", help="Folder of the app.")] = Path(),
    ca: Authority = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait for its end; 0 does not.")] = 0.0,
) -> None:
    """Start a run that goes on from the checkpoint of an earlier one of the same plan."""
    _start(where, app_folder, ca, wait, resume=True)


@app.command()
def status(
    where: Where,
    run: Annotated[str | None, typer.Argument(help="A run's id: its log; else all runs.", show_default=False)] = None,
    ca: Authority = None,
    follow: Annotated[bool, typer.Option("--follow", help="Print its log until it ends.")] = False,
) -> None:
    """List the runs of a server, or show what one has printed."""
    from fedrag.federated.deployment.submission import connected

    with connected(where, ca=ca) as link:
        if run and follow:
            raise typer.Exit(link.follow(run))
        if run:
            typer.echo(link.log(run), nl=False)
            run_now = link.run(run)
            typer.echo(f"{run_now.status}, {run_now.seconds:.0f} s, {run_now.details}")
            return
        for one in link.runs():
            typer.echo(f"{one.id:>20}  {one.status:<20}  {one.seconds:8.0f} s  {one.app}  {one.hash[:12]}")


@app.command()
def stop(
    where: Where,
    run: Annotated[str, typer.Argument(help="The run's id.", show_default=False)],
    ca: Authority = None,
) -> None:
    """Stop a run."""
    from fedrag.federated.deployment.submission import connected

    with connected(where, ca=ca) as link:
        link.stop(run)


@app.command()
def doctor(
    app_folder: Annotated[Path | None, typer.Option("--app", help="Folder of the app; runs its task file.")] = None,
    site: Annotated[Path | None, typer.Option(help="A site.toml.")] = None,
    keys: Annotated[Path | None, typer.Option(help="A machine's folder of the keys.")] = None,
    server: Annotated[str | None, typer.Option(help="HOST:PORT that sites reach.")] = None,
    port: Annotated[list[int] | None, typer.Option(help="A port that should be free; repeatable.")] = None,
) -> None:
    """Look for what would keep a deployment from working; a line each, and status 1 if there is something."""
    from fedrag.federated.deployment.doctor import examine

    failed = 0
    for finding in examine(app=app_folder, site=site, keys=keys, server=server, ports=port or []):
        typer.echo(str(finding))
        failed += finding.level == "FAIL"
    raise typer.Exit(1 if failed else 0)


def _several(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _start(where: str, app_folder: Path, ca: Path | None, wait: float, *, resume: bool) -> None:
    from fedrag.federated.deployment.pins import bundle
    from fedrag.federated.deployment.submission import connected, resumable

    pin = bundle(app_folder).hash
    with connected(where, ca=ca) as link:
        if resume and (earlier := resumable(link.runs(), pin)):
            typer.echo(f"the latest run of this app, {earlier.id}, is {earlier.status}")
        run = link.submit(app_folder, resume=resume)
        if not pin.startswith(run.hash):
            raise InputError(
                f"the app changed while it was submitted: its pin was {pin}, and {run.hash}... was submitted"
            )
        typer.echo(f"run {run.id}\npin {pin}")
        if wait:
            ended = link.finished(run.id, seconds=wait)
            typer.echo(f"{ended.status}, {ended.seconds:.0f} s")
            if ended.status != "finished:completed":
                raise InputError(
                    f"run {run.id} is {ended.status} ({ended.details}); `fedrag federate status` has its log"
                )
