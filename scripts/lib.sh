# Shared by the scripts in this folder: finds a Python and keeps .venv as the locks in requirements/ say.
# POSIX sh; sourced with $root (the project's folder) and $me (the name for messages) set.

venv=$root/.venv
venv_python=$venv/bin/python

say() { printf '%s: %s\n' "$me" "$*" >&2; }

fail() {
    say "$*"
    exit 1
}

# Sets $python and $python_version: $PYTHON if given, else the first of the usual names that is new enough.
find_python() {
    if [ -n "${PYTHON:-}" ]; then
        python=$PYTHON
        python_version=$(version_of "$python") ||
            fail "PYTHON=$PYTHON cannot be run; set it to a Python 3.11 or later."
        is_new_enough "$python_version" ||
            fail "PYTHON=$PYTHON is Python $python_version, but 3.11 or later is needed."
        return
    fi
    too_old=
    for python in python3.13 python3.12 python3.11 python3; do
        # A name can be there and yet not run: pyenv's shims stand for every version that it knows.
        python_version=$(version_of "$python") || continue
        if is_new_enough "$python_version"; then return; fi
        too_old="$python is Python $python_version"
    done
    if [ -n "$too_old" ]; then
        fail "Python 3.11 or later is needed, but $too_old; install a newer one, or name one with PYTHON=."
    fi
    fail "Python 3.11 or later is needed, but no python3 was found; install one, or name one with PYTHON=."
}

version_of() { "$1" -I -S -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null; }

is_new_enough() {
    case $1 in
    3.[0-9].* | 3.10.* | [0-2].*) return 1 ;;
    [0-9]*) return 0 ;;
    *) return 1 ;;
    esac
}

# What .venv must have been made from to serve `$1` (runtime or dev): the Python in it and the locks
# themselves.
expected_stamp() {
    printf '%s\n' "${venv_version%.*}"
    cat "$root/requirements/build.lock" "$root/requirements/$1.lock"
}

# True if .venv holds what `$1` needs. Starts no Python but the one in it, and needs no network.
venv_is_current() {
    [ -f "$venv/.stamp-$1" ] || return 1
    venv_version=$(version_of "$venv_python") || return 1 # its base is gone
    if [ -n "${PYTHON:-}" ]; then
        find_python
        [ "${python_version%.*}" = "${venv_version%.*}" ] || return 1
    fi
    expected_stamp "$1" | cmp -s - "$venv/.stamp-$1"
}

# Makes .venv hold what `$1` (runtime or dev) needs. The dev lock is compiled with the pins of the runtime
# lock, so a .venv made for dev serves runtime as well, and the two do not undo each other's work.
ensure_venv() {
    if venv_is_current "$1"; then return; fi
    find_python
    case $root in
    *:*) fail "the folder $root has a colon in its name, which Python's venv cannot cope with; rename it." ;;
    esac
    { mkdir -p "$root/.cache" && true >>"$root/.cache/install.lock"; } 2>/dev/null ||
        fail "the folder $root cannot be written to, and the first start has to make $venv."
    take_lock
    if ! venv_is_current "$1"; then install_venv "$1"; fi
    drop_lock
}

# One at a time may install in this folder. The lock belongs to the open file 9, so it ends with this process
# and those that it has started, however they end. $python takes it, because macOS has no flock command.
take_lock() {
    exec 9>>"$root/.cache/install.lock"
    if ! lock_file_9 "LOCK_EX | fcntl.LOCK_NB" 2>/dev/null; then
        say "waiting for another one that is installing ..."
        lock_file_9 LOCK_EX || fail "cannot lock $root/.cache/install.lock."
    fi
}

drop_lock() { exec 9>&-; }

lock_file_9() { "$python" -I -S -c "import fcntl; fcntl.flock(9, fcntl.$1)"; }

install_venv() {
    log=$root/.cache/install.log
    true >"$log"
    # The stamps go first, so that nothing trusts a .venv that is being changed.
    rm -f "$venv/.stamp-runtime" "$venv/.stamp-dev"
    # While this file is there, .venv may hold half a package, which pip would take for a whole one.
    installing=$root/.cache/installing
    if [ -e "$installing" ] || ! venv_is_sound; then make_venv; fi
    true >"$installing"
    say "installing the $1 packages into .venv; only done when requirements/ has changed ..."
    # Of all packages one, sockjs-tornado, has to be built. What builds it would be fetched by pip without a
    # hash, and the pip of Python 3.11 cannot be told otherwise (--build-constraint is from 25.3). So
    # setuptools is installed first, by hash, and the build uses it in place. Without PIP_USE_PEP517 an old
    # pip would run setup.py itself; it is an environment variable, because a pip that no longer has the
    # option passes over a variable.
    pip_install -r "$root/requirements/build.lock"
    pip_install --no-build-isolation -r "$root/requirements/$1.lock"
    venv_version=$(version_of "$venv_python")
    expected_stamp runtime >"$venv/.stamp-runtime"
    if [ "$1" = dev ]; then expected_stamp dev >"$venv/.stamp-dev"; fi
    rm -f "$installing"
}

# True if packages can be installed into .venv as it is. A newer Python beside it is no reason to make it anew.
venv_is_sound() {
    venv_version=$(version_of "$venv_python") && is_new_enough "$venv_version" || return 1
    [ -z "${PYTHON:-}" ] || [ "${python_version%.*}" = "${venv_version%.*}" ] || return 1
    "$venv_python" -I -m pip --version >/dev/null 2>&1
}

make_venv() {
    "$python" -I -c 'import venv, ensurepip' 2>/dev/null || fail \
        "$python (Python $python_version) has no venv module; install it (Debian and Ubuntu: apt install" \
        "python${python_version%.*}-venv) or name another Python with PYTHON=."
    say "making .venv with Python $python_version ..."
    true >"$installing"
    "$python" -m venv --clear "$venv" >>"$log" 2>&1 || failed_step "making .venv"
}

# -I: neither the current folder nor PYTHON* variables may change what is imported.
pip_install() {
    PIP_USE_PEP517=1 "$venv_python" -I -m pip install --require-hashes --disable-pip-version-check --no-input \
        --no-user "$@" >>"$log" 2>&1 || failed_step "installing the packages"
}

# `$1` failed and wrote to $log: the sentence that says why, and where the rest is.
failed_step() {
    why=$(grep -E '^(ERROR|error|Error|E): ?' "$log" | tail -n 1) || why=
    [ -n "$why" ] || why=$(grep -v '^[[:space:]]*$' "$log" | tail -n 1) || why="no output"
    fail "$1 failed (${why}); everything it printed is in $log."
}
