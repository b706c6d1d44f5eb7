"""
Who may come in: API keys, where there are any, and no pages of other sites.

Plain ASGI, before a body is read. Below it `identity(request)` says on whose behalf a request is.
"""

import ipaddress
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.types import ASGIApp, Receive, Scope, Send

from orchestrator.access.api_keys import NOBODY, Identity
from orchestrator.access.keyring import Keyring
from orchestrator.access.quotas import Quotas
from orchestrator.api.middleware import refuse
from orchestrator.errors import (
    AdminKeyNeeded,
    ForeignOrigin,
    InvalidApiKey,
    OrchestratorError,
)

ALIVE = "/healthz"
PUBLIC = frozenset({"/", ALIVE, "/readyz", "/openapi.json"})
PUBLIC_BELOW = "/web/"
ADMIN = frozenset({"/metrics"})
_PRIVATE_NAMES = (".localhost", ".internal", ".local", ".home.arpa")
"""Below these nobody can register a name, so none of them leads here by a trick."""


class Access:
    """
    Lets a request through with its identity, or refuses it.

    Without keys everybody on this machine is the same person, and a browser would lend its place on
    this machine to any page that asks: so pages of other sites are refused, and addresses that are
    other names for this machine (DNS rebinding), unless `any_host`.

    Args:
        keyring: The keys.
        quotas: What each may use up.
        any_host: Whether names in Host are not looked at: somebody has opened the door on purpose.
    """

    def __init__(self, app: ASGIApp, *, keyring: Keyring, quotas: Quotas, any_host: bool) -> None:
        self._app = app
        self._keyring = keyring
        self._quotas = quotas
        self._any_host = any_host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it before its body is read."""
        if scope["type"] == "http":
            try:
                self._admit(scope)
            except OrchestratorError as exc:
                await refuse(scope, receive, send, exc)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        state = scope.setdefault("state", {})
        if not self._keyring.required:
            if path != ALIVE:
                _refuse_foreign(headers, any_host=self._any_host)
            state["identity"] = NOBODY
            return
        public = path in PUBLIC or path.startswith(PUBLIC_BELOW)
        try:
            found = self._keyring.identify(headers.get("authorization", ""))
        except InvalidApiKey:
            if not public:
                raise
            return
        state["identity"] = found
        if public or found.key is None:
            return
        if path in ADMIN and not found.admin:
            raise AdminKeyNeeded(
                f"{path} shows what everybody does: it takes an admin key "
                "(tidegate keys create --admin)."
            )
        self._quotas.request(found.key)


def identity(request: Request) -> Identity:
    """
    On whose behalf a request is.

    Raises:
        InvalidApiKey: If a route that needs to know was left open by mistake: nothing is shown then.
    """
    found: Identity | None = request.scope.get("state", {}).get("identity")
    if found is None:
        raise InvalidApiKey("A key is needed here.")
    return found


def is_known(request: Request) -> bool:
    """Whether whoever asks may be told details."""
    return request.scope.get("state", {}).get("identity") is not None


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _refuse_foreign(headers: Headers, *, any_host: bool) -> None:
    host = headers.get("host", "")
    origin = headers.get("origin")
    # "null" is what sandboxed frames and local files call themselves.
    if origin is not None and origin.partition("://")[2] != host:
        raise ForeignOrigin(
            f"A page of {origin} asked, which may not act for whoever looks at it. Pages of other "
            "sites need a service of their own between, with a key (tidegate keys create)."
        )
    if not any_host and not _cannot_be_foreign(host):
        raise ForeignOrigin(
            f"{host} may be anybody's name for this machine. Use an address or localhost, or make keys "
            "(tidegate keys create): then any name is taken."
        )


def _cannot_be_foreign(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:  # brackets that do not close
        return False
    if "." not in name or name.endswith(_PRIVATE_NAMES):  # "localhost", or a container's name
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
