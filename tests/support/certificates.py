"""Certificates for tests: an authority of our own, and what it signs."""

from __future__ import annotations

import datetime
import ipaddress
import ssl
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

_PEM = serialization.Encoding.PEM


@dataclass(frozen=True)
class Pair:
    """A certificate and its private key, PEM, a file each."""

    cert: Path
    key: Path

    @property
    def der(self) -> bytes:
        """The certificate as `SSLSocket.getpeercert(binary_form=True)` returns it."""
        return ssl.PEM_cert_to_DER_cert(self.cert.read_text())

    def replace(self, by: Pair) -> None:
        """Write another pair in the place of this one, as the renewal of a certificate does."""
        self.cert.write_bytes(by.cert.read_bytes())
        self.key.write_bytes(by.key.read_bytes())


class CertificateAuthority:
    """An authority of our own, whose certificate lies in `ca_file`."""

    def __init__(self, folder: Path, name: str = "Test authority") -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = _name(name)
        certificate = (
            self._builder(self._name, self._key, valid_days=1)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .add_extension(_key_usage(), critical=True)
            .sign(self._key, hashes.SHA256())
        )
        self.ca_file = folder / "ca.pem"
        self.ca_file.write_bytes(certificate.public_bytes(_PEM))

    def server_pair(
        self, names: Iterable[str] = ("localhost",), valid_days: float = 1, *, file: str = "server"
    ) -> Pair:
        """For a server of these names, and for 127.0.0.1 if one of them is `localhost`. Negative days: expired."""
        names = list(names)
        general: list[x509.GeneralName] = [x509.DNSName(name) for name in names]
        if "localhost" in names:
            general.append(x509.IPAddress(ipaddress.ip_address("127.0.0.1")))
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
        return self._pair(_name(names[0]), valid_days, file, x509.SubjectAlternativeName(general), usage)

    def client_pair(
        self,
        common_name: str,
        organization: str | None = None,
        valid_days: float = 1,
        *,
        file: str = "client",
    ) -> Pair:
        """For a backend of this name."""
        usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
        return self._pair(_name(common_name, organization), valid_days, file, usage)

    def server_context(self, names: Iterable[str] = ("localhost",), valid_days: int = 1) -> ssl.SSLContext:
        """As `server_pair`, ready for use."""
        names = list(names)
        pair = self.server_pair(names, valid_days, file=names[0])
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(pair.cert, pair.key)
        return context

    def client_context(self, pair: Pair | None = None) -> ssl.SSLContext:
        """For clients that trust this authority alone, and show this certificate."""
        context = ssl.create_default_context(cafile=str(self.ca_file))
        if pair is not None:
            context.load_cert_chain(pair.cert, pair.key)
        return context

    def _pair(
        self, subject: x509.Name, valid_days: float, file: str, *extensions: x509.ExtensionType
    ) -> Pair:
        key = ec.generate_private_key(ec.SECP256R1())
        builder = self._builder(subject, key, valid_days)
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        for extension in (*extensions, issuer):
            builder = builder.add_extension(extension, critical=False)
        certificate = builder.sign(self._key, hashes.SHA256())
        pair = Pair(self._folder / f"{file}.pem", self._folder / f"{file}.key")
        pair.cert.write_bytes(certificate.public_bytes(_PEM))
        pair.key.write_bytes(
            key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        )
        return pair

    def _builder(
        self, subject: x509.Name, key: ec.EllipticCurvePrivateKey, valid_days: float
    ) -> x509.CertificateBuilder:
        present = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(present - datetime.timedelta(days=3))
            .not_valid_after(present + datetime.timedelta(days=valid_days))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )


def _name(common_name: str, organization: str | None = None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.COMMON_NAME, common_name)]
    if organization is not None:
        attributes.insert(0, x509.NameAttribute(NameOID.ORGANIZATION_NAME, organization))
    return x509.Name(attributes)


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True, content_commitment=False, key_encipherment=False, data_encipherment=False,
        key_agreement=False, key_cert_sign=True, crl_sign=True, encipher_only=False, decipher_only=False,
    )  # fmt: skip
