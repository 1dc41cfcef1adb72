"""config.ini and the environment: what loads, what is reported, and that file and page tell the truth."""

from __future__ import annotations

import ipaddress
import itertools
import logging
import os
import re
import stat
import tempfile
from dataclasses import replace
from decimal import Decimal
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.config import Config, Email, HTTPHook, JWTRules, MongoDB, SQLLogin, editor, load, values
from server.config.brokers import RabbitMQ, RedisHub
from server.config.keys import Key
from server.config.reader import read_file
from server.config.schema import SECTIONS, Section
from server.config.shown import shown
from server.errors import InvalidConfig
from server.rates import Rate
from tests.support.config import HASH, Folder

ROOT = Path(__file__).resolve().parent.parent

# The sections and keys of a config.ini as webservice-notification's operators have it.
ORIGINAL = """\
; main
[APPLICATION]
configuration=CONFIGURATION
port=8587
limit=30
""" + "".join(
    f"""
[LOG-{form}]
file=./log/server.log
level={level}
[EMAIL-{form}]
; with its port
host=smtp.example.org:587
tls=true
auth=true
login=account
password=correct horse
sender={sender}
[MYSQL-{form}]
host=127.0.0.1
user=root
password=
port=3306
db=shop
table=user
idField=id
loginField=login
passwordField=password
[MONGODB-{form}]
url=mongodb://127.0.0.1/
port=27017
db=ws_notification
"""
    for form, level, sender in (("DEBUG", "DEBUG", "Somebody"), ("RELEASE", "WARN", "shop@example.org"))
)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)


# -- where values come from ----------------------------------------------------------------------------------
def test_without_file_and_environment_all_defaults_are_in_force() -> None:
    """Nothing configured is a DEBUG server on loopback with the embedded store and mails in files."""
    config = load(None, {})
    assert config == Config(
        application=replace(Config().application, data=Path.cwd() / "data", publish_without_key=True)
    )
    assert config.application.address == "127.0.0.1"
    assert not config.release
    assert config.mongodb.url is None
    assert config.email.host == ""


@pytest.mark.parametrize("form", ["DEBUG", "RELEASE"])
def test_a_config_of_the_original_loads_as_it_is(folder: Folder, form: str) -> None:
    """Host with its port, url and port apart, STARTTLS for `tls=true`, everything as it worked there."""
    config = folder.load(ORIGINAL.replace("CONFIGURATION", form))
    assert config.release == (form == "RELEASE")
    assert (config.application.port, config.application.page_limit) == (8587, 30)
    assert config.log.file == folder.path / "log" / "server.log"
    assert config.log.level == (logging.WARNING if config.release else logging.DEBUG)
    email = config.email
    assert (email.host, email.port, email.security) == ("smtp.example.org", 587, "starttls")
    assert (email.login, email.password) == ("account", "correct horse")
    assert config.mongodb == MongoDB(url="mongodb://127.0.0.1:27017/ws_notification")
    assert config.auth.methods == ("config", "sql")
    assert config.sql == SQLLogin(
        url="mysql+asyncmy://root@127.0.0.1:3306/shop", table="user", check="database"
    )


def test_the_environment_wins_over_the_file(folder: Folder) -> None:
    """Key by key, without the section's suffix; a key that is named by neither keeps its default."""
    text = "[APPLICATION]\nport=1000\nlimit=7\n[EMAIL-DEBUG]\nhost=a.example.org"
    config = folder.load(text, NOTIFY_APPLICATION_PORT="2000", NOTIFY_EMAIL_HOST="b.example.org:587")
    assert (config.application.port, config.application.page_limit) == (2000, 7)
    assert (config.email.host, config.email.port) == ("b.example.org", 587)


def test_the_environment_chooses_the_form(folder: Folder) -> None:
    """NOTIFY_APPLICATION_CONFIGURATION decides which sections of the file are in force."""
    text = "[MONGODB-DEBUG]\ndb=one\n[MONGODB-RELEASE]\ndb=two\nurl=embedded"
    assert folder.load(text).mongodb.db == "one"
    assert folder.load(text, NOTIFY_APPLICATION_CONFIGURATION="RELEASE").mongodb.db == "two"


def test_a_section_without_suffix_holds_for_both_forms(folder: Folder) -> None:
    """The form with the suffix wins key by key."""
    config = folder.load("[LIMITS]\nbody_bytes=1 MiB\nfield_bytes=9\n[LIMITS-DEBUG]\nfield_bytes=8")
    assert (config.limits.body_bytes, config.limits.field_bytes) == (1024 * 1024, 8)


def test_every_key_can_be_set_by_its_variable(folder: Folder) -> None:
    """NOTIFY_<SECTION>_<KEY> is known for each key of the schema and is read before the file."""
    for section, key in all_keys():
        variable = f"NOTIFY_{section}_{key.name.upper()}"
        form = f"{section}-DEBUG" if SECTIONS[section].forms else section
        assert folder.problems(f"[{form}]\n{key.name}=\x01", **{variable: "\x02"})[0].startswith(
            f"{variable}: "
        )


def test_nothing_behind_the_equals_sign_means_the_default(folder: Folder) -> None:
    """In the file and in the environment, where it takes back what the file says."""
    text = "[APPLICATION]\nport=\n[EMAIL-DEBUG]\nhost=smtp.example.org\nsender=a@example.org"
    config = folder.load(text, NOTIFY_EMAIL_HOST="")
    assert config.application.port == 8587
    assert config.email.host == ""


def test_keys_are_known_in_any_letter_case_and_users_in_their_own(folder: Folder) -> None:
    """`idfield` is idField; alice and Alice are two users."""
    text = f"[APPLICATION]\nPort=99\n[SQL]\nurl=mysql://h/d\nIDFIELD=nr\n[USERS]\nalice={HASH}\nAlice={HASH}"
    config = folder.load(text)
    assert config.application.port == 99
    assert config.sql is not None
    assert config.sql.id_field == "nr"
    assert dict(config.users) == {"alice": HASH, "Alice": HASH}


def test_users_may_come_from_the_environment(folder: Folder) -> None:
    """With the name as it is, beside and above those of the file."""
    config = folder.load(f"[USERS-DEBUG]\nann={HASH}", NOTIFY_USERS_Bob_1=HASH)
    assert set(config.users) == {"ann", "Bob_1"}


def test_relative_paths_begin_at_the_folder_of_the_file(folder: Folder) -> None:
    """Wherever the server is started; absolute ones stay."""
    text = "[APPLICATION]\ndata=./x\n[LOG]\nfile=y/z.log"
    config = folder.load(text)
    assert config.application.data == folder.path / "x"
    assert config.log.file == folder.path / "y" / "z.log"
    assert folder.load(text, NOTIFY_APPLICATION_DATA="/srv/n").application.data == Path("/srv/n")


def test_a_byte_order_mark_and_windows_lines_are_no_trouble(folder: Folder) -> None:
    """As an editor on Windows leaves them."""
    folder.file.write_bytes("\ufeff[APPLICATION]\r\nport=77\r\napikey=schlüssel\r\n".encode())
    application = load(folder.file, {}).application
    assert (application.port, application.apikey) == (77, "schlüssel")


# -- kinds of values -----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("section", "key", "text", "field", "value"),
    [
        ("APPLICATION", "port", "0", "port", 0),
        ("APPLICATION", "address", "[::1]", "address", "::1"),
        ("APPLICATION", "address", "localhost", "address", "localhost"),
        ("APPLICATION", "apikey", "50%(x)s $HOME ; #", "apikey", "50%(x)s $HOME ; #"),
        ("APPLICATION", "origins", "https://A.example, http://b:3000", "origins", ("https://a.example", "http://b:3000")),
        ("APPLICATION", "origins", "\n  https://a.b\n  https://c.d", "origins", ("https://a.b", "https://c.d")),
        ("APPLICATION", "hosts", "n.example.org,[2001:DB8::1]", "hosts", ("n.example.org", "[2001:db8::1]")),
        (
            "APPLICATION",
            "trusted_proxies",
            "127.0.0.1 10.0.0.0/8, ::1 ::ffff:10.1.0.0/112",
            "trusted_proxies",
            tuple(map(ipaddress.ip_network, ("127.0.0.1/32", "10.0.0.0/8", "::1/128", "10.1.0.0/16"))),
        ),
        ("APPLICATION", "publish_without_key", "off", "publish_without_key", False),
        ("LOG", "level", "INFORMATION", "level", logging.INFO),
        ("LOG", "level", "err", "level", logging.ERROR),
        ("EMAIL", "timeout_s", "2.5", "timeout_s", 2.5),
        ("MONGODB", "legacy_timezone", "Europe/Paris", "legacy_timezone", ZoneInfo("Europe/Paris")),
        ("MONGODB", "collection", "ws_notification", "collection", "ws_notification"),
        ("APPLICATION", "default_tenant", "acme", "default_tenant", "acme"),
        ("APPLICATION", "default_tenant", "NONE", "default_tenant", None),
        ("APPLICATION", "default_tenant", "", "default_tenant", "default"),
        ("LOG", "format", "JSON", "format", "json"),
        ("LIMITS", "requests_per_key", "2000/10s", "requests_per_key", Rate(2000, 10)),
        ("LIMITS", "requests_per_key", "600/m", "requests_per_key", Rate(600, 60)),
        ("LIMITS", "requests_per_key", "100 / 1.5 H", "requests_per_key", Rate(100, 5400)),
        ("LIMITS", "requests_per_key", "5/0.1s", "requests_per_key", Rate(5, 0.1)),
        ("LIMITS", "requests_per_key", "Off", "requests_per_key", None),
        ("LIMITS", "content_bytes", "16 KiB", "content_bytes", 16384),
        ("LIMITS", "content_bytes", "1mib", "content_bytes", 1048576),
        ("CONNECTIONS", "queue_bytes", "300000", "queue_bytes", 300000),
    ],
)  # fmt: skip
def test_values_of_each_kind_are_read(
    folder: Folder, section: str, key: str, text: str, field: str, value: object
) -> None:
    """Each text becomes the value that it means."""
    config = folder.load(f"[{section}]\n{key}={text}")
    assert getattr(getattr(config, section.lower()), field) == value


@pytest.mark.parametrize(
    ("section", "key", "text", "reason"),
    [
        ("APPLICATION", "configuration", "PROD", "'PROD' is none of: debug, release"),
        ("APPLICATION", "port", "eighty", "'eighty' is not a whole number"),
        ("APPLICATION", "port", "70000", "70000 is not within 0 to 65535"),
        ("APPLICATION", "address", "my host", "'my host' is not an address of this machine, such as"),
        ("APPLICATION", "publish_without_key", "perhaps", "'perhaps' is neither true nor false"),
        ("APPLICATION", "origins", "example.org", "'example.org' is not an origin such as https://example.org"),
        ("APPLICATION", "origins", "https://example.org/", "'https://example.org/' is not an origin such as"),
        ("APPLICATION", "origins", "https://a.b:99999", "'https://a.b:99999' is not an origin such as"),
        ("APPLICATION", "origins", "https://\u00fc.example", "'https://\u00fc.example' is not what browsers send"),
        ("APPLICATION", "origins", "* https://a.b", "'*' allows every origin"),
        ("APPLICATION", "hosts", "example.org:80", "'example.org:80' is not a host such as"),
        ("APPLICATION", "hosts", "::1", "'::1' is not a host such as"),
        ("APPLICATION", "trusted_proxies", "nginx", "'nginx' does not appear to be an IPv4 or IPv6 network"),
        ("APPLICATION", "trusted_proxies", "10.0.0.1/8", "10.0.0.1/8 has host bits set"),
        ("APPLICATION", "trusted_proxies", "0.0.0.0/0", "'0.0.0.0/0' is everybody"),
        ("APPLICATION", "trusted_proxies", "::ffff:0:0/96", "'::ffff:0:0/96' is everybody"),
        ("APPLICATION", "internal", "0.0.0.0/0", "'0.0.0.0/0' is everybody; write only whom you mean"),
        ("RETENTION", "documents", "5", "'5' is not a time such as 90d or 12w"),
        ("RETENTION", "documents", "12h", "'12h' is not within 1d to 36500d"),
        ("LOG", "level", "loud", "'loud' is none of: debug, info"),
        ("EMAIL", "port", "0", "0 is not within 1 to 65535"),
        ("EMAIL", "timeout_s", "nan", "'nan' is not a number of seconds"),
        ("EMAIL", "timeout_s", "0", "0 is not within 0.1 to 3600"),
        ("EMAIL", "tls", "ssl", "'ssl' is none of: starttls, tls, none"),
        ("MONGODB", "url", "localhost:27017", "is neither 'embedded' nor an address that begins with mongodb://"),
        ("MONGODB", "db", "a/b", "is not a name that MongoDB takes for a database"),
        ("MONGODB", "collection", "system.users", "is not a name that MongoDB takes for a collection"),
        ("MONGODB", "legacy_timezone", "Mars/Olympus", "'Mars/Olympus' is not a time zone this machine knows"),
        ("MONGODB", "legacy_timezone", "../etc", "'../etc' is not a time zone this machine knows"),
        ("USERS", "ann", "secret", "is not a hash as `notification-server user add` makes it"),
        ("APPLICATION", "default_tenant", "Acme Inc", "'Acme Inc' is not a tenant's name"),
        ("LIMITS", "requests_per_key", "often", "'often' is not a rate such as 5/s, 2000/10s"),
        ("LIMITS", "requests_per_key", "5/d", "'5/d' is not a rate"),
        ("LIMITS", "requests_per_key", "0/s", "0 is not within 1 to 1000000000"),
        ("LIMITS", "requests_per_key", "1/0.05s", "0.05 is not within 0.1 to 86400"),
        ("LIMITS", "requests_per_key", "1/25h", "90000 is not within 0.1 to 86400"),
        ("LIMITS", "body_bytes", "4 megabytes", "'4 megabytes' is not a number of bytes"),
        ("LIMITS", "users_per_request", "-1", "-1 is not within 1 to 100000"),
        ("CONNECTIONS", "heartbeat_s", "soon", "'soon' is not a number of seconds"),
    ],
)  # fmt: skip
def test_values_that_are_none_are_reported(
    folder: Folder, section: str, key: str, text: str, reason: str
) -> None:
    """With file, section, key and what is wrong; the same from the environment, with the variable."""
    problems = folder.problems(f"[{section}]\n{key}={text}")
    assert problems[0].startswith(f"config.ini: [{section}] {key}: {reason}")
    name = key if section == "USERS" else key.upper()
    problems = folder.problems(**{f"NOTIFY_{section}_{name}": text})
    assert problems[0].startswith(f"NOTIFY_{section}_{name}: {reason}")


@given(st.integers(1, 10**9), st.decimals("0.1", 86400, places=3))
def test_a_rate_is_shown_as_it_would_be_written(quota: int, window_s: Decimal) -> None:
    """Whatever its window is."""
    rate = values.RATE.parse(f"{quota}/{window_s}s")
    assert rate == Rate(quota, float(window_s))
    assert values.RATE.parse(values.RATE.show(rate)) == rate


# -- problems ------------------------------------------------------------------------------------------------
def test_all_problems_are_reported_at_once(folder: Folder) -> None:
    """Unknown sections and keys with what was probably meant, bad values, contradictions, of both forms."""
    problems = folder.problems(
        "[APPLICATON]\nport=1\n"
        "[APPLICATION]\nprot=x\nPORT=y\napikey=secret\npublish_without_key=true\n"
        "[EMAIL-DEBUG]\nhost=a.example.org:25\nport=26\n"
        "[EMAIL-RELEASE]\ntls=maybe\nwhatever=1\n"
        "[LOG-RELAESE]\n",
        NOTIFY_EMAIL_HOSTS="x",
        NOTIFY_PORT="1",
        NOTIFY_SOCKET="/run/systemd/notify",
    )
    assert sorted(problems) == [
        "NOTIFY_EMAIL_HOSTS: unknown variable; did you mean NOTIFY_EMAIL_HOST?",
        "NOTIFY_PORT: unknown variable; did you mean NOTIFY_APPLICATION_PORT?",
        "config.ini: [APPLICATION] PORT: 'y' is not a whole number",
        "config.ini: [APPLICATION] prot: unknown key; did you mean port?",
        "config.ini: [APPLICATION] publish_without_key: contradicts the apikey; remove one of them",
        "config.ini: [APPLICATON]: unknown section; did you mean APPLICATION?",
        "config.ini: [EMAIL-DEBUG] port: 26 contradicts port 25 in host",
        "config.ini: [EMAIL-RELEASE] tls: 'maybe' is none of: starttls, tls, none, true, yes, on, 1, false, no, "
        "off, 0",
        "config.ini: [EMAIL-RELEASE] whatever: unknown key",
        "config.ini: [LOG-RELAESE]: unknown section; did you mean LOG-RELEASE?",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"port=1\n", "config.ini: line 1 stands before the first [SECTION]"),
        (b"[LOG]\n\nsecret\n", "config.ini: line 3 is not key=value"),
        (b"[LOG]\nlevel=info\nlevel=info\n", "config.ini: [LOG] level: written twice (line 3)"),
        (b"[LOG]\nlevel=info\nLevel=info\n", "config.ini: [LOG] Level: written twice"),
        (b"[LOG]\n[LOG]\n", "config.ini: [LOG]: written twice (line 2)"),
        (b"[DEFAULT]\nport=1\n", "config.ini: [DEFAULT]: unknown section"),
        (b"[LOG]\nfile=\xe9\n", "config.ini: is not UTF-8 (byte 11)"),
        (
            b"[APPLICATION]\napikey=a\n  port=1\n",
            "config.ini: [APPLICATION] apikey: holds a control character or goes on in the next line (an indented "
            "line does that)",
        ),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_understood_is_one_clear_problem(
    folder: Folder, content: bytes, problem: str
) -> None:
    """With the line, and without what stands in it: that may be a secret."""
    folder.file.write_bytes(content)
    with pytest.raises(InvalidConfig) as caught:
        load(folder.file, {})
    assert str(caught.value).replace(str(folder.file), "config.ini") == problem


def test_a_file_that_cannot_be_read_is_one_clear_problem(tmp_path: Path) -> None:
    """Missing, or no file at all."""
    with pytest.raises(InvalidConfig, match=r"/none\.ini: there is no such file$"):
        load(tmp_path / "none.ini", {})
    with pytest.raises(InvalidConfig, match=r": cannot be read: Is a directory$"):
        load(tmp_path, {})


def test_a_missing_value_without_a_file_is_named_by_its_variable() -> None:
    """There is no other place where it could be written."""
    with pytest.raises(InvalidConfig, match=r"^NOTIFY_MONGODB_URL: is missing; in RELEASE"):
        load(None, {"NOTIFY_APPLICATION_CONFIGURATION": "RELEASE"})


SECRETS = ("top-secret-key", "top-secret-password", "top-secret-hash", "top%40secret")


def test_no_secret_is_repeated(folder: Folder) -> None:
    """Neither in problems nor in the repr nor in what check-config shows, however wrong they are."""
    text = (
        "[APPLICATION]\napikey=top-secret-key\n"
        "[EMAIL]\nhost=smtp.example.org\nlogin=a@example.org\npassword=top-secret-password\n"
        f"[USERS]\nann={HASH}\n"
        f"[JWT]\nsecret={'top-secret-password' * 2}\n"
        "[HOOK]\nurl=https://h.example.org/?k=top-secret-key\nsecret=top-secret-key\n"
        "[MYSQL]\nuser=u\npassword=top-secret-password\ndb=d\ntable=t\nidField=a\nloginField=b\npasswordField=c\n"
        "[MONGODB]\nurl=mongodb://joe:top%40secret@db.example.org/?tlsCertificateKeyFilePassword=top%40secret\n"
    )
    config = folder.load(text)
    said = [repr(config), shown(config), *config.warnings]
    said += folder.problems(text.replace("=top", "=\n top").replace("mongodb://", "top%40secret://"))
    said += folder.problems(text, NOTIFY_USERS_ann="top-secret-hash")
    assert not [secret for secret in (*SECRETS, HASH) for text in said if secret in text]


# -- what values mean together -------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "is_allowed"),
    [
        ("configuration=DEBUG", True),
        ("configuration=DEBUG\npublish_without_key=false", False),
        ("configuration=DEBUG\napikey=k", False),
        ("configuration=RELEASE", False),
        ("configuration=RELEASE\npublish_without_key=true", True),
    ],
)
def test_publishing_without_a_key_must_be_written_out_in_release(
    folder: Folder, text: str, is_allowed: bool
) -> None:
    """In DEBUG it is open to callers on this machine as long as there is no key."""
    config = folder.load(f"[APPLICATION]\n{text}\n[MONGODB]\nurl=embedded")
    assert config.application.publish_without_key is is_allowed


def test_what_may_surprise_is_a_warning(folder: Folder) -> None:
    """Each with file, section and key; the server starts all the same."""
    assert folder.warnings(ORIGINAL.replace("CONFIGURATION", "RELEASE").replace("limit=30", "limit=500")) == [
        "config.ini: [APPLICATION] apikey: is not set, so publishing takes a key of the store; "
        "`notification-server key add` makes one",
        "config.ini: [APPLICATION] limit: 500 is not within 1 to 100; 100 is used",
        "config.ini: [MYSQL-RELEASE]: its users may join, and the database compares their passwords as they are "
        "stored, as the original did; [SQL] with check=hash verifies hashes instead",
    ]
    assert folder.warnings("[APPLICATION]\naddress=0.0.0.0") == [
        "config.ini: [APPLICATION] address: opens a DEBUG server to others (0.0.0.0); configuration=RELEASE is "
        "meant for that"
    ]  # fmt: skip


@pytest.mark.parametrize(("written", "used"), [(-3, 1), (0, 1), (1, 1), (100, 100), (101, 100)])
def test_the_page_limit_is_brought_inside(folder: Folder, written: int, used: int) -> None:
    """As the original clamped it; with a warning only where it had to be."""
    config = folder.load(f"[APPLICATION]\nlimit={written}")
    assert config.application.page_limit == used
    assert bool(config.warnings) == (written != used)


@pytest.mark.parametrize(
    ("text", "host", "port", "security"),
    [
        ("host=m.example.org", "m.example.org", 25, "starttls"),
        ("host=m.example.org:2525", "m.example.org", 2525, "starttls"),
        ("host=m.example.org\nport=587", "m.example.org", 587, "starttls"),
        ("host=m.example.org:587\nport=587", "m.example.org", 587, "starttls"),
        ("host=m.example.org\ntls=false", "m.example.org", 25, "none"),
        ("host=m.example.org\ntls=tls", "m.example.org", 465, "tls"),
        ("host=m.example.org:465", "m.example.org", 465, "tls"),
        ("host=m.example.org:465\ntls=true", "m.example.org", 465, "tls"),
        ("host=localhost", "localhost", 25, "none"),
        ("host=localhost\ntls=true", "localhost", 25, "starttls"),
        ("host=127.0.0.1:2525", "127.0.0.1", 2525, "none"),
        ("host=[2001:db8::1]:587", "2001:db8::1", 587, "starttls"),
        ("host=2001:db8::1", "2001:db8::1", 25, "starttls"),
    ],
)
def test_host_port_and_tls_of_the_mail_server_follow_from_each_other(
    folder: Folder, text: str, host: str, port: int, security: str
) -> None:
    """Encrypted unless told otherwise or on this very machine; 465 is TLS from the first byte."""
    email = folder.load(f"[EMAIL]\n{text}").email
    assert (email.host, email.port, email.security) == (host, port, security)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("host=m.example.org:x", "host: is not a host such as smtp.example.org"),
        ("host=smtp://a:top-secret@m.example.org", "host: is not a host such as smtp.example.org"),
        ("host=m.example.org:99999", "host: 99999 is not a port"),
        ("host=m.example.org:465\ntls=none", "tls: port 465 speaks TLS from the first byte; write tls=tls"),
        ("auth=true", "login: is missing, though auth is true"),
        ("password=x", "login: is missing, though there is a password"),
        ("retry_first_s=7200", "retry_max_s: must lie between retry_first_s and give_up_after_s"),
        ("lease_s=30", "lease_s: must be longer than timeout_s, or a mail in hand is sent by two workers"),
        ("ca=none.pem", "ca: there is no file "),
    ],
)
def test_contradictions_about_mail_are_reported(folder: Folder, text: str, problem: str) -> None:
    """Before the first mail is due."""
    [found] = folder.problems(f"[EMAIL-DEBUG]\n{text}")
    assert found.startswith(f"config.ini: [EMAIL-DEBUG] {problem}")


@pytest.mark.parametrize(
    ("text", "sender"),
    [
        ("sender=Shop <shop@example.org>", "Shop <shop@example.org>"),
        ("sender=Shop\nlogin=shop@example.org", "shop@example.org"),
        ("login=shop@example.org", "shop@example.org"),
    ],
)
def test_the_sender_is_an_address(folder: Folder, text: str, sender: str) -> None:
    """A bare name, as the original took it, gives way to the login if that is an address."""
    assert folder.load(f"[EMAIL]\nhost=m.example.org\n{text}").email.sender == sender


def test_a_sender_that_is_no_address_is_replaced_with_a_warning(folder: Folder) -> None:
    """By one of this machine, so that mail leaves; without a host nobody is told, since none does."""
    [warning] = folder.warnings("[EMAIL]\nhost=m.example.org\nsender=Shop")
    email = folder.load("[EMAIL]\nhost=m.example.org\nsender=Shop").email
    assert warning == f"config.ini: [EMAIL] sender: 'Shop' is not an address; {email.sender} is used"
    assert email.sender.startswith("notifications@")
    assert folder.load("[EMAIL]\nsender=Shop").email.sender == "notifications@localhost"
    assert folder.warnings("[EMAIL]\nsender=Shop") == []


def test_without_auth_login_and_password_are_not_used(folder: Folder) -> None:
    """As in the original, whose files name both all the same."""
    email = folder.load("[EMAIL]\nauth=false\nlogin=a@example.org\npassword=x").email
    assert (email.login, email.password) == ("", "")


def test_a_password_in_the_clear_is_a_warning(folder: Folder) -> None:
    """Unless it stays on this machine."""
    text = "[EMAIL]\nhost=HOST\ntls=none\nlogin=a\npassword=x\nsender=a@example.org"
    assert folder.warnings(text.replace("HOST", "m.example.org")) == [
        "config.ini: [EMAIL] tls: is off, so the password goes to m.example.org in the clear"
    ]
    assert folder.warnings(text.replace("HOST", "localhost")) == []


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("url=embedded", None),
        ("url=EMBEDDED", None),
        ("url=", None),
        ("url=mongodb://h/\nport=1", "mongodb://h:1/ws_notification"),
        ("url=mongodb://h/", "mongodb://h/ws_notification"),
        ("url=mongodb://h", "mongodb://h"),
        ("url=mongodb://h:2/x\nport=1", "mongodb://h:2/x"),
        ("url=mongodb://h\nport=1", "mongodb://h:1"),
        ("url=mongodb://a,b:2,[::1],[::1]:3/?w=1\nport=1", "mongodb://a:1,b:2,[::1]:1,[::1]:3/?w=1"),
        ("url=mongodb://u:p@h/\nport=1\ndb=x", "mongodb://u:p@h:1/x"),
        ("url=mongodb://h/?appName=a@b\nport=1", "mongodb://h:1/?appName=a@b"),
        ("url=mongodb://%2Ftmp%2Fm.sock\nport=1", "mongodb://%2Ftmp%2Fm.sock"),
        ("url=mongodb+srv://h.example.org", "mongodb+srv://h.example.org"),
    ],
)
def test_the_address_of_mongodb_is_completed_as_the_original_did(
    folder: Folder, text: str, url: str | None
) -> None:
    """`port` for the hosts that name none, `db` behind a slash at the end."""
    assert folder.load(f"[MONGODB]\n{text}").mongodb.url == url


def test_mongodb_by_dns_has_no_port(folder: Folder) -> None:
    """The ports of mongodb+srv:// stand in the DNS."""
    assert folder.problems("[MONGODB]\nurl=mongodb+srv://h.example.org\nport=1") == [
        "config.ini: [MONGODB] port: contradicts the url: DNS names the ports behind mongodb+srv://"
    ]


def test_where_mongodb_looks_its_user_up_is_said(folder: Folder) -> None:
    """A trailing slash means the db, as in the original, and most users are in admin."""
    assert folder.warnings("[MONGODB]\nurl=mongodb://u:p@h/") == [
        "config.ini: [MONGODB] url: its user is looked up in ws_notification, as the original did; another: "
        "?authSource=admin"
    ]
    assert folder.warnings("[MONGODB]\nurl=mongodb://u:p@h/?authSource=admin") == []


def test_the_embedded_store_must_be_written_out_in_release(folder: Folder) -> None:
    """An empty url is the embedded store in DEBUG only."""
    assert folder.problems("[APPLICATION]\nconfiguration=RELEASE\n[MONGODB-RELEASE]\nurl=") == [
        "config.ini: [MONGODB-RELEASE] url: is missing; in RELEASE write MongoDB's address, or url=embedded if that is "
        "meant"
    ]  # fmt: skip
    config = folder.load("[APPLICATION]\nconfiguration=RELEASE\n[MONGODB-RELEASE]\nurl=embedded")
    assert config.mongodb.url is None


def test_the_publishing_port_is_one_of_its_own(folder: Folder) -> None:
    """At the same address; and any free one is."""
    for ports in ("port=1\npublish_port=1", "port=1\nalso_listen=2 3\npublish_port=3"):
        assert folder.problems(f"[APPLICATION]\n{ports}") == [
            "config.ini: [APPLICATION] publish_port: is one of port and also_listen; it takes one of its own"
        ]
    for ports in ("port=0\npublish_port=0", "port=1\npublish_port=1\npublish_address=::1"):
        folder.load(f"[APPLICATION]\n{ports}")


@pytest.mark.parametrize("key", ["content_bytes", "field_bytes", "data_bytes"])
def test_a_limit_that_cannot_be_reached_is_reported(folder: Folder, key: str) -> None:
    """A text cannot be longer than the body it comes in."""
    limits = {"body_bytes": "1 KiB", "content_bytes": "9", "field_bytes": "9", "data_bytes": "9"}
    limits[key] = "2 KiB"
    text = "\n".join(f"{name}={value}" for name, value in limits.items())
    assert folder.problems(f"[LIMITS]\n{text}") == [
        f"config.ini: [LIMITS] {key}: is more than body_bytes, so that it can never be reached"
    ]


# -- what is shown -------------------------------------------------------------------------------------------
def test_what_is_shown_loads_as_the_same_configuration(folder: Folder) -> None:
    """It is a config.ini of every key that decides anything, when no secret has to be masked."""
    text = """
[APPLICATION]
port=1
origins=https://a.b, https://c.d
trusted_proxies=10.0.0.0/8
default_tenant=none
[LOG]
level=warning
[EMAIL]
host=m.example.org:587
tls=true
login=a@example.org
[MONGODB]
legacy_timezone=Europe/Paris
[LIMITS]
content_bytes=1000
requests_per_key=off
requests_per_address=1/2.5s
[CONNECTIONS]
heartbeat_s=0.5
[CERTIFICATES]
billing=acme publish,admin O=Example,CN=billing
[TLS]
cert=config.ini
key=config.ini
client_ca=config.ini
[JWT]
secret=
key=config.ini
audience=here
[SERVICE_JWT]
jwks=http://[::1]:8000/keys
audience=here
issuer=there
[MYSQL]
db=shop
table=user
idField=nr
loginField=login
passwordField=password
[HOOK]
url=http://localhost/join
"""
    config = folder.load(text)
    assert config.tls and config.jwt and config.service_jwt and config.sql and config.hook
    again = folder.load(shown(config))
    assert replace(again, warnings=()) == replace(config, warnings=())


def test_secrets_are_masked_and_show_whether_they_are_set(folder: Folder) -> None:
    """Of MongoDB's address, what says where it leads stays."""
    url = "mongodb://joe:s@cret@h.example.org:1/x?authSource=admin"
    lines = shown(folder.load(f"[APPLICATION]\napikey=s\n[USERS]\nann={HASH}\n[MONGODB]\nurl={url}")).split(
        "\n"
    )
    assert "apikey = ***" in lines
    assert "password =" in lines
    assert "ann = ***" in lines
    assert "url = mongodb://***@h.example.org:1/x?***" in lines


# -- the editor ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "[U]\nann = 2\n"),
        ("[A]\nb=1", "[A]\nb=1\n\n[U]\nann = 2\n"),
        ("[U]\n; c\nbob=1\n\n; about B\n[B]\nc=d\n", "[U]\n; c\nbob=1\nann = 2\n\n; about B\n[B]\nc=d\n"),
        ("[U]\n\n\n[B]\n", "[U]\nann = 2\n\n\n[B]\n"),
        ("[U]\nann=1\nAnn=3\n", "[U]\nann = 2\nAnn=3\n"),
        ("[A]\nann=1\n[U]\nann : 1\n", "[A]\nann=1\n[U]\nann = 2\n"),
        ("\ufeff[U]\r\nann=1\r\n", "\ufeff[U]\r\nann = 2\r\n"),
        ("[U]\nx=1\n  ann=1\n", "[U]\nx=1\n  ann=1\nann = 2\n"),
    ],
)
def test_a_line_is_put_into_its_section_and_nothing_else_changes(
    folder: Folder, before: str, after: str
) -> None:
    """In place of the one that was there, else at the end of the section, else in a new section."""
    folder.file.write_bytes(before.encode())
    editor.put(folder.file, "U", "ann", "2")
    assert folder.file.read_bytes().decode() == after


def test_a_file_is_replaced_whole_and_keeps_its_mode(folder: Folder) -> None:
    """Also behind a symbolic link; nothing is left beside it."""
    folder.file.write_text("[U]\n")
    folder.file.chmod(0o640)
    (folder.path / "links").mkdir()
    link = folder.path / "links" / "config.ini"
    link.symlink_to(folder.file)
    editor.put(link, "U", "ann", "2")
    assert link.is_symlink()
    assert folder.file.read_text() == "[U]\nann = 2\n"
    assert stat.S_IMODE(folder.file.stat().st_mode) == 0o640
    assert sorted(os.listdir(folder.path)) == ["config.ini", "links"]


def test_a_change_that_would_change_more_is_refused(folder: Folder) -> None:
    """Here the value that is replaced goes on in the next line."""
    before = "[U]\nann=1\n  2\n"
    folder.file.write_text(before)
    with pytest.raises(InvalidConfig, match="change it yourself"):
        editor.put(folder.file, "U", "ann", "3")
    assert folder.file.read_text() == before


def test_a_file_that_cannot_be_replaced_stays_as_it_was(
    folder: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is left beside it, and the reason is said."""
    folder.file.write_text("[U]\n")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(InvalidConfig, match=r"config\.ini: cannot be written: No space left on device$"):
        editor.put(folder.file, "U", "ann", "2")
    assert folder.file.read_text() == "[U]\n"
    assert os.listdir(folder.path) == ["config.ini"]


@pytest.mark.parametrize(
    "name", ["ann", "Ann Lee", "a@example.org", "ünïcödé 😀", "a#b", "[a", "%(x)s", "a;b"]
)
def test_names_that_come_back_can_be_keys(name: str) -> None:
    """What is written into the file is what is read from it."""
    assert editor.can_be_key(name)


@pytest.mark.parametrize(
    "name", ["", " ann", "ann ", "a=b", "a:b", "#a", ";a", "[a]", "a\nb", "a\x00", "\udce9"]
)
def test_names_that_do_not_come_back_cannot_be_keys(name: str) -> None:
    """They would be another key, a comment, a section or nothing."""
    assert not editor.can_be_key(name)


@given(st.text(st.characters(codec="utf-8"), max_size=12) | st.text("ab =:#;[]%\t\n\u00a0", max_size=6))
def test_a_name_that_can_be_a_key_can_be_put(name: str) -> None:
    """Beside any other, and is read as it was written."""
    if not editor.can_be_key(name):
        return
    with tempfile.TemporaryDirectory() as path:
        file = Path(path) / "config.ini"
        file.write_text(f"[USERS-DEBUG]\nzoe={HASH}\n[LOG-DEBUG]\nlevel=warn\n", "utf-8")
        editor.put(file, "USERS-DEBUG", name, HASH)
        config = load(file, {})
    assert dict(config.users) == {"zoe": HASH, name: HASH}
    assert config.log.level == logging.WARNING


# -- the shipped file and the page ---------------------------------------------------------------------------
def all_keys() -> list[tuple[str, Key]]:
    return [(section.name, key) for section in SECTIONS.values() for key in section.keys.values()]


@pytest.mark.parametrize("form", ["DEBUG", "RELEASE"])
def test_the_shipped_file_states_the_defaults(form: str) -> None:
    """Whoever reads it knows what happens without it."""
    environ = {"NOTIFY_APPLICATION_CONFIGURATION": form, "NOTIFY_MONGODB_URL": "embedded"}
    shipped, defaults = load(ROOT / "config.ini", environ), load(None, environ)
    data = replace(defaults.application, data=ROOT / "data")
    assert replace(shipped, file=None, warnings=()) == replace(defaults, application=data, warnings=())
    assert load(ROOT / "config.ini", {"NOTIFY_APPLICATION_CONFIGURATION": form}) == shipped


def test_the_examples_in_the_shipped_file_can_be_used() -> None:
    """A line `;key=value` is a key of its section with a value that it takes."""
    section, examples = "", 0
    for line in (ROOT / "config.ini").read_text("utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]").partition("-")[0]
        elif match := re.fullmatch(r";(\S+?)=(.*)", line):
            SECTIONS[section].keys[match[1].lower()].kind.parse(match[2])
            examples += 1
    assert examples > 10
    assert set(read_file(ROOT / "config.ini")) >= {"APPLICATION", "LOG-DEBUG", "USERS-RELEASE"}


def documented() -> list[tuple[str, str, str, str]]:
    """The rows of all tables of the page: section, key with its mark, default, variable."""
    rows, section = [], ""
    for line in (ROOT / "docs" / "configuration.md").read_text("utf-8").splitlines():
        if match := re.match(r"## \[([A-Z_]+)", line):
            section = match[1]
        elif match := re.fullmatch(r"\| (`\w+`(?: ↻)?) \| ([^|]+) \| `(\w+)` \| ([^|]{5,}) \|", line):
            rows.append((section, match[1], match[2], match[3]))
    return rows


def test_the_page_has_every_key_with_its_default_and_its_variable() -> None:
    """None missing, none too many, and with the mark of those that can change while the server runs."""
    expected = [
        (
            section,
            f"`{key.name}`{' ↻' * key.live}",
            key.default or "–",
            f"NOTIFY_{section}_{key.name.upper()}",
        )
        for section, key in all_keys()
    ]
    assert sorted(documented()) == sorted(expected)


def test_the_page_has_the_keys_in_one_table_per_section() -> None:
    """Every section that can be written has its chapter."""
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    chapters = re.findall(r"^## \[([A-Z_]+)(-…)?\]$", page, re.MULTILINE)
    assert {name: bool(forms) for name, forms in chapters} == {s.name: s.forms for s in SECTIONS.values()}
    sections = [section for section, *_ in documented()]
    assert len(list(itertools.groupby(sections))) == len(set(sections))


@pytest.mark.parametrize("section", [s for s in SECTIONS.values() if s.any_key])
def test_the_page_says_of_a_section_of_names_whether_it_is_live(section: Section) -> None:
    """As a sentence, since it has no table of keys."""
    page = (ROOT / "docs" / "configuration.md").read_text("utf-8")
    chapter = page.partition(f"\n## [{section.name}-…]\n")[2].partition("\n## ")[0]
    assert section.any_key is not None
    assert ("\n↻ All of this can change while the server runs." in chapter) is section.any_key.live


def test_defaults_that_are_shown_are_those_in_force() -> None:
    """A default that does not depend on anything reads back as the default of its field."""
    config = load(None, {})
    notes = {"data", "publish_without_key", "sender", "url", "port", "tls", "methods", "algorithms", "check"}
    notes.add("backplane")
    unset = {"JWT": JWTRules(), "SERVICE_JWT": JWTRules(), "SQL": SQLLogin(), "HOOK": HTTPHook()}
    unset |= {"REDIS_HUB": RedisHub(), "RABBITMQ": RabbitMQ()}
    for section, key in all_keys():
        if key.field and key.default and key.name not in notes:
            record = getattr(config, section.lower()) or unset[section]
            assert key.kind.parse(key.default) == getattr(record, key.field), key.name
    assert config.email == Email()


def test_several_workers_tell_each_other_over_what_they_share() -> None:
    """Over MongoDB, unless something else is written; the command line wins."""
    shared = {"NOTIFY_MONGODB_URL": "mongodb://db", "NOTIFY_APPLICATION_WORKERS": "4"}
    assert load(None, shared).cluster.backplane == "mongodb"
    assert load(None, shared, {"workers": "1"}).cluster.backplane == "local"
    assert load(None, shared, {"workers": "1"}).application.workers == 1
    redis = {"NOTIFY_CLUSTER_BACKPLANE": "redis", "NOTIFY_CLUSTER_REDIS_URL": "redis://cache"}
    assert load(None, shared | redis).cluster.backplane == "redis"


@pytest.mark.parametrize(
    ("environ", "workers", "problem"),
    [
        pytest.param({}, "2", "--workers: 2 workers need a store that they can share", id="embedded"),
        pytest.param(
            {"NOTIFY_MONGODB_URL": "mongodb://db", "NOTIFY_CLUSTER_BACKPLANE": "local"},
            "2",
            "NOTIFY_CLUSTER_BACKPLANE: local is for one process, and there are 2 workers",
            id="local",
        ),
        pytest.param({}, "0", "--workers: 0 is not within 1 to 64", id="none"),
        pytest.param({}, "many", "--workers: 'many' is not a whole number", id="words"),
    ],
)
def test_workers_that_could_not_be(environ: dict[str, str], workers: str, problem: str) -> None:
    """One sentence that names what was written."""
    with pytest.raises(InvalidConfig) as caught:
        load(None, environ, {"workers": workers})
    [found] = caught.value.problems
    assert found.startswith(problem)
