"""Who is who: a certificate for the server, an ECDSA key pair for each site.

TLS tells a site that it talks to the right server; the key tells the server which site it talks to. The authority signs
the server's certificate alone: the server knows sites by their public keys, which its operator registers. One folder
for each machine, to be carried there by a way that both ends trust:

    keys/ca.key               stays with the operator, off line: whoever has it can play the server
    keys/server/              ca.crt  server.crt  server.key  sites/a.pub  sites/b.pub
    keys/a/                   ca.crt  site.key
    keys/b/                   ca.crt  site.key

Flower takes site keys in OpenSSH's format on a NIST curve, and certificates in PEM.

>>> import tempfile
>>> folder = Path(tempfile.mkdtemp())
>>> written = write_keys(folder, server=["fl.example.org", "10.0.0.7"], sites=["clinic-a"])
>>> sorted(str(path.relative_to(folder)) for path in written)[:3]
['ca.crt', 'ca.key', 'clinic-a/ca.crt']
>>> read_certificate(folder / "server" / "server.crt").names
('fl.example.org', '10.0.0.7', 'localhost', '127.0.0.1', '::1')
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedrag.errors import ConfigError, InputError

AUTHORITY_DAYS = 3650
SERVER_DAYS = 825  # what TLS clients accept at most from a private authority
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # the ServerApp reaches its SuperLink here
RESERVED = ("server",)  # names of folders beside those of the sites
_SITE = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")  # as `Site` takes them
_HOST = re.compile(r"(?=.{1,253}$)(\*\.)?([a-zA-Z0-9_]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)(\.[a-zA-Z0-9-]{1,63})*")


@dataclass(frozen=True, slots=True)
class Certificate:
    """What is checked of a certificate: the names it is valid for, from when to when, and its issuer's key."""

    names: tuple[str, ...]
    starts: datetime
    ends: datetime
    certificate: x509.Certificate

    def signed_by(self, authority: Certificate) -> bool:
        """Whether the authority's key made the signature."""
        try:
            self.certificate.verify_directly_issued_by(authority.certificate)
        except (ValueError, TypeError, InvalidSignature):  # another issuer's name, kind of key, key
            return False
        return True


def write_keys(out: Path, *, server: Sequence[str] = (), sites: Sequence[str] = ()) -> list[Path]:
    """Write what is missing and return the files written; never replaces one.

    Args:
        out: folder; its certificate authority is used where there is one, else made.
        server: host names and addresses that sites call the server by. Empty: no certificate is issued.
        sites: names of sites to make key pairs for.

    Raises:
        InputError: nothing to do, a malformed name, or a file that is there already.
    """
    if not server and not sites:
        raise InputError("no server name and no site was given: name at least one of them")
    for site in sites:
        if not _SITE.fullmatch(site) or site in RESERVED:
            raise InputError(
                f"{site!r} cannot name a site: wanted are letters, digits, '.', '_' and '-', at most 64, the first a "
                f"letter or digit, and not {' or '.join(RESERVED)}"
            )
    if len(set(sites)) < len(sites):
        raise InputError(f"a site is named twice in {', '.join(sites)}; name each once")
    names = [_general_name(host) for host in (*server, *(host for host in LOOPBACK if host not in server))]
    fresh = not (out / "ca.crt").exists()
    planned = [
        *((out / "server" / "server.key", out / "server" / "server.crt") if server else ()),
        *(path for site in sites for path in (out / site / "site.key", out / "server" / "sites" / f"{site}.pub")),
        *((out / "ca.key",) if fresh else ()),
    ]
    if there := [path for path in planned if path.exists()]:
        raise InputError(f"{there[0]} is there already and would be lost; remove it, or name another folder")
    if not fresh and server and not (out / "ca.key").exists():
        raise InputError(f"{out / 'ca.key'} is not there, and signs the server's certificate; bring it back for this")
    return _write(out, names if server else [], sites, fresh=fresh)


def _write(out: Path, names: list[x509.GeneralName], sites: Sequence[str], *, fresh: bool) -> list[Path]:
    written: list[Path] = []

    def put(path: Path, content: bytes, *, secret: bool = False) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # created with its final mode: at no time can others read a secret
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if secret else 0o644)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        written.append(path)

    if fresh:
        key = ec.generate_private_key(ec.SECP384R1())
        authority = _authority(key)
        put(out / "ca.key", _pem(key), secret=True)
        put(out / "ca.crt", authority.public_bytes(serialization.Encoding.PEM))
    root = (out / "ca.crt").read_bytes()
    if names:
        authority_key = serialization.load_pem_private_key((out / "ca.key").read_bytes(), None)
        if not isinstance(authority_key, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"{out / 'ca.key'} is no ECDSA key; name a folder that this command wrote")
        key = ec.generate_private_key(ec.SECP384R1())
        issued = _server(key, names, authority_key, x509.load_pem_x509_certificate(root))
        put(out / "server" / "server.key", _pem(key), secret=True)
        put(out / "server" / "server.crt", issued.public_bytes(serialization.Encoding.PEM))
    for folder in (*(["server"] if names else []), *sites):
        if not (out / folder / "ca.crt").exists():
            put(out / folder / "ca.crt", root)
    for site in sites:
        key = ec.generate_private_key(ec.SECP384R1())
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
        put(out / site / "site.key", private, secret=True)
        put(out / "server" / "sites" / f"{site}.pub", public + b"\n")
    return written


def read_certificate(path: Path) -> Certificate:
    """Read a PEM certificate. Raises `InputError` for a file that holds none."""
    try:
        certificate = x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} holds no PEM certificate ({error}); write one with `fedrag federate keys`") from error
    try:
        known = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        names = tuple(str(name.value) for name in known)
    except x509.ExtensionNotFound:
        names = ()
    return Certificate(names, certificate.not_valid_before_utc, certificate.not_valid_after_utc, certificate)


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not _HOST.fullmatch(host):
        raise InputError(f"{host!r} is neither an address nor a host name; give it without scheme and port")
    return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _builder(name: str, key: ec.EllipticCurvePublicKey, days: int) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(minutes=5))  # clocks of two machines differ a little
        .not_valid_after(now + timedelta(days=days))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
    )


def _authority(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = "FedRAG deployment authority"
    return (
        _builder(name, key.public_key(), AUTHORITY_DAYS)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )


def _server(
    key: ec.EllipticCurvePrivateKey,
    names: Sequence[x509.GeneralName],
    authority_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate,
) -> x509.Certificate:
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key())
    return (
        _builder("FedRAG server", key.public_key(), SERVER_DAYS)
        .issuer_name(authority.subject)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(issuer, critical=False)
        .sign(authority_key, hashes.SHA384())
    )


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
