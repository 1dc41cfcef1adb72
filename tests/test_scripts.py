"""scripts/, .ci/run and the packaging.

No test here needs the network: where something would be installed, a fake Python notes what it was asked to
do.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import time
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.support import available
from tests.support.processes import Process

ROOT = Path(__file__).resolve().parents[1]

# Prints what the server would be started with, then waits for a signal as the server does.
STUB_SERVER = """
import os, signal, sys
import server
print("args", sys.argv[1:])
print("cwd", os.getcwd())
print("package", os.path.dirname(server.__file__))
if "wait" in sys.argv:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    print("ready", flush=True)
    signal.pause()
"""

# A Python that scripts/lib.sh can make a venv with and install into: the "venv" gets a copy of this script,
# which keeps the version that it was made with, and each `pip install` is one line in $FAKE_LOG.
# FAKE_PIP=fail: pip finds no network. FAKE_PIP=die: the script is killed while installing.
FAKE_PYTHON = """#!/bin/sh
case "$*" in
*sys.version_info*) cat "${0%/*}/version" 2>/dev/null || echo "${FAKE_VERSION:-3.12.4}" ;;
*fcntl*) exec "$REAL_PYTHON" "$@" ;;
*"import venv, ensurepip"*) exit "${FAKE_ENSUREPIP:-0}" ;;
"-m venv --clear "*)
    echo "venv" >>"$FAKE_LOG"
    rm -rf "$4/bin"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python"
    echo "${FAKE_VERSION:-3.12.4}" >"$4/bin/version" ;;
*"pip --version"*) ;;
*"pip install"*)
    for lock; do :; done
    echo "install ${lock##*/}" >>"$FAKE_LOG"
    case ${FAKE_PIP:-} in
    fail) echo "WARNING: retrying"; echo "ERROR: No matching distribution found for tornado==6.6.1"; exit 1 ;;
    die) kill -9 $PPID ;;
    slow) sleep 0.5 ;;
    esac ;;
*) echo "started" ;;
esac
"""


class Checkout:
    """A folder with the scripts and a stub of the server, in which `fake` can stand for Python."""

    def __init__(self, root: Path, tmp_path: Path) -> None:
        self.root = root
        self.log = tmp_path / "installs"
        self.fake = tmp_path / "fake-python"
        self.fake.write_text(FAKE_PYTHON)
        self.fake.chmod(0o755)
        shutil.copytree(ROOT / "scripts", root / "scripts")
        shutil.copytree(ROOT / "requirements", root / "requirements")
        (root / "server").mkdir()
        (root / "server" / "__init__.py").touch()
        (root / "server" / "__main__.py").write_text(STUB_SERVER)

    def environment(self, **env: str) -> dict[str, str]:
        clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "COVERAGE"))}
        return clean | {"FAKE_LOG": str(self.log), "REAL_PYTHON": sys.executable} | env

    def run(
        self, *args: str, cwd: Path | None = None, script: str | Path | None = None, **env: str
    ) -> Result:
        done = subprocess.run(
            [script or self.root / "scripts" / "run", *args],
            cwd=cwd or self.root,
            env=self.environment(**env),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        return Result(done.returncode, done.stdout, done.stderr)

    def run_fake(self, **env: str) -> Result:
        return self.run(**{"PYTHON": str(self.fake)} | env)

    def installs(self) -> list[str]:
        return self.log.read_text().splitlines() if self.log.exists() else []

    def make_real_venv(self) -> None:
        """A venv with nothing in it that scripts/run takes for a finished one."""
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", self.root / ".venv"], check=True)
        (self.root / ".venv" / ".stamp-runtime").write_text(self.stamp("runtime"))

    def stamp(self, name: str) -> str:
        version = f"{sys.version_info.major}.{sys.version_info.minor}"
        locks = (self.root / "requirements" / f"{lock}.lock" for lock in ("build", name))
        return f"{version}\n" + "".join(lock.read_text() for lock in locks)


class Result:
    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    def sentence(self) -> str:
        """The one line on stderr with which a script that cannot go on has ended."""
        assert self.code == 1, (self.code, self.out, self.err)
        lines = self.err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("notification-server: "), lines
        return lines[0]


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    root = tmp_path / "a folder with spaces"
    root.mkdir()
    return Checkout(root, tmp_path)


# --- scripts/run: which Python


def test_a_python_that_is_too_old_is_named_with_its_version(checkout: Checkout) -> None:
    """PYTHON= naming an old one: says which it is and what is needed."""
    sentence = checkout.run_fake(FAKE_VERSION="3.10.13").sentence()
    assert "is Python 3.10.13, but 3.11 or later is needed" in sentence
    assert str(checkout.fake) in sentence
    assert checkout.installs() == []


@pytest.mark.parametrize(
    ("version", "is_enough"),
    [("2.7.18", 0), ("3.9.2", 0), ("3.10.0", 0), ("3.11.0", 1), ("3.13.1", 1), ("3.20.0", 1), ("4.0.0", 1)],
)
def test_versions_compare_as_numbers(checkout: Checkout, version: str, is_enough: int) -> None:
    """3.9 is older than 3.11, and 3.20 is not."""
    assert checkout.run_fake(FAKE_VERSION=version).code == 1 - is_enough


def test_a_python_that_cannot_be_run_is_said_in_one_sentence(checkout: Checkout) -> None:
    """PYTHON= naming nothing."""
    assert "PYTHON=/nowhere/python cannot be run" in checkout.run(PYTHON="/nowhere/python").sentence()


def tools_folder(tmp_path: Path, **extra: Path) -> Path:
    """A folder for PATH with what the scripts call, and no Python but those of `extra`."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in "sh cat cmp cp dirname env grep kill mkdir mktemp readlink rm sed sleep tail".split():
        (folder / name).symlink_to(shutil.which(name) or f"/missing/{name}")
    for name, target in extra.items():
        (folder / name.replace("_", ".")).symlink_to(target)
    return folder


def test_no_python_at_all_is_said_in_one_sentence(checkout: Checkout, tmp_path: Path) -> None:
    """A PATH without any python3."""
    assert "no python3 was found" in checkout.run(PATH=str(tools_folder(tmp_path))).sentence()


def test_only_an_old_python3_is_named_with_its_version(checkout: Checkout, tmp_path: Path) -> None:
    """A PATH with nothing but an old python3."""
    path = tools_folder(tmp_path, python3=checkout.fake)
    sentence = checkout.run(PATH=str(path), FAKE_VERSION="3.9.2").sentence()
    assert "3.11 or later is needed, but python3 is Python 3.9.2" in sentence


def test_names_that_do_not_run_are_passed_over(checkout: Checkout, tmp_path: Path) -> None:
    """python3.13 is there and fails, as a pyenv shim does: the next name is tried."""
    path = tools_folder(tmp_path, python3_13=Path("/bin/false"), python3_12=checkout.fake)
    assert checkout.run(PATH=str(path)).out == "started\n"


def test_a_missing_venv_module_is_said_with_the_package_that_has_it(checkout: Checkout) -> None:
    """Debian's python3 without python3-venv."""
    assert "has no venv module; install it (Debian and Ubuntu: apt install python3.12-venv)" in (
        checkout.run_fake(FAKE_ENSUREPIP="1").sentence()
    )


def test_a_folder_that_cannot_be_written_is_said_in_one_sentence(checkout: Checkout) -> None:
    """The first start in somebody else's folder."""
    (checkout.root / ".cache").write_text(
        "in the way; root may write everywhere, so permissions prove nothing"
    )
    assert "cannot be written to" in checkout.run_fake().sentence()


# --- scripts/run: installing


def test_the_first_start_installs_by_hash_and_the_second_installs_nothing(checkout: Checkout) -> None:
    """What builds sdists first, then the runtime lock; then nothing, not even a look at pip."""
    assert checkout.run_fake().out == "started\n"
    assert checkout.installs() == ["venv", "install build.lock", "install runtime.lock"]
    second = checkout.run_fake()
    assert (second.out, second.err) == ("started\n", "")
    assert len(checkout.installs()) == 3


def test_a_changed_lock_installs_again_into_the_same_venv(checkout: Checkout) -> None:
    """After an update of the checkout."""
    checkout.run_fake()
    with (checkout.root / "requirements" / "runtime.lock").open("a") as lock:
        lock.write("# changed\n")
    assert checkout.run_fake().out == "started\n"
    assert checkout.installs()[3:] == ["install build.lock", "install runtime.lock"]


def test_another_python_makes_another_venv(checkout: Checkout) -> None:
    """PYTHON= of another minor version, or a system that has replaced the one under the venv."""
    checkout.run_fake()
    assert checkout.run_fake(FAKE_VERSION="3.13.0").out == "started\n"
    assert checkout.installs()[3:] == ["venv", "install build.lock", "install runtime.lock"]


def test_a_failed_install_says_why_and_the_next_start_repairs_it(checkout: Checkout) -> None:
    """No network at the first start: pip's own reason in one sentence, no server; then all is made afresh."""
    failed = checkout.run_fake(FAKE_PIP="fail")
    assert failed.code == 1 and failed.out == ""
    last = failed.err.splitlines()[-1]
    assert "failed (ERROR: No matching distribution found for tornado==6.6.1)" in last
    assert "install.log" in last
    assert checkout.run_fake().out == "started\n"
    assert checkout.installs()[2:] == ["venv", "install build.lock", "install runtime.lock"]


def test_a_start_killed_while_installing_is_repaired_by_the_next(checkout: Checkout) -> None:
    """Half a package looks like a whole one to pip, so the venv is made anew."""
    assert checkout.run_fake(FAKE_PIP="die").code == -signal.SIGKILL
    assert checkout.run_fake().out == "started\n"
    assert checkout.installs()[2:] == ["venv", "install build.lock", "install runtime.lock"]


def test_two_first_starts_at_once_install_once(checkout: Checkout) -> None:
    """The second waits for the first, says so, and then starts."""
    env = checkout.environment(PYTHON=str(checkout.fake), FAKE_PIP="slow")
    both = [
        subprocess.Popen(
            [checkout.root / "scripts" / "run"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    outputs = [process.communicate(timeout=60) for process in both]
    assert [out for out, _ in outputs] == ["started\n", "started\n"]
    assert sum("waiting for another" in err for _, err in outputs) == 1
    assert checkout.installs() == ["venv", "install build.lock", "install runtime.lock"]


def test_a_venv_made_for_the_tests_serves_run_and_the_other_way_it_is_completed(checkout: Checkout) -> None:
    """scripts/run and scripts/test share .venv without undoing each other's work."""

    def ensure(name: str) -> None:
        script = '. "$root/scripts/lib.sh"; ensure_venv "$1"'
        subprocess.run(
            ["sh", "-euc", script, "sh", name],
            env=checkout.environment(root=str(checkout.root), me="test", PYTHON=str(checkout.fake)),
            check=True,
            capture_output=True,
        )

    ensure("runtime")
    ensure("dev")
    assert checkout.installs()[3:] == ["install build.lock", "install dev.lock"]
    ensure("runtime")
    ensure("dev")
    assert len(checkout.installs()) == 5


# --- scripts/run: starting


def test_run_keeps_the_current_folder_and_imports_nothing_from_it(checkout: Checkout, tmp_path: Path) -> None:
    """Called from anywhere, through a symlink, the project in a folder with spaces; a `server` or a
    `types.py` in the caller's folder is not what is started."""
    checkout.make_real_venv()
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "server").mkdir(parents=True)
    (elsewhere / "types.py").write_text("raise SystemExit('imported from the current folder')")
    link = elsewhere / "start"
    link.symlink_to(Path("..") / checkout.root.name / "scripts" / "run")
    result = checkout.run("--port", "0", cwd=elsewhere, script="./start")
    config = str(checkout.root / "config.ini")
    assert result.out.splitlines() == [
        f"args {['serve', '--config', config, '--port', '0']}",
        f"cwd {elsewhere}",
        f"package {checkout.root / 'server'}",
    ], result.err


def test_the_server_takes_the_place_of_the_script(checkout: Checkout, tmp_path: Path) -> None:
    """A signal to the process that was started reaches the server itself, whose exit code is the script's."""
    checkout.make_real_venv()
    process = Process(
        [checkout.root / "scripts" / "run", "wait"],
        log=tmp_path / "log",
        env={"PYTHONPATH": "/nowhere", "PYTHONHOME": "/nowhere"},
    )
    process.start()
    try:
        process.wait_for_output("ready")
        os.kill(process.pid, signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        process.kill()


def test_the_second_start_adds_less_than_a_second(checkout: Checkout) -> None:
    """Measured against starting the same Python without the script; 0.05 s is usual."""
    checkout.make_real_venv()

    def seconds(argv: list[str | Path]) -> float:
        begin = time.monotonic()
        subprocess.run(argv, cwd=checkout.root, env=checkout.environment(), check=True, capture_output=True)
        return time.monotonic() - begin

    plain = seconds([checkout.root / ".venv" / "bin" / "python", "-m", "server"])
    assert seconds([checkout.root / "scripts" / "run"]) - plain < 0.5


# --- scripts/test and .ci/run


def test_what_is_missing_is_a_skip_here_and_a_failure_in_ci(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence of scripts/test is the reason in both."""
    monkeypatch.setenv("NOTIFICATION_TEST_MISSING", "mongod=no mongod; a=b\nnode=no node")
    assert available.missing() == {"mongod": "no mongod; a=b", "node": "no node"}
    monkeypatch.delenv("CI", raising=False)
    with pytest.raises(pytest.skip.Exception, match="no mongod; a=b"):
        available.unavailable("mongod", "there is none")
    with pytest.raises(pytest.fail.Exception, match="there is none"):
        available.unavailable("browser", "there is none")
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no mongod; a=b"):
        available.unavailable("mongod", "there is none")


def test_with_ci_something_missing_ends_the_run(checkout: Checkout) -> None:
    """Every missing thing is said first, with how to get it; no test is run."""
    script = (
        '. "$root/scripts/lib.sh"; . "$root/scripts/services.sh"; apt_install() { return 1; }\n'
        'mkdir -p "$root/.cache"; venv_python=false; PATH=$1; server_folders=\n'
        'ensure_mongod; ensure_servers; ensure_chromium; ensure_node_modules; printf %s "$missing"'
    )
    tools = tools_folder(checkout.log.parent)
    done = subprocess.run(
        ["sh", "-euc", script, "sh", tools],
        env=checkout.environment(root=str(checkout.root), me="test", MONGODB_BIN="", CHROMIUM=""),
        check=True,
        capture_output=True,
        text=True,
    )
    missing = available.missing({"NOTIFICATION_TEST_MISSING": done.stdout})
    assert list(missing) == [
        *("mongod", "mariadb", "postgres", "redis", "rabbitmq", "nginx", "haproxy", "php", "go", "caddy"),
        *("systemd", "browser", "node"),
    ]
    assert all("install" in sentence for sentence in missing.values())
    said = [line for line in done.stderr.splitlines() if not line.endswith("...")]
    assert len(said) == 13


def test_ci_run_calls_the_test_script_and_nothing_else(tmp_path: Path) -> None:
    """With CI=true, without a terminal, from any folder, with its arguments."""
    for folder in (".ci", "scripts"):
        (tmp_path / folder).mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci" / "run")
    script = tmp_path / "scripts" / "test"
    script.write_text('#!/bin/sh\necho "$CI" "$PWD" "$@"; cat; exit 3\n')
    script.chmod(0o755)
    done = subprocess.run([tmp_path / ".ci" / "run", "--quick"], cwd="/", capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (3, f"true {tmp_path} --quick\n")


@pytest.mark.parametrize("name", [".ci/run", "scripts/run", "scripts/test", "scripts/lock"])
def test_scripts_are_executable(name: str) -> None:
    """The mode is part of what is committed."""
    assert (ROOT / name).stat().st_mode & stat.S_IXUSR


# --- requirements and packaging


def pins(name: str) -> dict[str, str]:
    lock = (ROOT / "requirements" / f"{name}.lock").read_text()
    return dict(re.findall(r"^([a-z0-9-]+)==(\S+)", lock, re.MULTILINE))


def test_the_locks_agree() -> None:
    """A .venv for the tests holds exactly what the server's own lock names."""
    assert pins("runtime").items() <= pins("dev").items()
    assert pins("build").items() <= pins("dev").items()


def test_every_locked_package_has_hashes_and_no_lock_names_an_index() -> None:
    """pip checks what it gets, from wherever the user's configuration lets it come."""
    for path in (ROOT / "requirements").glob("*.lock"):
        text = path.read_text()
        for package in re.findall(r"^[a-z].*?(?=^\S|\Z)", text, re.MULTILINE | re.DOTALL):
            assert "--hash=sha256:" in package, (path.name, package)
        assert not re.search(r"://|--index|--extra|--find-links|--trusted", text), path.name
    npm = (ROOT / "tests" / "node" / "package-lock.json").read_text()
    assert '"integrity"' in npm and '"resolved"' not in npm


def test_pyproject_and_runtime_in_name_the_same_packages() -> None:
    """One list for pip install ., one for the lock."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "requirements" / "runtime.in").read_text().splitlines()
    assert project["dependencies"] == [line for line in lines if line and not line.startswith("#")]


def test_a_built_wheel_holds_the_command_and_the_example_page(tmp_path: Path) -> None:
    """Built from the sdist, as from a download; the page is found where it is installed."""
    source = tmp_path / "source"
    shutil.copytree(
        ROOT,
        source,
        ignore=shutil.ignore_patterns(".*", "node_modules", "__pycache__", "data", "build", "dist"),
    )
    built = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "build", "--no-isolation", "--outdir", tmp_path, source],
        capture_output=True,
        text=True,
        env={k: v for k, v in os.environ.items() if not k.startswith("COVERAGE")},
    )
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("notification_server-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "installed")
    (entry_points,) = (tmp_path / "installed").glob("*.dist-info/entry_points.txt")
    assert "notification-server = server.cli:main" in entry_points.read_text()
    assert {name.split("/")[0] for name in names} == {"server", entry_points.parent.name}
    page = ROOT / "static" / "example"
    shipped = {path.relative_to(page).as_posix() for path in page.rglob("*") if path.is_file()}
    assert {"index.html", "api/index.html", "api/swagger-ui.LICENSE"} <= shipped
    assert {f"server/example/{name}" for name in shipped} <= set(names)
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "server").rglob("*.py")}
    assert modules <= set(names), "a folder of server/ without __init__.py is not installed"
    found = subprocess.run(
        [sys.executable, "-P", "-c", "import server.assets as a; print(a.example_folder())"],
        env={"PYTHONPATH": str(tmp_path / "installed")},
        check=True,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    ).stdout.strip()
    assert found == str(tmp_path / "installed" / "server" / "example")
