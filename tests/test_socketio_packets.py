"""The packets of Engine.IO and Socket.IO, held against those of python-socketio."""

from __future__ import annotations

import json
from typing import Any

import pytest
from engineio.packet import Packet as EnginePacket
from engineio.payload import Payload
from hypothesis import given
from hypothesis import strategies as st
from socketio.packet import Packet

from server.transports.socketio import packets
from server.transports.socketio.packets import Connect, MalformedPacket, kind_of, parse_connect
from server.wire import GOING_AWAY, SIGNED_OUT

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
namespaces = st.sampled_from(["/", "/admin", "/a/b-c"])


def heard(packet: str) -> Packet:
    """What python-socketio understands of a packet of ours."""
    engine = EnginePacket(encoded_packet=packet)
    assert engine.packet_type == 4
    return Packet(encoded_packet=engine.data)


@given(auth=st.none() | st.dictionaries(st.text(), json_values), namespace=namespaces)
def test_how_another_implementation_connects_is_understood(auth: Any, namespace: str) -> None:
    """With whatever it shows for it, to whatever namespace."""
    text = Packet(0, auth, namespace).encode()
    assert kind_of(text) == packets.CONNECT
    assert parse_connect(text) == Connect(namespace, auth)


@given(values=st.lists(json_values), id=st.none() | st.integers(0, 10**6), namespace=namespaces)
def test_what_another_implementation_says_is_known(values: list[Any], id: int | None, namespace: str) -> None:
    """Of what kind it is, and that it speaks of our namespace."""
    is_ours = namespace == "/"
    event = Packet(2, ["name", *values], namespace, id).encode()
    assert kind_of(event) == (packets.EVENT if is_ours else "")
    binary = Packet(2, ["name", b"bytes", *values], namespace, id).encode()[0]
    assert kind_of(binary) == (packets.BINARY_EVENT if is_ours else "")
    assert kind_of(Packet(3, values, namespace, id or 0).encode()) == (packets.ACK if is_ours else "")
    assert kind_of(Packet(1, namespace=namespace).encode()) == (packets.DISCONNECT if is_ours else "")


@given(text=st.text())
def test_any_text_is_of_a_kind_or_of_none(text: str) -> None:
    """And what it takes to connect is right, or refused."""
    kind = kind_of(text)
    assert kind in ("", "0", "1", "2", "3", "5", "6")
    if kind == packets.CONNECT:
        try:
            parse_connect(text)
        except MalformedPacket:
            pass


@pytest.mark.parametrize(
    "text",
    [
        "0{",
        "0[" + "[" * 100_000,
        "0/" + "n" * 200,
        "0NaN,",
        '0"' + "\ud800",
        "0" + "[" * 50_000 + "]" * 50_000,
        "0[" + "1," * 50_000 + "1]",
    ],
)
def test_what_nobody_says_is_malformed(text: str) -> None:
    with pytest.raises(MalformedPacket):
        parse_connect(text)


def test_what_a_client_is_told_is_understood() -> None:
    """By another implementation, as it is meant."""
    packet = heard(packets.connected("abc"))
    assert (packet.packet_type, packet.namespace, packet.data) == (0, None, {"sid": "abc"})
    packet = heard(packets.refused("why", "code", "/admin"))
    assert packet.packet_type == 4
    assert (packet.namespace, packet.data) == ("/admin", {"message": "why", "data": {"code": "code"}})
    event = heard(packets.goodbye(GOING_AWAY, True)[0])
    assert (event.packet_type, event.data) == (2, ["close", {"code": 1001, "reason": "going away"}])
    assert [heard(packet).packet_type for packet in packets.goodbye(SIGNED_OUT, True)] == [2, 1]
    assert [heard(packet).packet_type for packet in packets.goodbye(SIGNED_OUT, False)] == [4]
    assert packets.goodbye(GOING_AWAY, False) == []


@given(values=st.lists(st.lists(json_values, min_size=1), min_size=1, max_size=5))
def test_events_in_one_answer_are_understood(values: list[list[Any]]) -> None:
    """Each as it was, in their order."""
    body = b"".join(packets.polling_bytes(json.dumps(each)) for each in values).decode()
    payload = Payload(encoded_payload=body.removeprefix(packets.SEPARATOR))
    assert [Packet(encoded_packet=packet.data).data for packet in payload.packets] == values


@given(texts=st.lists(st.text(st.characters(exclude_characters=packets.SEPARATOR), max_size=5), min_size=1))
def test_a_body_is_divided_at_each_separator(texts: list[str]) -> None:
    """One by one, and empty ones, too."""
    assert list(packets.split(packets.SEPARATOR.join(texts))) == texts
