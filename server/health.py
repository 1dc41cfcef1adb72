"""What operators and load balancers ask: `/healthz`, `/readyz`, `/health` and `/metrics`.

Nobody learns an address, a name or a secret here; who may see the figures of single tenants is decided here.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tornado.httputil import HTTPServerRequest
from tornado.web import RequestHandler

from server.accept import best_offer
from server.callers import PROXY_HEADER_PREFIX, PROXY_HEADERS, Caller, IPNetwork
from server.checks import Checks, Finding, State
from server.errors import RateLimited, Refused, ServerError
from server.exposition import EVERYTHING, TOTALS, Exposition, Summary, TextFormat, View
from server.grants import DEFAULT_TENANT, Grant, Scope
from server.methods import methods_of
from server.metrics import Metrics

SERVICE = "notification-server"
DOOR = "health"
"""The name of this door, for figures and logs."""

JSON = "application/json"

Who = Callable[[HTTPServerRequest], Awaitable[Grant | None]]
"""What the credential in a request allows; None: there is none. Raises `ServerError` if it is wrong."""


@dataclass(slots=True, kw_only=True)
class Instruments:
    """What the handlers need. `identify`: who calls, see `callers.CallerPolicy`; `internal`: networks whose callers see
    everything; `public_metrics`: whether anybody sees the totals. May be changed while the server runs."""

    metrics: Metrics
    exposition: Exposition
    checks: Checks
    who: Who
    identify: Callable[[str, Mapping[str, str]], Caller]
    internal: Sequence[IPNetwork] = ()
    public_metrics: bool = True


def note_request(metrics: Metrics, handler: RequestHandler) -> None:
    """Count a request that has been answered; for `log_function` of the application. Those of listening clients are
    left out: how long they take is how long there was nothing to tell."""
    module = type(handler).__module__.split(".")
    if module[:2] == ["server", "transports"]:
        return
    door = getattr(handler, "door", "") or (module[1] if module[0] == "server" else "none")
    metrics.note_request(door, handler.get_status(), handler.request.request_time())


class _Handler(RequestHandler):
    door = DOOR

    def initialize(self, instruments: Instruments) -> None:
        self._instruments = instruments

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")

    def _is_internal(self) -> bool:
        remote_ip, headers = self.request.remote_ip or "", self.request.headers
        caller = self._instruments.identify(remote_ip, headers)
        if caller.is_local:
            return True
        # Through a proxy that nobody trusts, all the world has that proxy's address.
        if caller.address == remote_ip and any(_is_of_proxy(name) for name in headers):
            return False
        try:
            address = ipaddress.ip_address(caller.address)
        except ValueError:
            return False
        address = getattr(address, "ipv4_mapped", None) or address
        return any(address in network for network in self._instruments.internal)

    def _answer(self, status: int, fields: Mapping[str, Any], media_type: str = JSON) -> None:
        self.set_status(status)
        self.set_header("Content-Type", media_type)
        self.finish(json.dumps(fields))

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """What Tornado refuses by itself, such as a method that there is not, and what fails here."""
        if status_code == 405:
            self.set_header("Allow", methods_of(type(self)))
        code = "internal" if status_code >= 500 else self._reason.lower().replace(" ", "_")
        problem = {"type": "about:blank", "title": code, "status": status_code, "detail": self._reason}
        self._answer(status_code, problem, "application/problem+json")


class AliveHandler(_Handler):
    """`GET /healthz`: the process is alive and its loop turns."""

    def get(self) -> None:
        self._answer(200, {"status": "ok"})

    head = get  # Tornado sends no body then; load balancers ask like this


class ReadyHandler(_Handler):
    """`GET /readyz`: whether this node should be sent clients, and how each of its dependencies is."""

    async def get(self) -> None:
        checks = self._instruments.checks
        findings = await checks.look()
        if checks.state is not State.SERVING:
            status = checks.state.value
        elif _is_vital_down(findings):
            status = "unavailable"
        else:
            status = "ready" if all(finding.is_up for finding in findings) else "degraded"
        is_ready = status in ("ready", "degraded")
        shown = {finding.name: _shown(finding) for finding in findings}
        self._answer(200 if is_ready else 503, {"status": status, "dependencies": shown})

    head = get


class HealthHandler(_Handler):
    """`GET /health`: in the shape of CONTRACT C2, with `store` and `mail` beside it."""

    async def get(self) -> None:
        checks = self._instruments.checks
        findings = {finding.name: finding for finding in await checks.look()}
        # To clients of C2 Redis is a dependency like any other.
        is_down = _is_vital_down(findings.values()) or not getattr(findings.get("redis"), "is_up", True)
        is_healthy = checks.state is State.SERVING and not is_down
        summary = await self._instruments.exposition.summary(TOTALS)
        is_shown = self._instruments.public_metrics or self._is_internal()
        self._answer(
            200 if is_healthy else 503,
            {
                "status": "healthy" if is_healthy else "degraded",
                "timestamp": _timestamp(),
                "redis": _pinged(findings["redis"])
                if "redis" in findings
                else {"status": "not_configured", "ping_ms": None},
                "websocket": {
                    "active_connections": summary.connections if is_shown else None,
                    "total_unique_users": summary.users if is_shown else None,
                },
                "uptime_seconds": int(self._instruments.metrics.uptime_s),
                "store": _pinged(findings.get("store")),
                "mail": _pinged(findings.get("mail")),
            },
        )

    head = get


class MetricsHandler(_Handler):
    """`GET /metrics`: as JSON in C2's shape, or as Prometheus's text for whoever asks for that."""

    async def get(self) -> None:
        try:
            view = await self._view()
        except ServerError as error:
            self._refuse(error)
            return
        instruments = self._instruments
        await instruments.checks.look()
        offer = best_offer(self.request.headers.get("Accept", ""), (JSON, *TextFormat))
        if offer == JSON:
            self._answer(200, self._as_json(await instruments.exposition.summary(view)))
            return
        text_format = TextFormat(offer)
        self.set_header("Content-Type", text_format.content_type)
        self.finish(await instruments.exposition.text(view, text_format))

    head = get

    # -- who may see what ------------------------------------------------------------------------------------
    async def _view(self) -> View:
        """What the caller may see. Raises `ServerError`."""
        instruments = self._instruments
        if self._is_internal():
            return EVERYTHING
        grant = await instruments.who(self.request)
        if grant is not None and grant.allows(Scope.ADMIN):
            # Whoever runs the server has the tenant that was there first; all others are guests in it.
            if grant.tenant == DEFAULT_TENANT:
                return EVERYTHING
            return View(by_tenant=True, tenant=grant.tenant, has_node=instruments.public_metrics)
        if not instruments.public_metrics:
            raise Refused("the figures are for internal callers and keys with the scope admin")
        return TOTALS

    # -- answering -------------------------------------------------------------------------------------------
    def _as_json(self, summary: Summary) -> dict[str, Any]:
        return {
            "service": SERVICE,
            "timestamp": _timestamp(),
            "uptime_seconds": int(self._instruments.metrics.uptime_s),
            "connections": {"active": summary.connections, "total_unique_users": summary.users},
            "messages": {
                "received_from_redis": summary.fetched,
                "sent_to_clients": summary.sent,
                "failed": summary.failed,
            },
        }

    def _refuse(self, error: ServerError) -> None:
        """As RFC 9457 has it."""
        if isinstance(error, RateLimited):
            self.set_header("Retry-After", str(int(error.retry_after_s) + 1))
        problem = {
            "type": "about:blank",
            "title": error.code,
            "status": error.http_status,
            "detail": str(error),
        }
        self._answer(error.http_status, problem, "application/problem+json")


def _is_vital_down(findings: Any) -> bool:
    return any(finding.is_vital and not finding.is_up for finding in findings)


def _shown(finding: Finding) -> dict[str, Any]:
    fields: dict[str, Any] = {"status": "up" if finding.is_up else "down", "latency_ms": finding.latency_ms}
    return fields if finding.is_up else fields | {"reason": finding.reason}


def _pinged(finding: Finding | None) -> dict[str, Any]:
    """As C2 shows its Redis."""
    if finding is None:
        return {"status": "unknown", "ping_ms": None}
    if not finding.is_up:
        return {"status": "disconnected", "ping_ms": None, "reason": finding.reason}
    return {"status": "connected", "ping_ms": finding.latency_ms}


def _timestamp() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _is_of_proxy(header: str) -> bool:
    name = header.lower()
    return name in PROXY_HEADERS or name.startswith(PROXY_HEADER_PREFIX)


def early_routes(instruments: Instruments) -> list[tuple[Any, ...]]:
    """What every server answers, also before it serves."""
    needs = {"instruments": instruments}
    return [(r"/healthz", AliveHandler, needs), (r"/readyz", ReadyHandler, needs)]


def routes(instruments: Instruments) -> list[tuple[Any, ...]]:
    """What every server answers."""
    needs = {"instruments": instruments}
    return [
        *early_routes(instruments),
        (r"/health", HealthHandler, needs),
        (r"/metrics", MetricsHandler, needs),
    ]
