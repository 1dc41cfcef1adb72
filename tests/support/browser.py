"""Where the browser and the JavaScript clients of the tests are."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.support.available import unavailable

_NODE_MODULES = Path(__file__).resolve().parents[1] / "node" / "node_modules"
_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_PLACES = (
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
)

# Without the sandbox, because it does not start as root; everything else only keeps the browser from making
# connections of its own.
LAUNCH_ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


def chromium() -> Path:
    """$CHROMIUM, else the one of the PATH, else that of the usual place on macOS."""
    candidates = [os.environ.get("CHROMIUM"), *map(shutil.which, _NAMES), *filter(os.path.exists, _PLACES)]
    found = next(filter(None, candidates), None)
    if found is None:
        unavailable("browser", "there is no Chromium")
    return Path(found)


def node_modules() -> Path:
    """The folder with the npm packages of tests/node/package.json."""
    if not (_NODE_MODULES / ".package-lock.json").exists():
        unavailable("node", f"{_NODE_MODULES} is not there")
    return _NODE_MODULES


def sockjs_client_js() -> Path:
    """The SockJS client for a browser, as its makers publish it."""
    return node_modules() / "sockjs-client" / "dist" / "sockjs.min.js"
