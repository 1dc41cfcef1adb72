"""Tests of server/certificates.py."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path

import pytest

from server.certificates import parse_subject, subject_of

CERTIFICATE = {
    "subject": ((("organizationName", "Example"),), (("commonName", "billing"),)),
    "notAfter": "Dec 31 23:59:59 2099 GMT",
}
"""As `SSLSocket.getpeercert` returns it."""


@pytest.mark.parametrize(
    "text",
    [
        "CN=billing,O=Example",
        "O=Example, CN=billing",
        "commonName=billing,organizationName=Example",
        "cn=billing,o=Example",
    ],
)
def test_a_subject_is_the_same_however_it_is_written(text: str) -> None:
    """Order, blanks after commas, long names and the case of names do not count."""
    assert parse_subject(text) == subject_of(CERTIFICATE)


def test_values_keep_their_case_and_may_hold_anything() -> None:
    """With a backslash in front, what would divide belongs to the value."""
    assert parse_subject(r"CN=Smith\, John,O=a\=b\\c") == (("CN", "Smith, John"), ("O", "a=b\\c"))
    assert parse_subject("CN=Billing") != parse_subject("CN=billing")


def test_values_may_be_written_as_bytes() -> None:
    """As OpenSSL prints names that are not ASCII (RFC 4514 section 2.4); and several attributes in one place."""
    assert parse_subject(r"CN=Ren\C3\A9e\2C x+UID=7") == (("CN", "Renée, x"), ("UID", "7"))
    with pytest.raises(ValueError):
        parse_subject(r"CN=\C3")


@pytest.mark.parametrize(
    "subject",
    [
        "/DC=com/DC=example/O=Example, Inc./OU=René/UID=7/CN=billing",
        "/C=DE/ST=Bayern/L=Rott/street=Am Weg/postalCode=1/CN=x/emailAddress=x@example.org",
        "/GN=Ann/SN=Smith/title=Dr/initials=A/pseudonym=p/serialNumber=42",
        "/jurisdictionC=DE/jurisdictionST=Bayern/jurisdictionL=Rott/businessCategory=Private/CN=x",
        "/dnQualifier=q/generationQualifier=III/organizationIdentifier=N/CN=x",
    ],
)
def test_what_openssl_prints_is_the_subject(tmp_path: Path, subject: str) -> None:
    """By the command of docs/authentication.md."""
    file = tmp_path / "cert.pem"
    new = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-utf8",
    ]
    made = [*new, "-days", "2", "-subj", subject, "-keyout", tmp_path / "key.pem", "-out", file]
    subprocess.run(made, check=True, capture_output=True)
    show = ["openssl", "x509", "-in", file, "-noout", "-subject", "-nameopt", "RFC2253"]
    printed = subprocess.run(show, check=True, capture_output=True, text=True).stdout
    certificate = ssl._ssl._test_decode_cert(str(file))  # type: ignore[attr-defined]  # as `getpeercert` does
    assert parse_subject(printed.strip().removeprefix("subject=")) == subject_of(certificate)


@pytest.mark.parametrize("text", ["", "billing", "CN=", "=billing", "CN=a,,O=b", "CN=a,b", "C N=a"])
def test_what_is_no_subject_is_refused(text: str) -> None:
    """A mistake in config.ini is not taken for somebody."""
    with pytest.raises(ValueError, match="is not a subject"):
        parse_subject(text)


@pytest.mark.parametrize("certificate", [None, {}])
def test_without_a_verified_certificate_there_is_no_subject(certificate: dict[str, object] | None) -> None:
    """`getpeercert` returns nothing, or an empty one for what was not verified."""
    assert subject_of(certificate) is None


def test_one_attribute_more_is_another_subject() -> None:
    """All of it has to be as configured."""
    assert parse_subject("CN=billing,O=Example") != parse_subject("CN=billing")
    assert parse_subject("CN=a,OU=x,OU=y") != parse_subject("CN=a,OU=x")


def test_a_certificate_that_has_expired_since_is_nobodys() -> None:
    """The handshake may be long ago."""
    assert subject_of(CERTIFICATE) is not None
    assert subject_of(CERTIFICATE | {"notAfter": "Jan  1 00:00:00 2020 GMT"}) is None
