"""Tests of server/parsers.py."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from server import claims
from server.claims import MAX_USER_ID_BYTES
from server.errors import InvalidNotification, TooLarge
from server.ids import is_id
from server.messages import Mail, Publication, Recipient, now
from server.parsers import MAX_EMAIL_BYTES, FieldLimits, parse_notify

LIMITS = FieldLimits(content_bytes=100, field_bytes=40, users=5)
TEXT_FIELDS = ("type", "title", "url", "icon", "image")
HEADER_FIELDS = ("email_subject", "email_mime", "email_type")
ALL_FIELDS = ("content", *TEXT_FIELDS, "users", "email_send", "email_force", "email_content", *HEADER_FIELDS)

# What JSON and forms can hold, lone surrogates included.
any_text = st.text(st.characters(exclude_categories=())) | st.text("0123456789[]{}:,\"'\\ \r\n", max_size=30)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | any_text,
    lambda children: st.lists(children, max_size=4) | st.dictionaries(any_text, children, max_size=4),
    max_leaves=12,
)
users = st.lists(
    st.fixed_dictionaries({}, optional={"id": json_values, "email": json_values | st.emails()}) | json_values,
    max_size=6,
)
unicode_text = st.text(st.characters(exclude_categories=("Cs",)))


def _parse(limits: FieldLimits = LIMITS, **fields: Any) -> Publication:
    return parse_notify({"content": "C", **fields}, "default", limits)


def _refusal(**fields: Any) -> InvalidNotification:
    with pytest.raises(InvalidNotification) as caught:
        _parse(**fields)
    return caught.value


def _mail(**fields: Any) -> Mail:
    mail = _parse(**{"email_send": "1", **fields}).mail
    assert mail is not None
    return mail


# -- the notification ----------------------------------------------------------------------------------------
def test_the_least_is_content_alone() -> None:
    """Everything else has its default: empty texts, no users, no mail, no data; id and instant are ours."""
    before = now()
    publication = parse_notify({"content": ""}, "acme", LIMITS)
    notification = publication.notification
    assert (publication.recipients, publication.mail) == ((), None)
    assert (notification.tenant, notification.content, notification.data) == ("acme", "", None)
    assert [getattr(notification, name) for name in TEXT_FIELDS] == [""] * 5
    assert is_id(notification.nid)
    assert before <= notification.created_at <= before + timedelta(minutes=1)


def test_each_notification_has_its_own_id() -> None:
    """Two requests with the same fields are two notifications."""
    assert _parse().notification.nid != _parse().notification.nid


@pytest.mark.parametrize("fields", [{}, {"content": None}, {"title": "T"}])
def test_content_must_be_there(fields: dict[str, Any]) -> None:
    """It may be empty, not missing."""
    with pytest.raises(InvalidNotification) as caught:
        parse_notify(fields, "default", LIMITS)
    assert caught.value.field == "content"


def test_texts_are_stripped_and_null_is_the_default() -> None:
    """As the original stripped what a form sent; JSON's null says nothing."""
    notification = _parse(content=" C\r\n", title="\tT ", url=None).notification
    assert (notification.content, notification.title, notification.url) == ("C", "T", "")


def test_unknown_fields_are_ignored() -> None:
    """As the original did."""
    assert _parse(priority="high", data={"a": 1}).notification.data is None


@pytest.mark.parametrize("name", ["content", *TEXT_FIELDS, "email_content", *HEADER_FIELDS])
@pytest.mark.parametrize("value", [7, True, 1.5, ["x"], {"x": 1}], ids=repr)
def test_a_text_is_a_text(name: str, value: Any) -> None:
    """JSON values of another kind are refused by their field, not turned into texts."""
    assert _refusal(**{name: value}).field == name


@pytest.mark.parametrize("name", ["content", *TEXT_FIELDS, "email_content", "email_subject"])
def test_a_lone_surrogate_is_refused(name: str) -> None:
    """JSON can hold what no store and no mail can: it is not Unicode."""
    assert _refusal(**{name: "a\ud800b"}).field == name


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("content", 100),
        ("email_content", 100),
        *((name, 40) for name in (*TEXT_FIELDS, "email_subject", "email_mime")),
    ],
)
def test_limits_count_bytes_of_utf8(name: str, limit: int) -> None:
    """A text as long as its limit is taken, one byte more is too large and names field and limit."""
    _parse(**{name: "é" * (limit // 2)})
    with pytest.raises(TooLarge) as caught:
        _parse(**{name: "é" * (limit // 2) + "x"})
    assert caught.value.field == name
    assert str(limit) in str(caught.value)


@given(st.fixed_dictionaries({name: unicode_text for name in ("content", *TEXT_FIELDS)}))
def test_any_unicode_comes_back_as_it_went_in(texts: dict[str, str]) -> None:
    """Every character there is, in every text, but for white space at its ends."""
    notification = parse_notify(texts, "default", FieldLimits()).notification
    for name, text in texts.items():
        assert getattr(notification, name) == text.strip()
        getattr(notification, name).encode()


@given(st.dictionaries(st.sampled_from(ALL_FIELDS), json_values | users | users.map(json.dumps)))
@example({"content": "", "users": "[" * 100_000})
@example({"content": "", "users": '[{"id": ' + "9" * 10_000 + "}]"})
@example({"content": "", "email_type": "text/" + "x" * 1000})
def test_whatever_the_fields_hold_only_the_two_refusals_come_out(fields: dict[str, Any]) -> None:
    """No input is an internal error, and what is taken is fit for the store: distinct users, valid Unicode."""
    try:
        publication = parse_notify(fields, "default", FieldLimits(users=4))
    except (InvalidNotification, TooLarge) as error:
        assert error.field.partition("[")[0] in ALL_FIELDS
        return
    ids = [recipient.user_id for recipient in publication.recipients]
    assert len(set(ids)) == len(ids) <= 4
    for recipient in publication.recipients:
        assert recipient.user_id.encode()
        assert recipient.email is None or len(recipient.email.encode()) <= MAX_EMAIL_BYTES


# -- recipients ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("nobody", [None, "", "  ", "[]", "null", []], ids=repr)
def test_nobody_is_a_list_too(nobody: Any) -> None:
    """No users is no error: nothing will be stored."""
    assert _parse(users=nobody).recipients == ()


def test_users_come_as_json_text_or_as_a_list() -> None:
    """A form has the text, a JSON body the list; ids are texts or integers, addresses may be missing."""
    listed = [
        {"id": 1, "email": " a@example.test "},
        {"id": "b"},
        {"id": "c", "email": None},
        {"id": "d", "email": ""},
    ]
    expected = (Recipient("1", "a@example.test"), Recipient("b"), Recipient("c"), Recipient("d"))
    assert _parse(users=listed).recipients == expected
    assert _parse(users=json.dumps(listed)).recipients == expected


def test_the_same_user_twice_is_one_recipient() -> None:
    """1 and "1" are one user; the place is that of the first, the address the first one given."""
    listed = [
        {"id": 1},
        {"id": "x"},
        {"id": "1", "email": "a@example.test"},
        {"id": 1, "email": "b@example.test"},
    ]
    assert _parse(users=listed).recipients == (Recipient("1", "a@example.test"), Recipient("x"))


@pytest.mark.parametrize("value", ["[", "alice", "[{]", "\ufeff[]"])
def test_users_that_are_not_json_are_refused(value: str) -> None:
    """The original answered 500."""
    assert (_refusal(users=value).field, _refusal(users=value).reason) == ("users", "not JSON")


@pytest.mark.parametrize("value", ['{"id": 1}', '"alice"', "7", {"id": 1}, 7, True, 0.5], ids=repr)
def test_users_that_are_no_list_are_refused(value: Any) -> None:
    """One user alone is written as a list of one, too."""
    assert _refusal(users=value).field == "users"


@pytest.mark.parametrize(
    ("user", "field"),
    [
        ("alice", "users[1]"),
        (None, "users[1]"),
        ([], "users[1]"),
        ({}, "users[1].id"),
        ({"id": None}, "users[1].id"),
        ({"id": ""}, "users[1].id"),
        ({"id": True}, "users[1].id"),
        ({"id": 1.0}, "users[1].id"),
        ({"id": ["a"]}, "users[1].id"),
        ({"id": "\udfff"}, "users[1].id"),
        ({"id": "a", "email": 7}, "users[1].email"),
        ({"id": "a", "email": "\udfff@example.test"}, "users[1].email"),
    ],
    ids=repr,
)
def test_a_user_who_is_not_as_documented_is_refused_by_position(user: Any, field: str) -> None:
    """The path leads to the very user and field."""
    assert _refusal(users=[{"id": "fine"}, user]).field == field


@pytest.mark.parametrize(
    "email",
    [
        "alice",
        "@example.test",
        "alice@",
        "a@b@example.test",
        "a b@example.test",
        "a@example.test\r\nRCPT TO:<b@example.test>",
        "<a@example.test>",
        "a@example.test,b@example.test",
        '"a"@example.test',
        "a\x00@example.test",
        "a\u2028@example.test",
        "root[1]@example.test",
    ],
)
def test_an_address_that_no_envelope_takes_is_refused(email: str) -> None:
    """Nothing may break out of a RCPT command, or name two people."""
    error = _refusal(users=[{"id": "a", "email": email}])
    assert (error.field, error.reason) == ("users[0].email", "not an e-mail address")


@pytest.mark.parametrize(
    "email", ["a+tag@example.test", "o'neil@example.test", "ü@exämple.test", "a@[192.0.2.1]"]
)
def test_unusual_addresses_are_taken(email: str) -> None:
    """Whether anybody reads mail there, the mail server knows."""
    assert _parse(users=[{"id": "a", "email": email}]).recipients == (Recipient("a", email),)


def test_an_address_is_as_long_as_a_mail_server_takes() -> None:
    """64 + @ + 255 bytes (RFC 5321 section 4.5.3.1), whatever the limit of other fields."""
    longest = "a" * 64 + "@" + "b" * (MAX_EMAIL_BYTES - 65)
    assert _parse(users=[{"id": "a", "email": longest}]).recipients[0].email == longest
    with pytest.raises(TooLarge) as caught:
        _parse(users=[{"id": "a", "email": longest + "b"}])
    assert caught.value.field == "users[0].email"


def test_an_id_is_as_long_as_one_that_can_join() -> None:
    """In bytes of UTF-8, as tokens have it, whatever the limit of other fields."""
    longest = "ü" * (MAX_USER_ID_BYTES // 2)
    assert _parse(users=[{"id": longest}]).recipients[0].user_id == claims.user_id(longest) == longest
    with pytest.raises(TooLarge) as caught:
        _parse(users=[{"id": 1}, {"id": longest + "u"}])
    assert str(caught.value) == f"users[1].id: {MAX_USER_ID_BYTES + 1} bytes are more than the 1024 allowed"
    with pytest.raises(ValueError, match="longer than 1024 bytes"):
        claims.user_id(longest + "u")


def test_one_request_has_a_limit_of_users() -> None:
    """Counted as they were sent, also where some are the same."""
    assert len(_parse(users=[{"id": number} for number in range(5)]).recipients) == 5
    with pytest.raises(TooLarge) as caught:
        _parse(users=[{"id": 1}] * 6)
    assert caught.value.field == "users"
    assert "6 users" in str(caught.value)


def test_the_limits_are_those_of_the_issue() -> None:
    """10,000 users; 64 KiB of content; 2 KiB of every other text."""
    limits = FieldLimits()
    assert (limits.users, limits.content_bytes, limits.field_bytes) == (10_000, 65_536, 2_048)


# -- mail ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("value", ["1", "true", "True", "yes", "Yes", " 1 ", True, 1], ids=repr)
def test_what_is_true(value: Any) -> None:
    """C1's five texts, and what JSON has for them."""
    assert _parse(email_send=value).mail is not None
    assert _mail(email_force=value).forced


@pytest.mark.parametrize("value", ["", "0", "false", "TRUE", "on", "y", None, False, 0, 2], ids=repr)
def test_all_else_is_false(value: Any) -> None:
    """Nobody is mailed because of a text that the original did not take for true."""
    assert _parse(email_send=value, email_force=value).mail is None
    assert not _mail(email_force=value).forced


@pytest.mark.parametrize("name", ["email_send", "email_force"])
@pytest.mark.parametrize("value", [1.0, [], {}], ids=repr)
def test_what_is_neither_a_boolean_nor_a_text_is_refused(name: str, value: Any) -> None:
    """A list is no answer to a yes-or-no question."""
    assert _refusal(**{name: value}).field == name


def test_email_force_implies_email_send() -> None:
    """Everybody is mailed, asked for or not."""
    mail = _parse(email_force="yes", email_send="0").mail
    assert mail is not None
    assert mail.forced


def test_empty_mail_texts_fall_back_to_the_notification() -> None:
    """Subject from the title, text from the content, HTML unless said otherwise."""
    assert _mail(title="T") == Mail("T", "C", "html", forced=False)
    assert _mail(title="T", email_subject=" S ", email_content=" E ") == Mail("S", "E", "html", forced=False)


def test_a_title_of_several_lines_makes_a_subject_of_one() -> None:
    """The title is stored as it is; a header cannot hold its line breaks."""
    publication = _parse(title="one\r\ntwo\u2028three", email_send="1")
    assert publication.notification.title == "one\r\ntwo\u2028three"
    assert publication.mail is not None
    assert publication.mail.subject == "one  two three"


@pytest.mark.parametrize("name", HEADER_FIELDS)
@pytest.mark.parametrize(
    "control", ["\r\n", "\n", "\r", "\x00", "\t", "\x85", "\u2028", "\u2029", "\x7f"], ids=ascii
)
@pytest.mark.parametrize("place", ["{}text/plain", "text/plain{}", "text/{}plain"])
def test_control_characters_are_refused_in_what_becomes_a_header(name: str, control: str, place: str) -> None:
    """Also at the ends, where stripping would hide them, and also where no mail is asked for."""
    assert _refusal(**{name: place.format(control)}).field == name


@pytest.mark.parametrize(
    ("email_type", "subtype"),
    [
        ("", "html"),
        ("text/html", "html"),
        (" text/plain ", "plain"),
        ("TEXT/Plain", "plain"),
        ("text/html; charset=iso-8859-1", "html"),
        ("text/plain;format=flowed", "plain"),
        ("text/x-amp-html", "x-amp-html"),
    ],
)
def test_the_mail_is_of_a_text_type(email_type: str, subtype: str) -> None:
    """Parameters say nothing here: the mail is always UTF-8."""
    assert _mail(email_type=email_type).subtype == subtype


@pytest.mark.parametrize(
    "email_type", ["html", "text/", "image/png", "text/ html", "text/html charset", "text/ü"]
)
def test_another_type_is_refused(email_type: str) -> None:
    """Also where no mail is asked for: a mistake should not wait for the day it matters."""
    assert _refusal(email_type=email_type).field == "email_type"
