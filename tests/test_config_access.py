"""The settings about who gets in: what loads, what is reported, and what a running server can take over."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from server.config import Config, HTTPHook, JWTRules, SignIn
from server.config.changes import Changes, changed_keys, with_live_keys
from server.config.rules_access import MIN_SECRET_BYTES
from server.config.shown import shown
from server.grants import Scope
from tests.support.config import HASH, Folder

SECRET = "x" * MIN_SECRET_BYTES

RELEASE = "[APPLICATION]\nconfiguration=RELEASE\napikey=k\n{}\n[MONGODB]\nurl=embedded\n"

MYSQL = {"db": "shop", "table": "user", "idField": "id", "loginField": "login", "passwordField": "password"}


def section(name: str, **keys: str) -> str:
    return f"[{name}]\n" + "".join(f"{key}={value}\n" for key, value in keys.items())


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """With the files that the settings of these tests name."""
    for name in ("cert.pem", "key.pem", "ca.pem", "keys.json", "users.db"):
        (tmp_path / name).touch()
    return Folder(tmp_path)


def test_nothing_about_access_is_configured_by_default(folder: Folder) -> None:
    """No TLS, no tokens, no database, no hook: the users of config.ini only."""
    config = folder.load()
    assert (config.tls, config.jwt, config.service_jwt, config.sql, config.hook) == (None,) * 5
    assert (config.certificates, config.auth) == ((), SignIn())


# -- TLS and certificates ------------------------------------------------------------------------------------
def test_tls_takes_a_pair_of_files(folder: Folder) -> None:
    """Paths begin at the folder of the file."""
    tls = folder.load("[TLS]\ncert=cert.pem\nkey=key.pem\nclient_ca=ca.pem").tls
    assert tls is not None
    assert (tls.cert, tls.key) == (folder.path / "cert.pem", folder.path / "key.pem")
    assert tls.client_ca == folder.path / "ca.pem"
    tls = folder.load("[TLS]\ncert=cert.pem\nkey=key.pem").tls
    assert tls is not None
    assert tls.client_ca is None


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cert=cert.pem", "key: is missing; TLS takes both cert and key"),
        ("key=key.pem", "cert: is missing; TLS takes both cert and key"),
        ("cert=none.pem\nkey=key.pem", "cert: there is no file {folder}/none.pem"),
        ("cert=cert.pem\nkey=key.pem\nclient_ca=.", "client_ca: there is no file {folder}"),
    ],
)
def test_tls_that_cannot_work_is_reported(folder: Folder, text: str, problem: str) -> None:
    """Before anybody connects."""
    assert folder.problems(f"[TLS]\n{text}") == [f"config.ini: [TLS] {problem.format(folder=folder.path)}"]


def test_a_key_that_cannot_be_read_is_reported(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of root's, before the server has begun."""
    monkeypatch.setattr("os.access", lambda path, _: Path(path).name != "key.pem")
    [problem] = folder.problems("[TLS]\ncert=cert.pem\nkey=key.pem")
    assert problem.startswith("config.ini: [TLS] key: ")
    assert problem.endswith("key.pem cannot be read by the user that this server runs as")


TLS = "[TLS]\ncert=cert.pem\nkey=key.pem\nclient_ca=ca.pem\n"


def test_certificates_grant_scopes_of_a_tenant(folder: Folder) -> None:
    """In the order of the file; a subject may hold blanks and escaped commas."""
    text = "billing=acme publish CN=billing,O=Example\nOps=default admin,publish CN=Ops team,O=A\\, B"
    billing, ops = folder.load(f"{TLS}[CERTIFICATES]\n{text}").certificates
    assert (billing.name, billing.tenant, billing.subject) == ("billing", "acme", "CN=billing,O=Example")
    assert billing.scopes == {Scope.PUBLISH}
    assert (ops.name, ops.subject) == ("Ops", "CN=Ops team,O=A\\, B")
    assert ops.scopes == {Scope.ADMIN, Scope.PUBLISH}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("acme publish", "'acme publish' is not `tenant scopes subject`, such as"),
        ("Acme publish CN=a", "'Acme' is not a tenant's name"),
        ("none publish CN=a", "'none' is not a tenant's name"),
        ("acme publish,write CN=a", "'write' is none of: publish, listen, admin, broadcasts"),
        ("acme publish billing", "'billing' is not a subject such as CN=billing,O=Example"),
        ("acme publish CN=a,", "'CN=a,' is not a subject such as"),
        ("acme publish CN=", "'CN=' is not a subject such as"),
    ],
)
def test_certificates_that_grant_nothing_are_reported(folder: Folder, text: str, problem: str) -> None:
    """With what is wrong."""
    [found] = folder.problems(f"{TLS}[CERTIFICATES]\nbilling={text}")
    assert found.startswith(f"config.ini: [CERTIFICATES] billing: {problem}")


def test_a_subject_means_one_thing(folder: Folder) -> None:
    """Its attributes may stand in another order."""
    text = "a=acme publish CN=x,O=y\nb=other publish O=y,CN=x"
    assert folder.problems(f"{TLS}[CERTIFICATES]\n{text}") == [
        "config.ini: [CERTIFICATES] b: has the same subject as a"
    ]


def test_certificates_need_an_authority(folder: Folder) -> None:
    """Else nobody's would ever be asked for."""
    text = "[CERTIFICATES]\na=acme publish CN=x\n[TLS]\ncert=cert.pem\nkey=key.pem\n"
    assert folder.problems(text) == [
        "config.ini: [TLS] client_ca: is missing, though [CERTIFICATES] says what clients' certificates allow"
    ]


# -- methods -------------------------------------------------------------------------------------------------
ALL_METHODS = (
    f"[HOOK]\nurl=https://h.example.org/\n[SQL]\nurl=mysql://h/d\n[JWT]\nsecret={SECRET}\naudience=us\n"
)


def test_every_method_that_is_configured_is_asked(folder: Folder) -> None:
    """The cheap and local ones first, unless the order is written."""
    assert folder.load(ALL_METHODS).auth.methods == ("config", "jwt", "sql", "hook")
    config = folder.load(f"{ALL_METHODS}[AUTH]\nmethods=hook, SQL\n config hook jwt")
    assert config.auth.methods == ("hook", "sql", "config", "jwt")


def test_a_method_must_be_configured(folder: Folder) -> None:
    """And must exist."""
    assert folder.problems("[AUTH]\nmethods=config hook") == [
        "config.ini: [AUTH] methods: names hook, but nothing stands in [HOOK]"
    ]
    assert folder.problems("[AUTH]\nmethods=ldap") == [
        "config.ini: [AUTH] methods: 'ldap' is none of: config, sql, jwt, hook"
    ]


def test_what_is_configured_and_not_asked_is_a_warning(folder: Folder) -> None:
    """Also users of the file."""
    text = f"[USERS]\nann={HASH}\n[JWT]\nsecret={SECRET}\naudience=us\n{section('MYSQL', **MYSQL)}"
    assert folder.warnings(f"{text}[AUTH]\nmethods=jwt")[1:] == [
        "config.ini: [USERS]: is not used, since [AUTH] methods does not name config",
        "config.ini: [MYSQL]: is not used, since [AUTH] methods does not name sql",
    ]
    assert folder.warnings(f"[JWT]\nsecret={SECRET}\naudience=us\n[AUTH]\nmethods=jwt") == []


def test_a_server_that_nobody_can_join_by_themselves_is_a_warning(folder: Folder) -> None:
    """In RELEASE, where no demo user exists, unless another method is configured: tokens of its own are left."""
    [warning] = folder.warnings(RELEASE.format(""))
    assert warning.startswith("config.ini: [USERS-RELEASE]: is empty, so users join only with tokens ")
    assert folder.warnings(RELEASE.format("") + f"[JWT]\nsecret={SECRET}\naudience=us") == []


def test_users_without_a_tenant_are_a_warning(folder: Folder) -> None:
    """They are refused where there is no default tenant."""
    text = f"[APPLICATION]\ndefault_tenant=none\n[USERS]\nann={HASH}\n[SQL]\nurl=mysql://h/d\n"
    assert folder.warnings(text) == [
        "config.ini: [APPLICATION] default_tenant: is none, so those of [USERS] cannot join",
        "config.ini: [SQL]: its users cannot join without a tenantField: default_tenant is none",
    ]
    assert len(folder.warnings(f"{text}tenantField=tenant")) == 1


# -- tokens --------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["JWT", "SERVICE_JWT"])
def test_the_algorithms_follow_from_the_key(folder: Folder, name: str) -> None:
    """A public key is never taken for the secret of HS256."""

    def rules(text: str) -> JWTRules:
        config = folder.load(f"[{name}]\naudience=us\n{text}")
        found = config.jwt if name == "JWT" else config.service_jwt
        assert found is not None
        return found

    assert rules(f"secret={SECRET}").algorithms == ("HS256",)
    assert rules("key=key.pem").algorithms == ("RS256", "ES256")
    assert rules("key=key.pem").key == folder.path / "key.pem"
    assert rules("jwks=keys.json\nalgorithms=es256") == JWTRules(
        algorithms=("ES256",), jwks=str(folder.path / "keys.json"), audience="us"
    )
    assert rules("jwks=https://l.example.org/keys").jwks == "https://l.example.org/keys"
    assert rules("jwks=http://127.0.0.1:8000/keys").jwks == "http://127.0.0.1:8000/keys"


@pytest.mark.parametrize("name", ["JWT", "SERVICE_JWT"])
@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("issuer=x", "", "tells no tokens apart; write one of secret, key and jwks"),
        (f"secret={SECRET}\nkey=key.pem", "key", "contradicts secret; write one of secret, key and jwks"),
        ("key=key.pem\njwks=keys.json", "jwks", "contradicts key; write one of secret, key and jwks"),
        (f"secret={SECRET[1:]}", "secret", "has less than 32 bytes (RFC 7518 section 3.2), so that"),
        ("key=none.pem", "key", "there is no file "),
        ("jwks=none.json", "jwks", "there is no file "),
        ("jwks=http://l.example.org/k", "jwks", "must be https, since who changes it on its way"),
        ("jwks=ftp://l.example.org/k", "jwks", "is neither a file nor an address such as"),
        ("jwks=https://a:b@l.example.org/k", "jwks", "is neither a file nor an address such as"),
        ("key=key.pem\nalgorithms=HS256 RS256", "algorithms", "HS256 does not fit key, only RS256 and ES256"),
        ("jwks=keys.json\nalgorithms=HS256", "algorithms", "HS256 does not fit jwks, only RS256 and ES256"),
        (f"secret={SECRET}\nalgorithms=RS256", "algorithms", "RS256 does not fit secret, only HS256 would"),
        (f"secret={SECRET}\nalgorithms=none", "algorithms", "'none' is none of: HS256, RS256, ES256"),
    ],
)
def test_rules_that_believe_nothing_or_too_much_are_reported(
    folder: Folder, name: str, text: str, key: str, problem: str
) -> None:
    """Exactly one key, strong, of a kind that fits, from a place that nobody can change."""
    [found] = folder.problems(f"[{name}]\n{text}")
    assert found.startswith(f"config.ini: [{name}] {key}".rstrip() + f": {problem}")


def test_tokens_for_others_are_a_warning(folder: Folder) -> None:
    """Unless their audience is looked at, or the secret is ours and the issuer is."""
    warning = (
        "config.ini: [JWT] audience: is not set, so a token that the same key signed for another service counts "
        "here too"
    )
    assert folder.warnings(f"[JWT]\nsecret={SECRET}") == [warning]
    assert folder.warnings("[JWT]\nkey=key.pem\nissuer=x") == [warning]
    assert folder.warnings("[JWT]\nkey=key.pem\naudience=x") == []
    assert folder.warnings(f"[JWT]\nsecret={SECRET}\nissuer=x") == []


# -- SQL -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("written", "complete"),
    [
        ("mysql://u:p@h:3307/d", "mysql+asyncmy://u:p@h:3307/d"),
        ("mysql+asyncmy://h/d", "mysql+asyncmy://h/d"),
        ("mariadb://h/d", "mariadb+asyncmy://h/d"),
        ("postgresql://u:p%40@[::1]/d?ssl=require", "postgresql+asyncpg://u:p%40@[::1]/d?ssl=require"),
        ("sqlite:///users.db", "sqlite+aiosqlite:///{folder}/users.db"),
        ("sqlite+aiosqlite:///{folder}/users.db", "sqlite+aiosqlite:///{folder}/users.db"),
        ("sqlite:///./users.db?timeout=1", "sqlite+aiosqlite:///{folder}/users.db?timeout=1"),
    ],
)
def test_the_address_of_the_database_is_completed(folder: Folder, written: str, complete: str) -> None:
    """With the driver that does not block; a relative path begins at the folder of the file."""
    sql = folder.load(f"[SQL]\nurl={written.format(folder=folder.path)}").sql
    assert sql is not None
    assert sql.url == complete.format(folder=folder.path)
    assert (sql.check, sql.tenant_field) == ("hash", None)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("table=users", "url: is missing, so there is no database to ask"),
        (
            "url=oracle://u:top-secret@h/d",
            "url: does not begin with one of: mysql://, mariadb://, postgresql://",
        ),
        ("url=shop.example.org", "url: does not begin with one of: mysql://"),
        ("url=mysql://", "url: names no database"),
        ("url=mysql+pymysql://u:top-secret@h/d", "url: needs the driver asyncmy; leave it out"),
        ("url=sqlite://", "url: names no file; write sqlite:///users.db"),
        ("url=sqlite:///", "url: names no file; write sqlite:///users.db"),
        ("url=sqlite:///:memory:", "url: names no file"),
        ("url=sqlite://users.db", "url: names no file"),
        ("url=sqlite:///none.db", "url: there is no file "),
        ("url=mysql://h/d\ntable=users;--", "table: is not a table's name, with or without its schema"),
        ("url=mysql://h/d\ntable=a.b.c", "table: is not a table's name, with or without its schema"),
        ("url=mysql://h/d\nidField=users.id", "idField: is not a column's name"),
        (f"url=mysql://h/d\nidField={'a' * 65}", "idField: is not a column's name"),
        ("url=mysql://h/d\nloginField=1st", "loginField: is not a column's name"),
        ("url=mysql://h/d\ncheck=plain", "check: 'plain' is none of: hash, database"),
    ],
)
def test_a_database_that_cannot_be_asked_is_reported(folder: Folder, text: str, problem: str) -> None:
    """Without repeating a password."""
    [found] = folder.problems(f"[SQL]\n{text}")
    assert found.startswith(f"config.ini: [SQL] {problem}")
    assert "top-secret" not in found


def test_names_in_the_database_may_be_as_long_as_it_takes_them(folder: Folder) -> None:
    """64 characters a part, the table with its schema."""
    sql = folder.load(f"[SQL]\nurl=mysql://h/d\ntable={'s' * 64}.{'t' * 64}\nidField=_Id2").sql
    assert sql is not None
    assert (sql.table, sql.id_field) == (f"{'s' * 64}.{'t' * 64}", "_Id2")


def test_comparing_in_the_database_is_a_warning(folder: Folder) -> None:
    """It only works with passwords in plain text."""
    [warning] = folder.warnings("[SQL]\nurl=mysql://h/d\ncheck=database")
    assert warning.startswith("config.ini: [SQL] check: database compares passwords as they are stored")


@pytest.mark.parametrize(
    ("keys", "url"),
    [
        ({}, "mysql+asyncmy://127.0.0.1:3306/shop"),
        ({"host": "db.example.org", "port": "3307"}, "mysql+asyncmy://db.example.org:3307/shop"),
        ({"host": "::1", "user": "root"}, "mysql+asyncmy://root@[::1]:3306/shop"),
        (
            {"user": "a@b:c", "password": "p/w@h:1?x#y%+ z"},
            "mysql+asyncmy://a%40b%3Ac:p%2Fw%40h%3A1%3Fx%23y%25%2B%20z@127.0.0.1:3306/shop",
        ),
    ],
)
def test_the_mysql_of_the_original_is_a_login_by_sql(folder: Folder, keys: dict[str, str], url: str) -> None:
    """Whatever user and password hold."""
    sql = folder.load(section("MYSQL", **MYSQL, **keys)).sql
    assert sql is not None
    assert (sql.url, sql.check) == (url, "database")
    assert (sql.table, sql.id_field, sql.login_field) == ("user", "id", "login")


def test_the_library_reads_the_address_as_it_was_meant(folder: Folder) -> None:
    """User, password and host come back as the operator wrote them."""
    sqlalchemy = pytest.importorskip("sqlalchemy")
    password = "p/w@h:1?x#y%+ z\u00e9"
    sql = folder.load(section("MYSQL", **MYSQL, host="::1", user="a@b:c", password=password)).sql
    assert sql is not None
    url = sqlalchemy.make_url(sql.url)
    assert (url.username, url.password, url.host, url.port) == ("a@b:c", password, "::1", 3306)
    assert (url.drivername, url.database) == ("mysql+asyncmy", "shop")


@pytest.mark.parametrize("name", MYSQL)
def test_an_incomplete_mysql_is_not_used(folder: Folder, name: str) -> None:
    """Such as the original's example that nobody filled in; a warning says what is not set."""
    text = section("MYSQL", **MYSQL | {name: ""}, host="localhost", user="root")
    config = folder.load(text)
    assert (config.sql, config.auth.methods) == (None, ("config",))
    assert folder.warnings(text) == [f"config.ini: [MYSQL]: is not used, since {name} is not set"]


def test_mysql_and_sql_contradict_each_other(folder: Folder) -> None:
    """Nobody could tell which is asked."""
    assert folder.problems(section("MYSQL", **MYSQL) + "[SQL]\nurl=mysql://h/d") == [
        "config.ini: [MYSQL]: contradicts [SQL]; remove one of them"
    ]


def test_a_mysql_that_cannot_be_an_address_is_reported(folder: Folder) -> None:
    """Without repeating what may be a password."""
    assert folder.problems(section("MYSQL", **MYSQL | {"db": "a?b"}, host="u:secret@h")) == [
        "config.ini: [MYSQL] host: is not a host such as mysql.example.org",
        "config.ini: [MYSQL] db: is not a name that fits into a database's address",
    ]


# -- the hook ------------------------------------------------------------------------------------------------
def test_a_hook_is_https_or_on_this_machine(folder: Folder) -> None:
    """Passwords are sent to it."""
    config = folder.load("[HOOK]\nurl=https://h.example.org:8443/join?x=1\nsecret=s\nca=ca.pem")
    assert config.hook == HTTPHook(
        url="https://h.example.org:8443/join?x=1", secret="s", ca=folder.path / "ca.pem"
    )
    for url in ("http://localhost/x", "http://127.0.0.1:8000", "http://[::1]/"):
        hook = folder.load(f"[HOOK]\nurl={url}").hook
        assert hook is not None
        assert hook.url == url


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("secret=s", "url: is missing, so the hook leads nowhere"),
        ("url=http://h.example.org/", "url: must be https, since passwords are sent there"),
        ("url=http://127.0.0.1.example.org/", "url: must be https, since passwords are sent there"),
        (
            "url=https://joe:top-secret@h.example.org/",
            "url: is not an address such as https://example.org/join",
        ),
        ("url=h.example.org", "url: is not an address such as"),
        ("url=https:///join", "url: is not an address such as"),
        ("url=https://h.example.org:99999/", "url: is not an address such as"),
        ("url=https://h.example.org/#a", "url: is not an address such as"),
        ("url=https://h.example.org/a b", "url: is not an address such as"),
        ("url=https://h.example.org/\nca=none.pem", "ca: there is no file "),
    ],
)
def test_a_hook_that_must_not_be_asked_is_reported(folder: Folder, text: str, problem: str) -> None:
    """Without repeating what may be a password."""
    [found] = folder.problems(f"[HOOK]\n{text}")
    assert found.startswith(f"config.ini: [HOOK] {problem}")
    assert "top-secret" not in found


def test_a_hook_without_a_secret_is_a_warning(folder: Folder) -> None:
    """Everybody could try passwords there."""
    [warning] = folder.warnings("[HOOK]\nurl=https://h.example.org/")
    assert warning.startswith(
        "config.ini: [HOOK] secret: is not set, so the hook cannot tell this server from"
    )
    assert folder.warnings("[HOOK]\nurl=https://h.example.org/\nsecret=s") == []


# -- in the clear --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "is_warned"),
    [
        ("", False),
        ("address=0.0.0.0", True),
        ("address=0.0.0.0\ntrusted_proxies=10.0.0.1", False),
        (f"address=0.0.0.0\n{TLS}", False),
    ],
)
def test_passwords_in_the_clear_are_a_warning(folder: Folder, text: str, is_warned: bool) -> None:
    """A RELEASE server that others reach has TLS or a proxy in front."""
    warnings = folder.warnings(RELEASE.format(text) + f"[USERS]\nann={HASH}")
    assert warnings == [
        "config.ini: [APPLICATION] address: is open to others without [TLS] or trusted_proxies: passwords and keys "
        "travel in the clear"
    ] * is_warned  # fmt: skip


# -- what a running server can take over ---------------------------------------------------------------------
def changes(folder: Folder, before: str, after: str) -> tuple[Changes, Config, Config]:
    """What changed, the configuration that is in force then, and the one that was written."""
    old, new = folder.load(before), folder.load(after)
    return changed_keys(old, new), with_live_keys(old, new), new


def test_nothing_changed_is_no_change(folder: Folder) -> None:
    """However it is written."""
    found, merged, new = changes(folder, f"{TLS}{ALL_METHODS}", f"{ALL_METHODS}{TLS}")
    assert found == Changes()
    assert merged == new


def test_keys_that_can_change_are_told_from_those_that_wait(folder: Folder) -> None:
    """In the order of the schema; only the former are taken over."""
    before = "[APPLICATION]\nport=1\napikey=a\n[LOG]\nlevel=info\n"
    after = (
        "[APPLICATION]\nport=2\napikey=b\n[LOG]\nlevel=debug\nfile=x.log\n[LIMITS]\nrequests_per_key=off\n"
    )
    found, merged, new = changes(folder, before, after + "password_checks=3")
    assert found.live == ("[APPLICATION] apikey", "[LOG] level", "[LIMITS] requests_per_key")
    assert found.at_restart == ("[APPLICATION] port", "[LOG] file", "[LIMITS] password_checks")
    assert (merged.application.apikey, merged.application.port) == ("b", 1)
    assert (merged.log.level, merged.log.file) == (new.log.level, None)
    assert (merged.limits.requests_per_key, merged.limits.password_checks) == (None, 2)
    assert changed_keys(merged, new) == Changes((), found.at_restart)


def test_users_and_certificates_come_go_and_change(folder: Folder) -> None:
    """By their names; never with a hash."""
    other = HASH[:-1] + "A"
    before = f"{TLS}[USERS]\nann={HASH}\nbob={HASH}\n[CERTIFICATES]\nx=acme publish CN=x\n"
    after = f"{TLS}[USERS]\nbob={other}\ncy={HASH}\n[CERTIFICATES]\nx=acme admin CN=x\n"
    found, merged, new = changes(folder, before, after)
    assert set(found.live) == {"[USERS] ann", "[USERS] bob", "[USERS] cy", "[CERTIFICATES] x"}
    assert found.at_restart == ()
    assert replace(merged, warnings=()) == replace(new, warnings=())


def test_keys_of_tokens_can_be_rotated(folder: Folder) -> None:
    """Also for another kind of key, with the algorithms that follow from it."""
    before = f"[JWT]\nsecret={SECRET}\naudience=us\n[HOOK]\nurl=https://a.example.org/\nsecret=s\n"
    after = "[JWT]\nkey=key.pem\naudience=us\n[HOOK]\nurl=https://b.example.org/\nsecret=t\n"
    found, merged, new = changes(folder, before, after)
    assert found.live == ("[JWT] algorithms", "[JWT] secret", "[JWT] key", "[HOOK] secret")
    assert found.at_restart == ("[HOOK] url",)
    assert merged.jwt == new.jwt
    assert merged.hook == HTTPHook(url="https://a.example.org/", secret="t")


def test_a_section_that_comes_or_goes_waits(folder: Folder) -> None:
    """As a whole, with the methods that follow from it."""
    found, merged, new = changes(folder, TLS, f"[JWT]\nsecret={SECRET}")
    assert found == Changes((), ("[TLS]", "[AUTH] methods", "[JWT]"))
    assert (merged.jwt, merged.auth.methods) == (None, ("config",))
    assert merged.tls is not None
    assert merged.warnings == new.warnings


def test_between_debug_and_release_nothing_is_taken_over(folder: Folder) -> None:
    """Else the users of the one would join the other."""
    before, after = f"[USERS]\nann={HASH}\n", RELEASE.format("") + f"[USERS]\nbob={HASH}"
    found, merged, _ = changes(folder, before, after)
    assert found.live == ()
    assert found.at_restart[0] == "[APPLICATION] configuration"
    assert {"[APPLICATION] apikey", "[USERS] ann", "[USERS] bob"} <= set(found.at_restart)
    assert set(merged.users) == {"ann"}
    assert not merged.release


def test_a_change_that_needs_no_file_is_none(folder: Folder) -> None:
    """The MySQL of the original, written as [SQL], is the same login."""
    text = "[SQL]\nurl=mysql://127.0.0.1:3306/shop\ntable=user\ncheck=database"
    found, _, new = changes(folder, section("MYSQL", **MYSQL), text)
    assert found == Changes()
    assert "url = mysql+asyncmy://127.0.0.1:3306/shop" in shown(new)


def test_tokens_of_users_and_of_services_are_told_apart(folder: Folder) -> None:
    """By key, issuer or audience: else whoever may listen could publish."""
    rules = f"secret={'s' * 32}\nissuer=https://id.example.org\n"
    assert folder.problems(f"[JWT]\n{rules}[SERVICE_JWT]\n{rules}") == [
        "config.ini: [SERVICE_JWT] audience: must differ from that of [JWT]: with the same key, issuer and audience, "
        "a user's token could publish"
    ]
    assert (
        folder.load(f"[JWT]\n{rules}[SERVICE_JWT]\n{rules}audience=notifications\n").service_jwt is not None
    )
