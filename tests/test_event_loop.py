"""The event loop, with names looked up apart."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from server.event_loop import loop_factory

ROOT = Path(__file__).resolve().parents[1]

EACH = pytest.mark.parametrize("name", ["asyncio", "uvloop"])


class SilentName:
    """A resolver that does not answer for one name, until it is released."""

    def __init__(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.released = threading.Event()
        real = socket.getaddrinfo

        def look_up(host: Any, *args: Any, **kwargs: Any) -> Any:
            if host != name:
                return real(host, *args, **kwargs)
            self.asked += 1
            self.released.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

        monkeypatch.setattr(socket, "getaddrinfo", look_up)


@EACH
def test_a_name_that_hangs_holds_up_nothing_else(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ask for a name whose servers do not answer, other names are found, and threads do their work."""
    silent = SilentName("silent.example", monkeypatch)

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        given_up = [asyncio.ensure_future(loop.getaddrinfo("silent.example", 443)) for _ in range(100)]
        await asyncio.sleep(0)
        for each in given_up:
            each.cancel()
        await asyncio.gather(*given_up, return_exceptions=True)
        waiting = asyncio.ensure_future(loop.getaddrinfo("silent.example", 443))
        try:
            async with asyncio.timeout(30):
                found = await loop.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM)
                assert [each[4] for each in found] == [("127.0.0.1", 80)]
                assert await asyncio.to_thread(lambda: "done") == "done"
            assert not waiting.done()
        finally:
            silent.released.set()
        with pytest.raises(socket.gaierror):
            await waiting
        assert silent.asked == 1

    with asyncio.Runner(loop_factory=loop_factory(name)) as runner:
        runner.run(ask())


@EACH
def test_a_name_that_is_not_found_when_nobody_waits_any_more(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Is no mistake that asyncio would complain of."""
    silent = SilentName("silent.example", monkeypatch)
    complaints: list[dict[str, Any]] = []

    async def ask() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await loop.getaddrinfo("silent.example", 443)
        silent.released.set()
        with pytest.raises(socket.gaierror):
            await loop.getaddrinfo("silent.example", 443)
        await asyncio.sleep(0.05)
        gc.collect()

    with asyncio.Runner(loop_factory=loop_factory(name)) as runner:
        runner.run(ask())
    assert not complaints


@EACH
def test_a_name_is_looked_up_anew(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a look-up found, or that it failed, is not remembered."""
    silent = SilentName("moved.example", monkeypatch)
    silent.released.set()

    async def ask() -> None:
        for _ in range(2):
            with pytest.raises(socket.gaierror):
                await asyncio.get_running_loop().getaddrinfo("moved.example", 443)
            await asyncio.sleep(0)
        assert silent.asked == 2

    with asyncio.Runner(loop_factory=loop_factory(name)) as runner:
        runner.run(ask())


@EACH
def test_a_name_that_cannot_be_one_is_refused(name: str) -> None:
    """Nobody waits for it for ever."""

    async def ask() -> None:
        async with asyncio.timeout(60):
            with pytest.raises(UnicodeError):
                await asyncio.get_running_loop().getaddrinfo(f"{'x' * 64}.example", 443)

    with asyncio.Runner(loop_factory=loop_factory(name)) as runner:
        runner.run(ask())


HANGING = """
import asyncio, socket, sys, threading
from server.event_loop import loop_factory

socket.getaddrinfo = lambda *_: threading.Event().wait()

async def main():
    asyncio.ensure_future(asyncio.get_running_loop().getaddrinfo("silent.example", 443))
    await asyncio.sleep(0)

with asyncio.Runner(loop_factory=loop_factory(sys.argv[1])) as runner:
    runner.run(main())
"""


@EACH
def test_a_name_that_hangs_does_not_keep_the_process(name: str) -> None:
    """It ends all the same, as if there were no look-up."""
    ended = subprocess.run(
        [sys.executable, "-c", HANGING, name], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.returncode, ended.stderr) == (0, "")
