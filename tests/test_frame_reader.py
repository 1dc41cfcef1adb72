"""Tests of server/transports/frame_reader.py: frames in portions of any size become messages."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.transports.frame_reader import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PART,
    PING,
    PONG,
    TEXT,
    FrameReader,
    MalformedFrame,
    OverLimit,
)

LIMIT = 100_000
MASK = b"\x01\x02\x03\x04"


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = MASK, reserved: int = 0
) -> bytes:
    """As a client sends it."""
    size = len(payload)
    masked = 0x80 if mask is not None else 0
    head = bytes([0x80 * fin | reserved | opcode])
    if size < 126:
        head += bytes([masked | size])
    elif size < 1 << 16:
        head += struct.pack("!BH", masked | 126, size)
    else:
        head += struct.pack("!BQ", masked | 127, size)
    if mask is None:
        return head + payload
    return head + mask + bytes(byte ^ mask[at % 4] for at, byte in enumerate(payload))


def read(data: bytes, limit: int = LIMIT) -> list[tuple[int, bytes]]:
    """All messages in it."""
    reader = FrameReader()
    reader.feed(data)
    messages = []
    while (message := reader.next(limit)) is not None:
        messages.append(message)
    return messages


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536])
@pytest.mark.parametrize("mask", [MASK, b"\0\0\0\0", None], ids=["masked", "zeros", "unmasked"])
def test_a_message_of_any_size_is_read(size: int, mask: bytes | None) -> None:
    """Each form of the length (section 5.2)."""
    payload = bytes(number % 251 for number in range(size))
    assert read(frame(TEXT, payload, mask=mask)) == [(TEXT, payload)]


@pytest.mark.parametrize("size", [0, 125, 126, 65535, 65536])
def test_a_frame_may_be_cut_anywhere(size: int) -> None:
    """Also within its head, whichever form of the length that has."""
    payload = b"x" * size
    whole = frame(TEXT, payload)
    head = len(whole) - size
    for cut in {*range(head + 1), len(whole) - 1}:
        reader = FrameReader()
        reader.feed(whole[:cut])
        if cut < len(whole):
            assert reader.next(LIMIT) is None
            reader.feed(whole[cut:])
        assert reader.next(LIMIT) == (TEXT, payload)


def test_a_control_frame_may_hold_125_bytes() -> None:
    """Section 5.5."""
    assert read(frame(PING, b"x" * 125)) == [(PING, b"x" * 125)]


def test_nothing_is_kept_of_what_was_taken() -> None:
    """Of a client who is always in the middle of a frame when a portion ends."""
    reader, whole = FrameReader(), frame(TEXT, b"x" * 50)
    reader.feed(whole[:9])
    for _ in range(100):
        reader.feed(whole[9:] + whole[:9])
        assert reader.next(LIMIT) == (TEXT, b"x" * 50)
        assert reader.next(LIMIT) is None
    assert len(reader._buffer) <= 2 * len(whole)
    reader.feed(whole[9:])
    assert reader.next(LIMIT) == (TEXT, b"x" * 50)
    assert reader._buffer == b""


def test_fragments_are_one_message_with_control_frames_between_them() -> None:
    """Section 5.4: those may come in the middle."""
    data = (
        frame(BINARY, b"a", fin=False)
        + frame(PING, b"p")
        + frame(CONTINUATION, b"b", fin=False)
        + frame(PONG)
        + frame(CONTINUATION, b"c")
    )
    assert read(data) == [(PART, b""), (PING, b"p"), (PART, b""), (PONG, b""), (BINARY, b"abc")]


def test_it_says_whether_a_message_is_in_the_middle() -> None:
    """From its first part until its last."""
    reader = FrameReader()
    assert not reader.is_amid_message
    reader.feed(frame(TEXT, fin=False))
    reader.next(LIMIT)
    assert reader.is_amid_message
    reader.feed(frame(CONTINUATION))
    reader.next(LIMIT)
    assert not reader.is_amid_message


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(frame(TEXT, reserved=0x40), id="reserved-1"),
        pytest.param(frame(TEXT, reserved=0x20), id="reserved-2"),
        pytest.param(frame(TEXT, reserved=0x10), id="reserved-3"),
        pytest.param(frame(PING, b"x" * 126), id="long-ping"),
        pytest.param(frame(CLOSE, b"x" * 70_000), id="very-long-close"),
        pytest.param(frame(PING, b"x", fin=False), id="ping-in-parts"),
        pytest.param(frame(CLOSE, fin=False), id="close-in-parts"),
        pytest.param(frame(CONTINUATION, b"x"), id="nothing-to-continue"),
        pytest.param(frame(CONTINUATION, b"x", fin=False), id="nothing-to-continue-yet"),
        pytest.param(frame(TEXT, b"x", fin=False) + frame(TEXT, b"y"), id="message-in-message"),
        pytest.param(frame(TEXT, b"x", fin=False) + frame(BINARY, fin=False), id="parts-in-message"),
    ],
)
def test_what_is_malformed_is_refused(data: bytes) -> None:
    """There is no way to go on after it."""
    with pytest.raises(MalformedFrame):
        read(data)


def test_a_control_frame_that_says_it_is_long_is_refused_by_its_head() -> None:
    """What it would hold is not waited for."""
    with pytest.raises(MalformedFrame):
        read(frame(PING, b"x" * 200)[:2])


@pytest.mark.parametrize("size", [11, 200, 70_000, 1 << 40])
def test_a_message_over_the_limit_is_refused_by_its_head(size: int) -> None:
    """Nothing of it is held."""
    head = frame(TEXT, b"x" * min(size, 70_000))[: 2 if size < 126 else 4 if size < 65536 else 2]
    if size >= 65536:
        head = bytes([0x81, 0xFF]) + struct.pack("!Q", size)
    with pytest.raises(OverLimit):
        read(head, 10)


def test_the_parts_of_a_message_share_its_limit() -> None:
    """Else small ones would become a large one."""
    data = frame(TEXT, b"x" * 6, fin=False)
    assert read(data + frame(CONTINUATION, b"x" * 4), 10) == [(PART, b""), (TEXT, b"x" * 10)]
    with pytest.raises(OverLimit):
        read(data + frame(CONTINUATION, b"x" * 5), 10)


def test_the_limit_may_change_between_frames() -> None:
    """Who has joined may send more."""
    reader = FrameReader()
    reader.feed(frame(TEXT, b"x") + frame(TEXT, b"y" * 50))
    assert reader.next(10) == (TEXT, b"x")
    assert reader.next(50) == (TEXT, b"y" * 50)


MESSAGES = st.lists(
    st.tuples(st.sampled_from([TEXT, BINARY, PING, PONG]), st.binary(max_size=120)), min_size=1, max_size=8
)


@given(
    messages=MESSAGES, cuts=st.lists(st.integers(1, 40), min_size=1), mask=st.binary(min_size=4, max_size=4)
)
def test_portions_make_no_difference(messages: list[tuple[int, bytes]], cuts: list[int], mask: bytes) -> None:
    """However the bytes come, the messages are the same."""
    data = b"".join(frame(opcode, payload, mask=mask) for opcode, payload in messages)
    reader, found, at, number = FrameReader(), [], 0, 0
    while at < len(data):
        step = cuts[number % len(cuts)]
        reader.feed(data[at : at + step])
        at, number = at + step, number + 1
        while (message := reader.next(LIMIT)) is not None:
            found.append(message)
    assert found == messages


@given(st.binary(max_size=300))
def test_no_bytes_break_it(data: bytes) -> None:
    """They are messages, the beginning of one, or refused."""
    try:
        read(data)
    except (MalformedFrame, OverLimit):
        pass
