"""The deployment's parts: keys, pins, gate, processes, worker, doctor, with real files, sockets and processes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import uvicorn
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.fab import Fab
from flwr.supercore.run import Run
from hypothesis import given
from hypothesis import strategies as st

from fedrag.errors import ConfigError, InputError, TrainingError
from fedrag.federated import FederatedTask, Plan, Site
from fedrag.federated.client import Reply, Request
from fedrag.federated.deployment import doctor, gate, keys, pins, processes, project, submission, supernode, worker
from fedrag.federated.exchange import Packed

# Flower's bundler asks pathspec by an old name
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

REPOSITORY = Path(__file__).parents[2]
TASK = """\
from fedrag.federated import FederatedTask, Plan, Site

class Mean:
    num_examples = 3

def build(site: Site):
    return Mean()

task = FederatedTask(build, Plan(rounds=2, quorum=2))
"""


@pytest.fixture
def app(tmp_path):
    (tmp_path / "task.py").write_text(TASK)
    return project.init(tmp_path / "task.py", tmp_path / "app")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Keys of a server on the loopback and two sites."""
    folder = tmp_path_factory.mktemp("keys")
    keys.write_keys(folder, server=["fl.example.org"], sites=["a", "b"])
    return folder


# -- keys


def test_secrets_are_their_owners_alone(made):
    secret = {path.name: stat.S_IMODE(path.stat().st_mode) for path in made.rglob("*.key")}
    assert secret == {"ca.key": 0o600, "server.key": 0o600, "site.key": 0o600}
    assert all(stat.S_IMODE(folder.stat().st_mode) == 0o700 for folder in made.iterdir() if folder.is_dir())
    assert not (made / "a" / "ca.key").exists()


def test_secrets_are_so_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        keys.write_keys(tmp_path / "keys", server=["h"], sites=["a"])
    finally:
        os.umask(before)
    for path in (tmp_path / "keys").rglob("*.key"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_nothing_is_overwritten_and_sites_come_later(tmp_path):
    keys.write_keys(tmp_path, server=["h"], sites=["a"])
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for again in ({"sites": ["a"]}, {"server": ["h"]}, {"sites": ["b", "a"]}):
        with pytest.raises(InputError, match="is there already"):
            keys.write_keys(tmp_path, **again)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    (tmp_path / "ca.key").unlink()  # which may be off line by then
    keys.write_keys(tmp_path, sites=["b"])
    assert (tmp_path / "b" / "ca.crt").read_bytes() == (tmp_path / "ca.crt").read_bytes()
    (tmp_path / "server" / "server.crt").unlink()
    (tmp_path / "server" / "server.key").unlink()
    with pytest.raises(InputError, match=r"ca\.key is not there"):
        keys.write_keys(tmp_path, server=["h"])


@pytest.mark.parametrize("site", ["", "server", "../a", "a/b", ".a", "a" * 65, "a b"])
def test_names_that_no_folder_should_have_are_refused(tmp_path, site):
    with pytest.raises(InputError):
        keys.write_keys(tmp_path / "keys", server=["h"], sites=[site])
    assert not (tmp_path / "keys").exists()


@pytest.mark.parametrize("host", ["https://h", "h:8000", "a b", "-h", "h/x"])
def test_a_host_is_a_name_or_an_address(tmp_path, host):
    with pytest.raises(InputError, match="host name"):
        keys.write_keys(tmp_path / "keys", server=[host])


def test_site_keys_are_what_flower_takes(made):
    from flwr.cli.supernode.register import try_load_public_key

    private = serialization.load_ssh_private_key((made / "a" / "site.key").read_bytes(), None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    assert try_load_public_key(made / "server" / "sites" / "a.pub") == private.public_key().public_bytes(*form)


def handshake(folder, *, trusted, name):
    """A real TLS handshake on the loopback; raises what the client finds wrong."""
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(folder / "server" / "server.crt", folder / "server" / "server.key")
    asking = ssl.create_default_context(cafile=str(trusted))
    asking.verify_flags |= ssl.VERIFY_X509_STRICT
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10)

        def once():
            line, _ = listener.accept()
            with line:
                line.settimeout(10)
                with suppress(ssl.SSLError, OSError):
                    serving.wrap_socket(line, server_side=True).close()

        thread = threading.Thread(target=once)
        thread.start()
        try:
            with socket.create_connection(listener.getsockname(), timeout=10) as line:
                asking.wrap_socket(line, server_hostname=name).close()
        finally:
            thread.join(10)


def test_certificates_hold_in_a_strict_handshake(made, tmp_path):
    for name in ("fl.example.org", "localhost", "127.0.0.1"):
        handshake(made, trusted=made / "a" / "ca.crt", name=name)
    with pytest.raises(ssl.SSLCertVerificationError, match="Hostname"):
        handshake(made, trusted=made / "a" / "ca.crt", name="other.example.org")
    keys.write_keys(tmp_path, server=["fl.example.org"])
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(made, trusted=tmp_path / "ca.crt", name="fl.example.org")
    own = keys.read_certificate(made / "server" / "server.crt")
    assert own.signed_by(keys.read_certificate(made / "ca.crt"))
    assert not own.signed_by(keys.read_certificate(tmp_path / "ca.crt"))


# -- the app and its pin


def test_flower_takes_the_app_and_finds_both_halves(app):
    done = subprocess.run(
        [processes.command("flwr"), "build", "--app", str(app)],
        cwd=app.parent,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    (built,) = app.parent.glob("*.fab")
    assert hashlib.sha256(built.read_bytes()).hexdigest() == pins.bundle(app).hash
    assert [name for name, _ in pins.bundle(app).files] == [".info/CONTENT", "pyproject.toml", "task.py"]


def test_a_pin_covers_code_and_settings_and_no_file_of_the_site(app):
    pin = pins.bundle(app).hash
    (app / "site.toml").write_text('name = "south"\n')
    (app / "notes.py").write_text("")
    assert pins.bundle(app).hash == pin
    (app / "task.py").write_text(TASK + "\n")
    changed = pins.bundle(app).hash
    assert changed != pin
    (app / "task.py").write_text(TASK)
    settings = (app / "pyproject.toml").read_text()
    (app / "pyproject.toml").write_text(settings.replace("resume = false", "resume = true"))
    assert pins.bundle(app).hash not in (pin, changed)


@pytest.mark.parametrize("pin", ["", "abc", "g" * 64, "a" * 63, "a" * 65])
def test_what_is_no_hash_pins_nothing(pin):
    with pytest.raises(InputError, match="is no pin"):
        pins.read_pins([pin])
    assert pins.read_pins(["sha256:" + "A" * 64]) == {"a" * 64}


def run_of(fab, **changes):
    known = {"fab_id": "fedrag/app", "fab_version": "1.0.0", "fab_hash": fab.hash_str, "override_config": {}}
    run = Run.create_empty(7)
    for name, value in {**known, **changes}.items():
        setattr(run, name, value)
    return run


def test_only_pinned_bytes_under_their_own_name_may_run(app):
    made = pins.bundle(app)
    pinned = frozenset([made.hash])
    fab = Fab(made.hash, made.content, {})
    assert pins.why_refused(fab, run_of(fab), pinned) is None
    assert pins.why_refused(fab, run_of(fab, override_config={"resume": True}), pinned) is None

    assert "not pinned" in pins.why_refused(fab, run_of(fab), frozenset(["0" * 64]))
    forged = Fab(made.hash, made.content + b" ", {})  # other bytes under a pinned name
    assert "not pinned" in pins.why_refused(forged, run_of(fab), pinned)
    for lie in (
        {"fab_hash": "0" * 64},
        {"fab_id": "/", "fab_version": "/../../../tmp/x"},  # leads Flower to a folder outside of its own
        {"fab_version": "2.0.0"},
        {"override_config": {"rounds": 1}},
    ):
        assert pins.why_refused(fab, run_of(fab, **lie), pinned), lie
    assert pins.why_refused(Fab("0" * 64, made.content, {}), run_of(fab), pinned)
    assert pins.why_refused(fab, None, pinned)


# -- pinning inside Flower


def test_flower_has_the_places_that_pinning_relies_on():
    """When this fails, Flower has changed: read `supernode.py` against the new version before widening its bounds."""
    from flwr.supernode import start_client_internal as inside

    assert hasattr(inside, supernode.HOOK[1]), "the connection that pinning wraps is gone"
    assert hasattr(inside, "_verify_fab"), "the check of trusted entities is gone"
    source = Path(inside.__file__).read_text()
    assert f"with {supernode.HOOK[1]}(" in source, "the connection is no longer found by its name in the module"
    fetched, verified, stored = (
        source.index(text) for text in ("fab = get_fab(", "_verify_fab(fab", "state.store_fab(")
    )
    assert fetched < verified < stored, "an app is stored before it is verified"


def flowers_verdict(fab, seal):
    """What Flower's own check says of an app, as `start_client_internal` asks it."""
    from flwr.supernode.start_client_internal import _verify_fab

    return bool(fab.verifications.get("valid_license", "")) and _verify_fab(fab, seal.trusted())


def fetched(fab, run, pinned):
    """The app as the wrapped connection gives it to Flower, and the key that it trusts."""

    @contextmanager
    def connect(*_args, **_settings):
        yield (1, None, None, lambda _id: run, lambda _hash, _id: fab, None, None, None)

    seal = supernode.Seal()
    with supernode.pinning(connect, pinned, seal)() as parts:
        if run is not None:
            parts[supernode.GET_RUN](7)
        return parts[supernode.GET_FAB](fab.hash_str, 7), seal


def test_flowers_check_passes_a_pinned_app_and_no_other(app, caplog):
    made = pins.bundle(app)
    pinned = frozenset([made.hash])
    assert flowers_verdict(*fetched(Fab(made.hash, made.content, {}), run_of(Fab(made.hash, b"", {})), pinned))
    other = Fab(hashlib.sha256(b"other").hexdigest(), b"other", {})
    assert not flowers_verdict(*fetched(other, run_of(other), pinned))
    assert "REFUSED" in caplog.text
    assert not flowers_verdict(*fetched(Fab(made.hash, made.content, {}), None, pinned))


def test_a_server_cannot_sign_for_the_site(app):
    made = pins.bundle(app)
    other = b"other"
    theirs = supernode.Seal()  # the server knows how, but not the key
    fab = Fab(hashlib.sha256(other).hexdigest(), other, theirs.sign(other))
    assert flowers_verdict(fab, theirs)
    got, seal = fetched(fab, run_of(fab), frozenset([made.hash]))
    assert not flowers_verdict(got, seal)
    # one signature does not serve another content
    assert not flowers_verdict(Fab("", other, seal.sign(made.content)), seal)


def test_without_the_check_everything_is_refused(app):
    """Fails closed: what the connection itself gives bears no signature that Flower was told to trust."""
    made = pins.bundle(app)
    for verifications in ({}, {"valid_license": "yes"}, {"valid_license": "yes", "fpk_x": json.dumps({})}):
        assert not flowers_verdict(Fab(made.hash, made.content, verifications), supernode.Seal())


def test_a_connection_of_another_shape_is_refused():
    @contextmanager
    def connect(*_args, **_settings):
        yield (1, 2, 3)

    with pytest.raises(ConfigError, match="3 parts"), supernode.pinning(connect, frozenset(), supernode.Seal())():
        pass


@pytest.mark.parametrize("words", [[], ["--pin", "a" * 64, "--trusted-entities", "x.yaml"], ["--pin", "abc"]])
def test_a_supernode_without_pins_does_not_start(tmp_path, words):
    with pytest.raises(InputError):
        supernode.main(["--home", str(tmp_path), *words])


# -- gate


def test_the_gate_lets_through_what_a_site_calls_and_flower_serves():
    from flwr.superlink.routers.fleet.router import router

    served = {route.path.removeprefix("/v1/fleet/") for route in router.routes}
    assert served - {"register-node", "unregister-node"} == set(gate.FLEET)  # what registered sites do not call


@given(st.sampled_from(["GET", "POST", "PUT", "HEAD", "CONNECT"]), st.binary(max_size=30), st.sampled_from(gate.FLEET))
def test_nothing_else_passes(method, noise, name):
    path = f"/v1/fleet/{name}".encode()
    assert gate.allowed("POST", path)
    assert not gate.allowed(method, noise)
    assert not gate.allowed("POST", path + noise) or not noise
    assert not gate.allowed("POST", noise + path) or not noise
    assert gate.allowed(method, path) == (method == "POST")


ATTACKS = [
    "/v1/control/start-run",
    "/v1/runtime/acquire-task",
    "/v1/fleet/register-node",
    "/v1/fleet/../control/start-run",
    "/v1/fleet/pull-messages/../../control/start-run",
    "/v1/fleet/%2e%2e/control/start-run",
    "/v1/fleet/pull-messages/%2e%2e/%2e%2e/control/start-run",
    "/v1/fleet/pull-messages%2f..%2f..%2fcontrol%2fstart-run",
    "/v1/fleet/pull-messages%00/../../control/start-run",
    "//v1/control/start-run",
    "/v1//control/start-run",
    "/v1/%63ontrol/start-run",
    "/v1/control/start-run?/v1/fleet/pull-messages",
    "/v1/control/start-run#/v1/fleet/pull-messages",
    "/v1/control/start-run;/v1/fleet/pull-messages",
    "http://localhost/v1/control/start-run",
    "/docs",
    "/openapi.json",
    "/health",
    "/",
]


@contextmanager
def upstream(folder):
    """A TLS server on the loopback that answers anything with what it got, and remembers the paths."""
    seen: list[str] = []

    async def application(scope, receive, send):
        if scope["type"] != "http":
            return
        seen.append(scope["raw_path"].decode())
        body, more = b"", True
        while more:
            event = await receive()
            body += event.get("body", b"")
            more = event.get("more_body", False)
        told = {"body": hashlib.sha256(body).hexdigest(), "auth": dict(scope["headers"]).get(b"x-auth", b"").decode()}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-upstream", b"yes")]})
        await send({"type": "http.response.body", "body": json.dumps(told).encode()})

    port = processes.free_port()
    server = uvicorn.Server(
        uvicorn.Config(
            application,
            port=port,
            ssl_certfile=str(folder / "server.crt"),
            ssl_keyfile=str(folder / "server.key"),
            log_level="error",
            lifespan="off",
            ws="none",
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + 20
        while not server.started and time.monotonic() < deadline:
            time.sleep(0.02)
        yield port, seen
    finally:
        server.should_exit = True
        thread.join(20)


@contextmanager
def python_gate(folder, behind):
    port = processes.free_port()
    words = ["--listen", f"127.0.0.1:{port}", "--upstream", f"127.0.0.1:{behind}", "--keys", str(folder)]
    command = [sys.executable, "-m", "fedrag.federated.deployment.gate", *words]
    group = processes.Group(command, env=processes.environment())
    try:
        processes.wait_until_listening(group, "127.0.0.1", port, seconds=60)
        yield port
    finally:
        group.stop()


@contextmanager
def nginx_gate(folder, behind):
    """nginx with the rule of the documentation, its addresses and folders replaced by the test's."""
    page = (REPOSITORY / "docs" / "deployment.md").read_text()
    rule = page.split("```nginx\n")[1].split("```")[0]
    port = processes.free_port()
    for old, new in (
        ("/etc/fedrag/server", str(folder)),
        ("127.0.0.1:8001", f"127.0.0.1:{behind}"),
        ("listen 8000", f"listen 127.0.0.1:{port}"),
    ):
        assert old in rule
        rule = rule.replace(old, new)
    place = folder / "nginx"
    place.mkdir(exist_ok=True)
    temporary = "\n".join(f"{kind}_temp_path {place};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
    (place / "nginx.conf").write_text(
        f"daemon off; pid {place}/pid; events {{}} http {{ access_log off; {temporary}\n{rule}\n}}"
    )
    words = [shutil.which("nginx") or "", "-p", str(place), "-c", str(place / "nginx.conf"), "-e", "stderr"]
    group = processes.Group(words, env=dict(os.environ))
    try:
        processes.wait_until_listening(group, "127.0.0.1", port, seconds=30)
        yield port
    finally:
        group.stop()


no_nginx = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
GATES = [pytest.param(python_gate, id="gate"), pytest.param(nginx_gate, id="nginx", marks=no_nginx)]


def speak(folder, port, text):
    """Send raw bytes over TLS; return all that comes back until the other side closes."""
    trusted = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=20) as plain,
        trusted.wrap_socket(plain, server_hostname="localhost") as line,
    ):
        line.sendall(text)
        got = b""
        while piece := line.recv(65536):
            got += piece
        return got


def request(path, body=b"", more=""):
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n{more}"
    return head.encode() + b"Connection: close\r\n\r\n" + body


@pytest.mark.parametrize("opened", GATES)
def test_a_site_reaches_the_fleet_and_nothing_else(made, opened):
    folder = made / "server"
    with upstream(folder) as (behind, seen), opened(folder, behind) as port:
        body = os.urandom(6_000_000)  # more than a chunk of Flower's
        for name in gate.FLEET:
            got = speak(folder, port, request(f"/v1/fleet/{name}", body, "X-Auth: signed\r\n"))
            assert b"200" in got.splitlines()[0]
            assert b"x-upstream: yes" in got.lower()
            told = json.loads(got[got.index(b"{") : got.rindex(b"}") + 1])
            assert told == {"body": hashlib.sha256(body).hexdigest(), "auth": "signed"}
        assert seen == [f"/v1/fleet/{name}" for name in gate.FLEET]
        seen.clear()
        for path in ATTACKS:
            status = speak(folder, port, request(path)).split(b"\r\n")[0]
            assert status.split()[1][:1] == b"4", (path, status)
        got = speak(folder, port, request("/v1/fleet/get-run").replace(b"POST", b"GET", 1))
        assert got.split()[1][:1] == b"4"
        # a second request on a connection that was let in, and one hidden in the body of the first
        first = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n"
        speak(folder, port, first + request("/v1/control/start-run"))
        hidden = b"0\r\n\r\n" + request("/v1/control/start-run")
        head = b"POST /v1/fleet/get-run HTTP/1.1\r\nHost: h\r\nConnection: close\r\n"
        speak(folder, port, head + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(hidden) + hidden)
        assert set(seen) <= {"/v1/fleet/get-run"}


def test_a_gate_without_its_server_says_so(made):
    folder = made / "server"
    with python_gate(folder, processes.free_port()) as port:
        assert speak(folder, port, request("/v1/fleet/get-run")).split()[1] == b"502"


def test_the_documented_rule_has_the_same_paths():
    page = (REPOSITORY / "docs" / "deployment.md").read_text()
    rule = page.split("```nginx\n")[1].split("```")[0]
    (listed,) = [line for line in rule.splitlines() if "location ~" in line]
    assert sorted(listed.split("(")[1].split(")")[0].split("|")) == sorted(gate.FLEET)


# -- processes

FAMILY = '''
import subprocess, sys, time
grandchild = """
import time, signal
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("up", flush=True)
time.sleep(600)
"""
subprocess.Popen([sys.executable, "-c", grandchild], start_new_session=True)
print("started", flush=True)
time.sleep(600)
'''


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="descendants are found through /proc")
def test_a_group_is_stopped_with_those_that_left_it(tmp_path):
    log = tmp_path / "log"
    with log.open("wb") as output:
        group = processes.Group([sys.executable, "-c", FAMILY], env=os.environ, output=output)
    deadline = time.monotonic() + 30
    while log.read_text().count("\n") < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    family = [pid for pid, _ in processes.descendants(group.pid)]
    assert len(family) == 1
    group.stop(grace=1.0)
    assert group.ended() is not None
    assert not alive(family[0])


SUPERVISED = """
import os, sys
from fedrag.federated.deployment.processes import Group, supervise
def start(groups):
    for words in sys.argv[1:]:
        groups.append(Group([sys.executable, "-c", words], env=os.environ))
    print(*[group.pid for group in groups], flush=True)
sys.exit(supervise(start))
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_all_and_is_no_failure(number):
    child = [sys.executable, "-c", SUPERVISED, "import time; time.sleep(600)", "import time; time.sleep(600)"]
    with subprocess.Popen(child, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        process.send_signal(number)
        assert process.wait(30) == 0
    assert not any(map(alive, pids))


def test_when_one_ends_the_others_do_and_its_status_is_told():
    child = [sys.executable, "-c", SUPERVISED, "import time; time.sleep(600)", "import sys; sys.exit(7)"]
    with subprocess.Popen(child, stdout=subprocess.PIPE, text=True) as process:
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert process.wait(30) == 7
    assert not any(map(alive, pids))


def test_what_never_listens_is_named():
    group = processes.Group([sys.executable, "-c", "import sys; sys.exit(3)"], env=os.environ)
    with pytest.raises(TrainingError, match="status 3"):
        processes.wait_until_listening(group, "127.0.0.1", processes.free_port(), seconds=30)
    group = processes.Group([sys.executable, "-c", "import time; time.sleep(600)"], env=os.environ)
    with pytest.raises(TrainingError, match="does not listen"):
        processes.wait_until_listening(group, "127.0.0.1", processes.free_port(), seconds=0.2)
    group.stop(grace=5)


@pytest.mark.parametrize("text", ["host", "host:", ":1", "h:0", "h:65536", "https://h:1", "h:x"])
def test_an_address_is_host_and_port(text):
    with pytest.raises(ConfigError):
        processes.split_address(text)
    assert processes.split_address("[::1]:80") == ("::1", 80)


# -- worker

ECHO = """
import os, sys, time
from pathlib import Path
from fedrag.federated.client import Reply
from fedrag.federated.deployment.worker import serve

class Echo:
    def answer(self, request):
        if request.kind == "die":
            os._exit(9)
        if request.kind == "long":
            time.sleep(600)
        told = {"site": "a", "pid": os.getpid(), **request.config}
        return Reply(told, {"size": float(len(request.state))}, request.state)

serve(Echo(), Path(sys.argv[1]), ready=lambda: print("ready", flush=True))
"""
STATE = {
    "z": Packed("bfloat16", (2, 1), b"\x01\x02\x03\x04"),
    "a": Packed("float32", (0,), b""),
    "m": Packed("float64", (), b"12345678"),
}


@pytest.fixture
def socket_path(tmp_path):
    return tmp_path / "worker.sock"


@contextmanager
def echoing(path):
    with subprocess.Popen([sys.executable, "-c", ECHO, str(path)], stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "ready\n"
            yield process
        finally:
            process.kill()


def test_a_worker_answers_in_one_process_and_the_order_is_kept(socket_path):
    with echoing(socket_path) as process:
        for number in range(3):
            reply = worker.ask(socket_path, Request("hello", {"round": number, "yes": True}, STATE), seconds=30)
            assert reply.config == {"site": "a", "pid": process.pid, "round": number, "yes": True}
            assert reply.metrics == {"size": 3.0}
            assert list(reply.state.items()) == list(STATE.items())
        assert stat.S_IMODE(socket_path.stat().st_mode) == 0o600


def test_a_worker_that_dies_is_noticed_at_once(socket_path):
    with echoing(socket_path):
        before = time.monotonic()
        with pytest.raises(OSError, match="ended"):
            worker.ask(socket_path, Request("die"))
        assert time.monotonic() - before < 10
        with pytest.raises(ConnectionError):
            worker.ask(socket_path, Request("hello"))


def test_a_worker_that_is_killed_over_a_request_is_noticed(socket_path):
    with echoing(socket_path) as process:
        timer = threading.Timer(0.5, process.kill)
        timer.start()
        with pytest.raises(ConnectionResetError):
            worker.ask(socket_path, Request("long"))
        timer.join()


def test_waiting_for_a_worker_has_an_end(socket_path):
    with echoing(socket_path), pytest.raises(TimeoutError):
        worker.ask(socket_path, Request("long"), seconds=0.3)


@pytest.mark.parametrize("busy", [False, True])
def test_sigterm_ends_a_worker_and_removes_its_socket(socket_path, busy):
    with echoing(socket_path) as process:
        if busy:
            line = socket.socket(socket.AF_UNIX)
            line.connect(str(socket_path))
            worker._send(line, {"kind": "long", "config": {}}, {})
            time.sleep(0.3)
        process.terminate()
        assert process.wait(20) == 0
        assert not socket_path.exists()
        if busy:
            line.settimeout(5)
            assert line.recv(1) == b""
            line.close()


def test_one_worker_at_a_socket_and_a_dead_ones_is_taken_over(socket_path):
    with echoing(socket_path) as process:
        with pytest.raises(ConfigError, match="already"):
            worker.serve(FederatedTask(build, Plan(rounds=1)).participant(Site("a")), socket_path)
        process.kill()
        process.wait(20)
    assert socket_path.exists()
    with echoing(socket_path):
        assert worker.ask(socket_path, Request("hello"), seconds=20).config["site"] == "a"


def test_a_path_too_long_for_a_socket_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="shorter"):
        worker.serve(FederatedTask(build, Plan(rounds=1)).participant(Site("a")), tmp_path / ("x" * 120))


@pytest.mark.parametrize("noise", [b"", b"\xff" * 8, b"\x02" + b"\x00" * 7 + b"{}", b"\x10" + b"\x00" * 7 + b"x" * 16])
def test_noise_does_not_end_a_worker(socket_path, noise):
    with echoing(socket_path):
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(socket_path))
            line.sendall(noise)
        assert worker.ask(socket_path, Request("hello"), seconds=20).config["site"] == "a"


def build(site):
    raise OSError("no model here")


def test_a_site_answers_itself_or_through_its_worker(tmp_path):
    task = FederatedTask(build, Plan(rounds=1))
    site = Site("a", state=tmp_path)
    hello = Request("hello", {"run": "0" * 16})
    assert worker.answer_at(task, site, hello).config["fault"] == "build"  # here, in this process
    with echoing(tmp_path / worker.NAME) as process:
        assert worker.answer_at(task, site, hello).config["pid"] == process.pid
        process.kill()
        process.wait(20)
    reply = worker.answer_at(task, site, hello)
    assert reply == Reply({"site": "a", "fault": "worker", "class": "ConnectionRefusedError"})
    # a state folder that cannot be made does not raise here, where the error's text would leave the site
    (tmp_path / "file").write_text("")
    assert "fault" in worker.answer_at(task, Site("a", state=tmp_path / "file" / "state"), hello).config


def test_asking_a_worker_loads_no_torch(socket_path):
    code = f"""
import sys
from pathlib import Path
from fedrag.federated.client import Request
from fedrag.federated.deployment.worker import ask
from fedrag.federated.exchange import Packed
reply = ask(Path({str(socket_path)!r}), Request("train", {{}}, {{"w": Packed("bfloat16", (1,), b"ab")}}), seconds=30)
assert reply.state["w"].data == b"ab"
print({{"torch", "transformers"}} & set(sys.modules))
"""
    with echoing(socket_path):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr


# -- the task file


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "no task"),
        ("task: object = FederatedTask(1, 2)", "no task"),
        ("a, b = FederatedTask(1, 2), 3", "no task"),
        ("def f():\n    task = FederatedTask(1, 2)", "no task"),
        ("a = FederatedTask(1, 2)\nb = x.FederatedTask(1, 2)", "2 tasks"),
        ("a = (", "as Python"),
    ],
)
def test_a_task_is_found_as_flower_finds_it(tmp_path, text, complaint):
    path = tmp_path / "task.py"
    path.write_text(text)
    with pytest.raises(InputError, match=complaint):
        project.find_task(path)
    path.write_text("raise SystemExit\nfed = federated.FederatedTask(build, plan)\n")
    assert project.find_task(path) == "fed"


def test_init_overwrites_nothing_unless_told(tmp_path, app):
    (app / "site.toml").write_text("mine")
    with pytest.raises(InputError, match="--force"):
        project.init(app / "task.py", app)
    assert (app / "site.toml").read_text() == "mine"
    assert (app / "task.py").read_text() == TASK
    project.init(app / "task.py", app, force=True)
    assert Site.open(app / "site.toml").name == "north"
    with pytest.raises(InputError, match="--name"):
        project.init(app / "task.py", tmp_path / "1")
    with pytest.raises(InputError, match="publisher"):
        project.init(app / "task.py", tmp_path / "x", publisher="a b")


def test_a_task_is_loaded_and_what_is_none_refused(tmp_path, app):
    assert project.load_task(app / "task.py").plan.rounds == 2
    (app / "task.py").write_text("FederatedTask = dict\ntask = FederatedTask()")
    with pytest.raises(ConfigError, match="is a dict"):
        project.load_task(app / "task.py")
    (app / "task.py").write_text("import no_such_module\ntask = FederatedTask()")
    with pytest.raises(ConfigError, match="no_such_module"):
        project.load_task(app / "task.py")


# -- doctor


def failed(**named):
    return [finding.text for finding in doctor.examine(**named) if finding.level == "FAIL"]


def test_the_doctor_finds_nothing_where_all_is_well(made, app, tmp_path):
    (tmp_path / "store").mkdir()
    (tmp_path / "site.toml").write_text('name = "a"\n')
    (tmp_path / "train.jsonl").write_text('{"question": "q", "answers": ["a"]}\n')
    port = processes.free_port()
    assert failed(app=app, site=tmp_path / "site.toml", keys=made / "server", ports=[port]) == []
    assert failed(keys=made / "a") == []


def test_the_doctor_finds_what_is_wrong(made, app, tmp_path):
    copy = tmp_path / "keys"
    shutil.copytree(made / "server", copy)
    (copy / "server.key").chmod(0o640)
    assert any("0640" in text for text in failed(keys=copy))
    keys.write_keys(tmp_path / "others", server=["h"])
    shutil.copy(tmp_path / "others" / "ca.crt", copy / "ca.crt")
    assert any("not signed" in text for text in failed(keys=copy))
    (copy / "server.crt").write_text("nothing")
    assert any("no PEM certificate" in text for text in failed(keys=copy))
    assert any("wanted: other" in text for text in failed(keys=made / "server", server="other.invalid:1"))
    assert any("other.invalid:1 cannot be reached" in text for text in failed(server="other.invalid:1"))
    (tmp_path / "site.toml").write_text('name = "a"\nwhat = 1\n')
    assert any("what" in text for text in failed(site=tmp_path / "site.toml"))
    (tmp_path / "site.toml").write_text('name = "a"\nstore = "nowhere"\n')
    assert any("nowhere is not there" in text for text in failed(site=tmp_path / "site.toml"))
    (tmp_path / "site.toml").write_text('name = "a"\n')
    (tmp_path / "state").chmod(0o755)
    assert any("0755" in text for text in failed(site=tmp_path / "site.toml"))
    (app / "task.py").write_text("import no_such_module\ntask = FederatedTask()")
    assert any("no_such_module" in text for text in failed(app=app))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert any("taken" in text for text in failed(ports=[taken.getsockname()[1]]))


def test_the_doctor_reads_dates(monkeypatch, tmp_path):
    monkeypatch.setattr(keys, "SERVER_DAYS", 20)
    keys.write_keys(tmp_path, server=["h"])
    levels = {f.level for f in doctor.examine(keys=tmp_path / "server") if "server.crt is valid from" in f.text}
    assert levels == {"warn"}
    monkeypatch.setattr(keys, "SERVER_DAYS", -1e-4)  # between its start, five minutes ago, and now
    keys.write_keys(tmp_path / "old", server=["h"])
    assert any("and today is" in text for text in failed(keys=tmp_path / "old" / "server"))


def test_the_doctor_tells_an_open_control_api_from_a_closed_one(made):
    folder = made / "server"
    with upstream(folder) as (behind, _):
        told = [str(f) for f in doctor.examine(server=f"localhost:{behind}", keys=folder) if "control" in f.text]
        assert told[0].startswith("warn")
        assert "OPEN" in told[0]
        with python_gate(folder, behind) as port:
            told = [str(f) for f in doctor.examine(server=f"localhost:{port}", keys=folder) if "control" in f.text]
            assert told[0].startswith("ok")
        assert any("not trusted" in text for text in failed(server=f"localhost:{behind}"))


# -- submission


def test_a_run_is_resumed_when_none_of_its_app_is_active():
    def run(id, hash, status):
        return submission.Run(id, "fedrag/app", hash, status)

    runs = [run("3", "b", "running"), run("2", "a", "finished:failed"), run("1", "a", "finished:completed")]
    assert submission.resumable(runs, "a").id == "2"
    assert submission.resumable(runs, "c") is None
    with pytest.raises(InputError, match="run 3 of this app is running"):
        submission.resumable(runs, "b")


def test_flowers_own_configuration_is_left_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("FLWR_HOME", str(tmp_path))
    port = processes.free_port()
    with (
        submission.connected(f"127.0.0.1:{port}") as link,
        pytest.raises(InputError, match="flwr list failed at the SuperLink"),
    ):
        link.runs()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ConfigError, match="omit --ca"), submission.connected("prod", ca=tmp_path):
        pass
    with pytest.raises(ConfigError, match="is not there"), submission.connected("h:1", ca=tmp_path / "ca.crt"):
        pass
