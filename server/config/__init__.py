"""config.ini and the environment, made into frozen records; all defaults. Nobody else reads either.

`schema`: keys, defaults, units, reasons and records; `access`, `brokers`, `cluster`, `retention`: those of some
sections. `keys`: how a field of a record is a key. `values`, `access_values`: kinds of values. `reader`: file and
environment. `rules*`: what values mean together. `changes`: what may change while the server runs. `shown`, `editor`:
for the command line. docs/configuration.md is the operator's page.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from server.config.access import TLS, CertificateGrant, HTTPHook, JWTRules, SignIn, SQLLogin
from server.config.cluster import Cluster
from server.config.reader import Reading
from server.config.retention import Retention
from server.config.rules import make_config
from server.config.schema import (
    Application,
    Config,
    Connections,
    Email,
    Limits,
    Log,
    MongoDB,
    Security,
)
from server.errors import InvalidConfig

__all__ = [
    "TLS",
    "Application",
    "CertificateGrant",
    "Cluster",
    "Config",
    "Connections",
    "Email",
    "HTTPHook",
    "JWTRules",
    "Limits",
    "Log",
    "MongoDB",
    "Retention",
    "SQLLogin",
    "Security",
    "SignIn",
    "load",
]


def load(
    path: Path | None, environ: Mapping[str, str], options: Mapping[str, str] = MappingProxyType({})
) -> Config:
    """The settings of the file at `path` (None: no file, all defaults), overridden by the `NOTIFY_…` of
    `environ`, and those by `options`: keys of [APPLICATION] from the command line.

    Relative paths in them are taken from the folder of the file, without a file from the current one. Raises
    InvalidConfig with all problems at once; none of them repeats a secret.
    """
    reading = Reading(path, environ, options)
    reading.read()
    config = make_config(reading)
    if reading.problems:
        raise InvalidConfig(reading.problems)
    return config
