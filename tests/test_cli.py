"""The command `notification-server`: what it prints, where, and with which exit code."""

from __future__ import annotations

import contextlib
import getpass
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import argon2
import pytest

from server import __version__, cli, logs, process
from server.config import Config, Log, load
from server.errors import InvalidConfig, StartupError
from tests.support.command import no_variables
from tests.support.running_server import RunningServer

Reread = Callable[[], Config]

ROOT = Path(__file__).parents[1]

EXAMPLE = "[APPLICATION]\nport=8588\n; mine\n\n[USERS-DEBUG]\n; friends\n\n[USERS-RELEASE]\n"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder and no NOTIFY_ variables."""
    no_variables(monkeypatch, tmp_path)
    return tmp_path


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configurations that `serve` handed over, instead of serving; logging is left alone."""
    configs: list[Config] = []

    def serve(config: Config, reread: Reread) -> int:
        configs.append(config)
        return 0

    def set_up(log: Log) -> None:
        pass

    monkeypatch.setattr(process, "serve", serve)
    monkeypatch.setattr(logs, "setup", set_up)
    return configs


def password_line(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(text))


def typed_passwords(monkeypatch: pytest.MonkeyPatch, *passwords: str) -> None:
    """A terminal at which these are typed without echo."""
    answers = iter(passwords)
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stdin", terminal)
    monkeypatch.setattr(getpass, "getpass", lambda prompt: next(answers))


# -- the command itself --------------------------------------------------------------------------------------
@pytest.mark.parametrize("arguments", [["version"], ["--version"]])
def test_the_version_is_told(arguments: list[str]) -> None:
    """By `python -m server` as by the command."""
    result = subprocess.run(
        [sys.executable, "-m", "server", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert (result.stdout, result.stderr) == (f"notification-server {__version__}\n", "")


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_one_sentence(here: Path, unbuffered: str) -> None:
    """Whether it is the first line or the end that does not get out."""
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, "-m", "server", "check-config"],
            cwd=here,
            env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": unbuffered},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = "notification-server: the output cannot be written: no space left on device\n"
    assert (result.returncode, result.stderr) == (1, said)


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["user"],
        ["user", "add"],
        ["serve", "--port", "1"],
        ["tenant"],
        ["tenant", "add"],
        ["key", "add", "acme"],
        ["key", "add", "acme", "ci", "--scope", "everything"],
        ["secret"],
    ],
)
def test_what_is_no_command_is_refused_with_2(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """With the usage, on standard error."""
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: notification-server")
    assert "Scope" not in err


# -- serve ---------------------------------------------------------------------------------------------------
def test_serve_takes_the_config_of_the_current_folder(
    here: Path, served: list[Config], caplog: pytest.LogCaptureFixture
) -> None:
    """And says which one it is."""
    (here / "config.ini").write_text("[APPLICATION]\nport=1\n")
    caplog.set_level("INFO")
    assert cli.main(["serve"]) == 0
    assert served[0].application.port == 1
    assert caplog.messages == [f"configuration: {here / 'config.ini'}"]


def test_serve_without_a_config_takes_the_defaults(
    here: Path, served: list[Config], caplog: pytest.LogCaptureFixture
) -> None:
    """And says so; the environment counts all the same."""
    caplog.set_level("INFO")
    assert cli.main(["serve"]) == 0
    assert served == [load(None, {})]
    assert caplog.messages == [f"no config.ini in {here}: the defaults are in force"]


def test_the_last_config_that_is_named_counts(here: Path, served: list[Config]) -> None:
    """scripts/run names one in front of what it is given; the one in the current folder is not read then."""
    (here / "config.ini").write_text("not a configuration")
    (here / "one.ini").write_text("not one either")
    (here / "two.ini").write_text("[APPLICATION]\nport=2\n")
    assert cli.main(["serve", "--config", "one.ini", "--config", "two.ini"]) == 0
    assert served[0].application.port == 2


def test_serve_returns_what_the_server_returns(served: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its exit code is that of the command."""
    monkeypatch.setattr(process, "serve", lambda config, reread: 7)
    assert cli.main(["serve"]) == 7


def test_serve_can_read_the_config_again(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is then, in the same file; what is wrong in it is raised, as at the start."""
    (here / "config.ini").write_text("[APPLICATION]\nport=1\n")
    rereads: list[Reread] = []

    def serve(config: Config, reread: Reread) -> int:
        rereads.append(reread)
        return 0

    monkeypatch.setattr(process, "serve", serve)
    monkeypatch.setattr(logs, "setup", lambda log: None)
    assert cli.main(["serve"]) == 0
    (here / "config.ini").write_text("[APPLICATION]\nport=2\n")
    assert rereads[0]().application.port == 2
    (here / "config.ini").write_text("[APPLICATION]\nport=x\n")
    with pytest.raises(InvalidConfig, match="port"):
        rereads[0]()


def raise_startup_error(config: Config, reread: Reread) -> int:
    raise StartupError("port 8587 is taken; set another one in [APPLICATION] port")


def raise_interrupt(config: Config, reread: Reread) -> int:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("serve", "code", "said"),
    [
        (
            raise_startup_error,
            1,
            "notification-server: port 8587 is taken; set another one in [APPLICATION] port\n",
        ),
        (raise_interrupt, 130, ""),
    ],
)
def test_a_server_that_does_not_start_is_one_sentence(
    served: list[Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    serve: Callable[[Config, Reread], int],
    code: int,
    said: str,
) -> None:
    """No traceback, whether it could not or was not to."""
    monkeypatch.setattr(process, "serve", serve)
    assert cli.main(["serve"]) == code
    assert capsys.readouterr() == ("", said)


@pytest.mark.parametrize(
    "command",
    [
        ["serve"],
        ["check-config"],
        ["user", "add", "ann"],
        ["user", "list"],
        ["user", "remove", "ann"],
        ["user", "known"],
        ["user", "sign-out", "ann"],
        ["tenant", "add", "acme"],
        ["tenant", "list"],
        ["tenant", "remove", "acme", "--yes"],
        ["key", "add", "acme", "ci"],
        ["key", "list"],
        ["key", "revoke", "acme", "ci"],
        ["secret", "rotate"],
    ],
    ids=" ".join,
)
def test_a_config_that_is_not_there_is_one_sentence(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever names a file means it; nothing is made."""
    assert cli.main([*command, "--config", "none.ini"]) == 2
    assert capsys.readouterr() == ("", "notification-server: none.ini: there is no such file\n")
    assert os.listdir() == []


def test_every_problem_is_a_line(
    here: Path, capsys: pytest.CaptureFixture[str], served: list[Config]
) -> None:
    """And nothing is served."""
    (here / "config.ini").write_text("[APPLICATION]\nport=x\nlimt=1\n")
    assert cli.main(["serve"]) == 2
    assert served == []
    assert capsys.readouterr().err.splitlines() == [
        "notification-server: config.ini: [APPLICATION] limt: unknown key; did you mean limit?",
        "notification-server: config.ini: [APPLICATION] port: 'x' is not a whole number",
    ]


# -- tenants that are not there ------------------------------------------------------------------------------
@pytest.mark.parametrize("is_served", [False, True])
def test_check_config_knows_the_tenants_of_the_embedded_store(
    here: Path, capsys: pytest.CaptureFixture[str], is_served: bool
) -> None:
    """Whether or not a server is at work on it; nothing is changed, or left behind. Without a store it says nothing."""
    config = here / "config.ini"
    config.write_text("[APPLICATION]\ndefault_tenant=acme\n")
    warning = (
        "notification-server: warning: [APPLICATION] default_tenant: there is no tenant 'acme', so nobody comes in by"
        " it; `notification-server tenant add acme` makes it\n"
    )

    def checked() -> str:
        assert cli.main(["check-config"]) == 0
        return capsys.readouterr().err

    assert checked() == ""
    assert not (here / "data").exists()
    with RunningServer(here) if is_served else contextlib.nullcontext():
        assert cli.main(["key", "list"]) == 0
        capsys.readouterr()
        files = sorted(path.name for path in (here / "data").iterdir())
        assert checked() == warning
        assert sorted(path.name for path in (here / "data").iterdir()) == files
        assert cli.main(["tenant", "add", "acme"]) == 0
        capsys.readouterr()
        assert checked() == ""


# -- check-config --------------------------------------------------------------------------------------------
def test_check_config_shows_what_is_in_force(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Values on standard output, in a shape that a config.ini could have; warnings beside it; secrets nowhere."""
    (here / "config.ini").write_text("[APPLICATION]\nport=1\napikey=top-secret\nlimit=200\n")
    monkeypatch.setenv("NOTIFY_APPLICATION_PORT", "2")
    assert cli.main(["check-config"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("; config.ini\n\n[APPLICATION]\nconfiguration = DEBUG\nport = 2\n")
    assert "\nlimit = 100\napikey = ***\n" in out
    assert err == (
        "notification-server: warning: config.ini: [APPLICATION] limit: 200 is not within 1 to 100; 100 is used\n"
    )
    assert "top-secret" not in out


# -- user add ------------------------------------------------------------------------------------------------
def test_user_add_prints_the_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line alone on standard output; it can be pasted and the password fits. The file stays as it is."""
    (here / "config.ini").write_text(EXAMPLE)
    password_line(monkeypatch, "s3cret wörd\r\nmore\n")
    assert cli.main(["user", "add", "Ann Lee"]) == 0
    out, err = capsys.readouterr()
    assert (
        err
        == "notification-server: put this line into [USERS-DEBUG] of config.ini; a running server knows it after"
        " SIGHUP\n"
    )
    assert (here / "config.ini").read_text() == EXAMPLE
    (here / "config.ini").write_text(EXAMPLE.replace("; friends\n", out))
    [(name, hashed)] = load(here / "config.ini", {}).users.items()
    assert name == "Ann Lee"
    assert argon2.PasswordHasher().verify(hashed, "s3cret wörd")


def test_user_add_can_write_the_line(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Into the section in force, in place of an older one; all else in the file stays."""
    (here / "config.ini").write_text(EXAMPLE)
    for password in ("one", "two"):
        password_line(monkeypatch, password)
        assert cli.main(["user", "add", "ann", "--write"]) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[1:] == [
        "notification-server: ann stands in [USERS-DEBUG] of config.ini; a running server knows it after SIGHUP"
    ]
    hashed = load(here / "config.ini", {}).users["ann"]
    assert argon2.PasswordHasher().verify(hashed, "two")
    assert (here / "config.ini").read_text() == EXAMPLE.replace(
        "[USERS-DEBUG]\n", f"[USERS-DEBUG]\nann = {hashed}\n"
    )


def test_user_add_writes_into_the_form_in_force(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """RELEASE by the file or by the environment."""
    (here / "config.ini").write_text(EXAMPLE + "[MONGODB-RELEASE]\nurl=embedded\n")
    monkeypatch.setenv("NOTIFY_APPLICATION_CONFIGURATION", "RELEASE")
    password_line(monkeypatch, "one")
    assert cli.main(["user", "add", "ann", "--write"]) == 0
    assert list(load(here / "config.ini", os.environ).users) == ["ann"]
    assert list(load(here / "config.ini", {}).users) == []


def test_user_add_asks_twice_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two that differ are not taken."""
    typed_passwords(monkeypatch, "one", "one")
    assert cli.main(["user", "add", "ann"]) == 0
    assert argon2.PasswordHasher().verify(capsys.readouterr().out.split(" = ")[1].strip(), "one")
    typed_passwords(monkeypatch, "one", "two")
    assert cli.main(["user", "add", "ann"]) == 2
    assert capsys.readouterr() == ("", "notification-server: the two passwords differ\n")


def test_a_password_at_a_real_terminal_is_not_echoed() -> None:
    """Asked for on the terminal itself, so that standard output can go to a file."""
    # A process of its own makes the terminal: the test's may have threads, which do not go with forking.
    spawn = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    command = [sys.executable, "-m", "server", "user", "add", "ann"]
    with subprocess.Popen(
        [sys.executable, "-c", spawn, *command],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        screen = b""
        for prompt in (b"Password: ", b"Again: "):
            while not screen.endswith(prompt):
                read = os.read(process.stdout.fileno(), 1000)
                assert read, screen
                screen += read
            process.stdin.write(b"top-secret\n")
            process.stdin.flush()
        screen += process.stdout.read()
    assert process.returncode == 0
    assert b"ann = $argon2id$" in screen
    assert b"top-secret" not in screen


@pytest.mark.parametrize(
    ("arguments", "password", "said"),
    [
        (["ann"], "", "the password is empty"),
        (["ann"], "\n", "the password is empty"),
        (["ann"], "x" * 1025, "the password has more than 1024 characters"),
        (["ann"], "\udce9\n", "the password is not valid Unicode"),
        (["a=b"], "x", "NAME: cannot be a key of config.ini; leave out = : and blanks at the ends, and [ # ; in front"),
        (["x" * 1025], "x", "NAME: has more than 1024 characters"),
        (
            ["ann", "--write"],
            "x",
            "--write: there is no config.ini in this folder; name the file by --config FILE",
        ),
    ],
)  # fmt: skip
def test_user_add_refuses_what_cannot_be(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    password: str,
    said: str,
) -> None:
    """With one sentence, and without repeating the password."""
    password_line(monkeypatch, password)
    assert cli.main(["user", "add", *arguments]) == 2
    assert capsys.readouterr() == ("", f"notification-server: {said}\n")
