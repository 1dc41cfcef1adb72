from __future__ import annotations

import asyncio
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from server.mail_folder import MailFolder
from server.mail_message import MailMessage, Sender, build_message
from server.mail_transport import Handover
from server.messages import Mail

CREATED_AT = datetime(2024, 3, 14, 9, 26, 53, 589000, tzinfo=UTC)


def message(number: int = 1, subject: str = "Grüße", content: str = "<p>Ünïcödé</p>") -> MailMessage:
    created_at = CREATED_AT + timedelta(milliseconds=number)
    return build_message(
        Mail(subject, content), f"{number:024x}", created_at, Sender("Server", "notify@example.org")
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "data" / "mail"


async def test_a_newcomer_sees_the_mail(folder: Path) -> None:
    """The file is the message as it would have gone out, below the envelope it would have gone in."""
    assert await MailFolder(folder).send(message(), ["ann@example.org", "jörg@example.org"], 10) == Handover(
        {}
    )
    [path] = folder.iterdir()
    assert path.name == "20240314T092653.590Z-000000000000000000000001.eml"
    assert (
        path.read_bytes()
        == (
            "X-Envelope-From: notify@example.org\r\n"
            "X-Envelope-To: ann@example.org\r\n"
            "X-Envelope-To: jörg@example.org\r\n"
        ).encode()
        + message().content
    )


async def test_private(folder: Path) -> None:
    """Nobody else on the machine reads the mails."""
    await MailFolder(folder).send(message(), ["ann@example.org"], 10)
    [path] = folder.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_list(folder: Path) -> None:
    """The mailbox shows the newest mails first, each as it was published, with its recipients."""
    mails = MailFolder(folder)
    await mails.send(message(1), ["ann@example.org"], 10)
    await mails.send(message(2, "", "line\n.\nlast"), ["ben@example.org", "jörg@example.org"], 10)
    assert await mails.list_newest(10) == [
        {
            "file": "20240314T092653.591Z-000000000000000000000002.eml",
            "from": "Server <notify@example.org>",
            "to": ["ben@example.org", "jörg@example.org"],
            "subject": "",
            "date": "2024-03-14T09:26:53Z",
            "content_type": "text/html",
            "text": "line\n.\nlast\n",
        },
        {
            "file": "20240314T092653.590Z-000000000000000000000001.eml",
            "from": "Server <notify@example.org>",
            "to": ["ann@example.org"],
            "subject": "Grüße",
            "date": "2024-03-14T09:26:53Z",
            "content_type": "text/html",
            "text": "<p>Ünïcödé</p>\n",
        },
    ]
    assert [mail["to"] for mail in await mails.list_newest(1)] == [["ben@example.org", "jörg@example.org"]]


async def test_empty(folder: Path) -> None:
    """Before the first mail the mailbox is empty, and the folder not yet made."""
    assert await MailFolder(folder).list_newest(10) == []
    assert not folder.exists()


async def test_one_file_for_one_notification(folder: Path) -> None:
    """A repeat makes no second file, and further recipients join the first ones."""
    mails = MailFolder(folder)
    await mails.send(message(), ["ann@example.org", "jörg@example.org"], 10)
    await mails.send(message(), ["ben@example.org", "ann@example.org"], 10)
    [mail] = await mails.list_newest(10)
    assert mail["to"] == ["ann@example.org", "jörg@example.org", "ben@example.org"]
    assert len(list(folder.iterdir())) == 1


async def test_parts_at_the_same_time(folder: Path) -> None:
    """No recipient is lost when parts of one message come at once."""
    mails = MailFolder(folder)
    addresses = [f"user{number}@example.org" for number in range(20)]
    await asyncio.gather(*(mails.send(message(), [address], 10) for address in addresses))
    [mail] = await mails.list_newest(10)
    assert sorted(mail["to"]) == sorted(addresses)


async def test_bounded(folder: Path) -> None:
    """The folder keeps the newest mails and never touches a file that is not its own."""
    mails = MailFolder(folder, keep=3)
    folder.mkdir(parents=True)
    (folder / "mine.eml").write_text("hello")
    for number in range(5):
        await mails.send(message(number), ["ann@example.org"], 10)
    listed = [mail["file"] for mail in await mails.list_newest(10)]
    assert [name[-5:] for name in listed] == ["4.eml", "3.eml", "2.eml"]
    assert sorted(path.name for path in folder.iterdir()) == sorted([*listed, "mine.eml"])


async def test_content_that_looks_like_an_envelope(folder: Path) -> None:
    """A published text adds no recipient to the file."""
    mails = MailFolder(folder)
    evil = message(subject="X-Envelope-To: eve@example.org", content="X-Envelope-To: eve@example.org")
    await mails.send(evil, ["ann@example.org"], 10)
    await mails.send(evil, ["ann@example.org"], 10)
    [mail] = await mails.list_newest(10)
    assert mail["to"] == ["ann@example.org"]


async def test_unwritable(tmp_path: Path) -> None:
    """A folder that cannot be written loses no mail: they are tried again, and the operator hears why."""
    (tmp_path / "file").write_text("in the way")
    mails = MailFolder(tmp_path / "file" / "mail")
    handover = await mails.send(message(), ["ann@example.org"], 10)
    assert handover.refused["ann@example.org"].is_temporary
    assert handover.outage and handover.outage.needs_operator
    assert "cannot write to" in handover.outage.reason and str(tmp_path) in handover.outage.reason


async def test_removed_while_listing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that goes while the mailbox is read is left out."""
    mails = MailFolder(folder)
    await mails.send(message(1), ["ann@example.org"], 10)
    await mails.send(message(2), ["ann@example.org"], 10)
    newest_first = mails._newest_first

    def and_remove_one() -> list[Path]:
        paths = newest_first()
        paths[0].unlink()
        return paths

    monkeypatch.setattr(mails, "_newest_first", and_remove_one)
    assert [mail["file"][-5:] for mail in await mails.list_newest(10)] == ["1.eml"]


def test_name(folder: Path) -> None:
    """The name tells the newcomer where the mails lie, and why."""
    assert MailFolder(folder).name == f"files in {folder} (no mail server is configured)"


async def test_several_workers_share_the_folder(folder: Path) -> None:
    """Parts of one message that they send at the same time end in its one file."""
    addresses = [f"user{number}@example.org" for number in range(20)]
    workers = [MailFolder(folder) for _ in range(4)]
    sending = (workers[number % 4].send(message(), [each], 10) for number, each in enumerate(addresses))
    assert await asyncio.gather(*sending) == [Handover({})] * len(addresses)
    [mail] = await workers[0].list_newest(10)
    assert sorted(mail["to"]) == sorted(addresses)
