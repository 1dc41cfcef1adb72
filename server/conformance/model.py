"""What a correct client of dialect 2 makes of the frames that it is told: the state machine of docs/protocol.md, and
nothing else. No I/O. docs/conformance/client.mjs is the same in JavaScript."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Fields = dict[str, Any]


class InboxModel:
    """The inbox of one user, as far as a client has read it. `must_page`: the pages have to be read, from the newest
    one on; `must_sync`: it has to be asked what has changed."""

    def __init__(self) -> None:
        self.documents: dict[str, Fields] = {}
        """By `_id`; tombstones stay, so that nothing late brings them back."""
        self.since: str | None = None
        self.counts: Fields | None = None
        self.must_page = True
        self.must_sync = False
        self._all_seen_upto = ""

    def hear(self, name: str, data: Mapping[str, Any]) -> None:
        """A frame, be it an answer or a push. What is not known is passed over."""
        match name:
            case "joined":
                self._joined(data)
            case "content":
                self._content(data)
            case "sync":
                self._sync(data)
            case "notification" | "restored":
                self._take(data)
            case "seen" | "unseen" | "delete":
                self._change(name, data)
            case "counts":
                self.counts = dict(data)
            case "missed":
                self.must_sync = True

    # -- what is read ----------------------------------------------------------------------------------------
    def _joined(self, data: Mapping[str, Any]) -> None:
        self.counts = dict(data["counts"])
        if data["since"] is not None:  # else what has changed follows
            self._begin_anew()
            self.since = data["since"]

    def _content(self, data: Mapping[str, Any]) -> None:
        for document in data["documents"]:
            self._take(document)
        if not data["older"]:
            self.must_page = False

    def _sync(self, data: Mapping[str, Any]) -> None:
        if data["reset"]:
            self._begin_anew()
        for document in data["documents"]:
            self._take(document)
        if data["floor"] is not None:
            kept = {id_: each for id_, each in self.documents.items() if each["createdAt"] >= data["floor"]}
            self.documents = kept
        self.since = data["upto"]
        self.must_sync = self.must_sync and data["more"]

    def _begin_anew(self) -> None:
        self.documents.clear()
        self._all_seen_upto = ""
        self.must_page, self.must_sync = True, False

    # -- by their revs ---------------------------------------------------------------------------------------
    def _take(self, document: Mapping[str, Any]) -> None:
        known = self.documents.get(document["_id"])
        if known is None or known["rev"] < document["rev"]:
            seen = document["seen"] or document["rev"] <= self._all_seen_upto
            self.documents[document["_id"]] = {**document, "seen": seen}

    def _change(self, name: str, data: Mapping[str, Any]) -> None:
        if "changed" in data:
            return  # the answer to "all": what has really been reached was pushed before
        if data.get("all"):
            self._all_seen_upto = max(self._all_seen_upto, data["upto"])
            for document in self.documents.values():
                # Its rev stays: what has become of it since is still news.
                document["seen"] = document["seen"] or document["rev"] <= data["upto"]
            return
        changes = {"seen": {"seen": True}, "unseen": {"seen": False}, "delete": {"delete": True}}[name]
        for id_ in data["ids"]:
            known = self.documents.get(id_)
            # Of a tombstone that is `seen` the `restored` before it is yet to come: its rev must not be passed.
            if known and not known["delete"]:
                self._take({**known, **changes, "rev": data["rev"]})

    @property
    def inbox(self) -> dict[str, bool]:
        """What is in the inbox, newest first, and whether it is seen."""
        kept = [each for each in self.documents.values() if not each["delete"]]
        kept.sort(key=lambda each: (each["createdAt"], each["_id"]), reverse=True)
        return {each["_id"]: each["seen"] for each in kept}
