"""What a client of dialect 2 makes of the frames that it is told, by the rules of docs/protocol.md alone: independent
of the server's code."""

from __future__ import annotations

from typing import Any

Fields = dict[str, Any]


class InboxModel:
    """The inbox of one user, as a client knows it."""

    def __init__(self) -> None:
        self.documents: dict[str, Fields] = {}
        """All that it was ever told of, tombstones too, by `_id`."""
        self.since: str | None = None
        self.counts: Fields | None = None
        self.is_to_page = True
        """Whether it has to read all pages: at the beginning, and after `reset`."""
        self.is_to_sync = False
        self._all_seen_upto = ""

    def apply(self, name: str, data: Fields) -> None:
        """One frame, whatever it answers."""
        apply = getattr(self, f"_{name}", None)
        if apply is not None:
            apply(data)

    # -- answers ---------------------------------------------------------------------------------------------
    def _joined(self, data: Fields) -> None:
        self.counts = data["counts"]
        if data["since"] is not None:
            self.since = data["since"]
            self._begin_anew()

    def _content(self, data: Fields) -> None:
        for document in data["documents"]:
            self._take(document)

    def _sync(self, data: Fields) -> None:
        if data["reset"]:
            self._begin_anew()
        for document in data["documents"]:
            self._take(document)
        if data["floor"] is not None:
            self.documents = {
                id_: each for id_, each in self.documents.items() if each["createdAt"] >= data["floor"]
            }
        self.since = data["upto"]

    def _begin_anew(self) -> None:
        self.documents.clear()
        self._all_seen_upto = ""
        self.is_to_page = True

    # -- pushes ----------------------------------------------------------------------------------------------
    def _notification(self, data: Fields) -> None:
        self._take(data)

    def _restored(self, data: Fields) -> None:
        self._take(data)

    def _counts(self, data: Fields) -> None:
        self.counts = data

    def _missed(self, data: Fields) -> None:
        self.is_to_sync = True

    def _seen(self, data: Fields) -> None:
        if "changed" in data:
            return  # the answer to "all": what has really been reached was pushed before
        if "all" not in data:
            self._change(data, seen=True)
            return
        self._all_seen_upto = max(self._all_seen_upto, data["upto"])
        self._all_seen_upto = max(self._all_seen_upto, data["upto"])
        for document in self.documents.values():
            if document["rev"] <= data["upto"]:
                document["seen"] = True  # its rev stays: what has become of it since is still news

    def _unseen(self, data: Fields) -> None:
        self._change(data, seen=False)

    def _delete(self, data: Fields) -> None:
        self._change(data, delete=True)

    # -- by their revs ---------------------------------------------------------------------------------------
    def _take(self, document: Fields) -> None:
        known = self.documents.get(document["_id"])
        if known is None or known["rev"] < document["rev"]:
            seen = document["seen"] or document["rev"] <= self._all_seen_upto
            self.documents[document["_id"]] = {**document, "seen": seen}

    def _change(self, data: Fields, **fields: bool) -> None:
        for id_ in data["ids"]:
            document = self.documents.get(id_)
            if document is not None and document["rev"] < data["rev"]:
                self._take({**document, **fields, "rev": data["rev"]})

    def _forget(self) -> None:
        self.documents.clear()
        self._all_seen_upto = ""

    @property
    def state(self) -> dict[str, bool]:
        """What is in the inbox, and whether it is seen."""
        return {id_: each["seen"] for id_, each in self.documents.items() if not each["delete"]}
