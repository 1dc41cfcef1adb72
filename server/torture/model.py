"""What a client of dialect 2 knows, by the rules of docs/protocol.md and nothing else. No I/O."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Fields = dict[str, Any]


class InboxModel:
    """The inbox of one user. `has_to_page`: it has to read all pages, at the beginning and after `reset`."""

    def __init__(self) -> None:
        self.documents: dict[str, Fields] = {}
        self.since: str | None = None
        self.has_to_page = True
        self.has_missed = False

    def hear(self, name: str, data: Mapping[str, Any]) -> None:
        """A frame, whatever it answers."""
        match name:
            case "joined" if data["since"] is not None:
                self._begin_anew()
                self.since = data["since"]
            case "content":
                self._take_all(data)
            case "sync":
                if data["reset"]:
                    self._begin_anew()
                self._take_all(data)
                self._drop_older(data["floor"])
                self.since = data["upto"]
            case "notification" | "restored":
                self._take(data)
            case "seen" | "unseen" | "delete":
                self._change(name, data)
            case "missed":
                self.has_missed = True

    def _begin_anew(self) -> None:
        self.documents.clear()
        self.has_to_page = True

    def _take_all(self, data: Mapping[str, Any]) -> None:
        for document in data["documents"]:
            self._take(document)

    def _take(self, document: Mapping[str, Any]) -> None:
        known = self.documents.get(document["_id"])
        if known is None or known["rev"] < document["rev"]:
            self.documents[document["_id"]] = dict(document)

    def _drop_older(self, floor: str | None) -> None:
        if floor is not None:
            kept = {id_: each for id_, each in self.documents.items() if each["createdAt"] >= floor}
            self.documents = kept

    def _change(self, name: str, data: Mapping[str, Any]) -> None:
        if data.get("all"):
            for document in self.documents.values():
                # Its rev stays: what has become of it since is still news.
                document["seen"] = document["seen"] or document["rev"] <= data["upto"]
            return
        fields = {"seen": {"seen": True}, "unseen": {"seen": False}, "delete": {"delete": True}}[name]
        for id_ in data["ids"]:
            document = self.documents.get(id_, {"rev": "~"})
            if data["rev"] is not None and document["rev"] < data["rev"]:
                document.update(fields, rev=data["rev"])

    @property
    def states(self) -> dict[str, bool]:
        """What is in the inbox, and whether it is seen."""
        return {id_: each["seen"] for id_, each in self.documents.items() if not each["delete"]}

    @property
    def tombstones(self) -> list[str]:
        return [id_ for id_, each in self.documents.items() if each["delete"]]
