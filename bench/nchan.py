"""Nchan as a yardstick: nginx, and with it Redis, on the server's core, each message synced to disk before its answer;
or nginx alone, which keeps messages in memory.

Needs the Debian packages nginx, libnginx-mod-nchan and redis-server.
"""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from harness import SERVER_CORE, free_port, running

MODULE = Path("/usr/lib/nginx/modules/ngx_nchan_module.so")

_CONFIG = """
load_module {module};
worker_processes 1; worker_rlimit_nofile 40000; pid {folder}/pid; error_log {folder}/error.log warn; daemon off;
events {{ worker_connections 20000; use epoll; }}
http {{
  access_log off; keepalive_requests 10000000; keepalive_timeout 120s; tcp_nodelay on;
  nchan_shared_memory_size 512m; client_body_temp_path {folder}/body;
  {upstream}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location ~ ^/pub/(\\w+)$ {{
      nchan_publisher http; nchan_channel_id $1; nchan_message_buffer_length 100;
      nchan_message_timeout 60s; client_body_buffer_size 16k; client_body_in_single_buffer on; {passed}
    }}
    location ~ ^/sub/(\\w+)$ {{
      nchan_subscriber websocket; nchan_channel_id $1; nchan_subscriber_first_message newest; {passed}
    }}
  }}
}}
"""


def is_here(*, is_stored: bool = True) -> bool:
    """Whether what it needs is installed."""
    programs = ["nginx", "redis-server"] if is_stored else ["nginx"]
    return MODULE.exists() and all(shutil.which(program) is not None for program in programs)


@contextlib.contextmanager
def nchan(*, is_stored: bool = True) -> Iterator[tuple[int, list[int]]]:
    """Running, with Redis if messages are to be stored: its port, and the processes whose CPU time counts. A message
    for a user is posted to `/pub/USER`, and
    comes on a WebSocket at `/sub/USER`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder, port, redis = Path(name), free_port(), free_port()
        config = folder / "nginx.conf"
        upstream = f"upstream store {{ nchan_redis_server redis://127.0.0.1:{redis}; }}" if is_stored else ""
        passed = "nchan_redis_pass store;" if is_stored else ""
        config.write_text(
            _CONFIG.format(module=MODULE, folder=folder, port=port, upstream=upstream, passed=passed)
        )
        front = ["nginx", "-p", str(folder), "-c", str(config)]
        with contextlib.ExitStack() as stack:
            log = stack.enter_context(open(folder / "log", "w"))
            pids = [stack.enter_context(_redis(redis, folder, log)).pid] if is_stored else []
            master = stack.enter_context(running(front, SERVER_CORE, stdout=log, stderr=log))
            wait_for(port)
            time.sleep(0.5)  # it says 503 until it has connected to Redis
            yield port, [*pids, *_children(master)]


@contextlib.contextmanager
def _redis(port: int, folder: Path, log: IO[str]) -> Iterator[subprocess.Popen[str]]:
    argv = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
    argv += ["--appendonly", "yes", "--appendfsync", "always"]
    with running(argv, SERVER_CORE, stdout=log, stderr=log) as child:
        wait_for(port)
        yield child


def _children(parent: subprocess.Popen[str]) -> list[int]:
    path = Path(f"/proc/{parent.pid}/task/{parent.pid}/children")
    return [int(each) for each in path.read_text().split()]


def wait_for(port: int) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on port {port}")
