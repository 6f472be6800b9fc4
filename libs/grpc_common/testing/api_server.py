"""A Kubernetes API server for tests: EndpointSlices, lists and watches over real sockets, and faults."""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
from collections import deque
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

type Object = dict[str, Any]

_DROP, _END = object(), object()


def endpoint_slice(
    name: str,
    addresses: Iterable[str],
    *,
    service: str = "echo",
    namespace: str = "default",
    address_type: str = "IPv4",
    conditions: Mapping[str, bool | None] | None = None,
    ports: Iterable[tuple[str, int]] = (("grpc", 50051),),
    **attributes: Any,
) -> Object:
    """Return a slice whose endpoints all have the same conditions, and attributes such as zone and hints."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {"name": name, "namespace": namespace, "labels": {"kubernetes.io/service-name": service}},
        "addressType": address_type,
        "endpoints": [
            {"addresses": [address], "conditions": dict(conditions or {})} | attributes
            for address in addresses
        ],
        "ports": [{"name": name, "port": port, "protocol": "TCP"} for name, port in ports],
    }


def kubeconfig(
    url: str, user: Mapping[str, Any], ca: bytes | None = None, *, namespace: str | None = None
) -> str:
    """Return a kubeconfig for an API server and a user; `ca` is the PEM to trust."""
    trust = {"certificate-authority-data": base64.b64encode(ca).decode()} if ca else {}
    context = {"cluster": "test", "user": "me"} | ({"namespace": namespace} if namespace else {})
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "contexts": [{"name": "test", "context": context}],
        "clusters": [{"name": "test", "cluster": {"server": url} | trust}],
        "users": [{"name": "me", "user": dict(user)}],
    }
    return json.dumps(content)  # which is YAML


@dataclass(frozen=True)
class Seen:
    """A request as it arrived."""

    verb: str
    """list or watch"""

    namespace: str
    parameters: Mapping[str, str]
    authorization: str
    user_agent: str

    @property
    def version(self) -> int:
        """Where a watch is to start, or how new a list must be; -1 for a list from the storage."""
        return int(self.parameters.get("resourceVersion", -1))


class ApiServer:
    """Keeps slices and tells watches of every change, as the real one does, until told to misbehave."""

    def __init__(self) -> None:
        self.url = ""
        self.seen: asyncio.Queue[Seen] = asyncio.Queue()
        """Every request, once the answer has begun."""

        self.answers: deque[web.Response] = deque()
        """What the next requests get instead of the truth."""

        self.waits_in_silence = False
        """Whether a watch from a version that is yet to come is no error."""

        self.version = 1000
        self.slices: dict[str, Object] = {}
        """All slices, by name."""
        self._history: list[tuple[int, bytes]] = []
        self._watches: list[asyncio.Queue[Any]] = []

    def restore(self, version: int) -> None:
        """Go back to an older version, as after a restored backup; the slices stay as they are."""
        self.version = version
        self._history.clear()
        self.drop_watches()

    def put(self, piece: Object) -> None:
        """Add or replace a slice."""
        name = piece["metadata"]["name"]
        kind = "MODIFIED" if name in self.slices else "ADDED"
        self.slices[name] = piece
        self._happened(kind, piece)

    def delete(self, name: str) -> None:
        """Remove a slice."""
        self._happened("DELETED", self.slices.pop(name))

    def bookmark(self) -> None:
        """Raise the version and say so, without any change of a slice of this service."""
        self.version += 7
        metadata = {"resourceVersion": str(self.version)}
        self.send(event("BOOKMARK", {"kind": "EndpointSlice", "metadata": metadata}))

    def send(self, line: bytes) -> None:
        """Write raw bytes into every open watch."""
        for watch in self._watches:
            watch.put_nowait(line)

    def end_watches(self) -> None:
        """End every watch in good order, as after timeoutSeconds."""
        self._finish(_END)

    def drop_watches(self) -> None:
        """Cut the connection of every watch."""
        self._finish(_DROP)

    def refuse(self, code: int, message: str = "", times: int = 1, **headers: str) -> None:
        """Answer the next requests with a Status."""
        self.answers.extend(_refusal(code, message, headers) for _ in range(times))

    def _happened(self, kind: str, piece: Object) -> None:
        self.version += 1
        piece["metadata"]["resourceVersion"] = str(self.version)
        line = event(kind, piece)
        self._history.append((self.version, line))
        self.send(line)

    def _finish(self, how: object) -> None:
        for watch in self._watches:
            watch.put_nowait(how)
        self._watches.clear()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        verb = "watch" if request.query.get("watch") == "True" else "list"
        headers = request.headers
        seen = Seen(
            verb,
            request.match_info["namespace"],
            request.query,
            headers.get("Authorization", ""),
            headers.get("User-Agent", ""),
        )
        if self.answers:
            self.seen.put_nowait(seen)
            return self.answers.popleft()
        if seen.version > self.version and not (verb == "watch" and self.waits_in_silence):
            self.seen.put_nowait(seen)
            # The real one waits three seconds for its cache before it says so.
            text = f"Timeout: Too large resource version: {seen.version}, current: {self.version}"
            return _refusal(504, text)
        if verb == "watch":
            return await self._watch(request, seen)
        self.seen.put_nowait(seen)
        return web.json_response(self._list(request))

    def _list(self, request: web.Request) -> Object:
        namespace, selector = request.match_info["namespace"], request.query["labelSelector"]
        items = [
            piece
            for piece in self.slices.values()
            if piece["metadata"]["namespace"] == namespace
            and selector
            == f"kubernetes.io/service-name={piece['metadata']['labels']['kubernetes.io/service-name']}"
        ]
        return {
            "kind": "EndpointSliceList",
            "metadata": {"resourceVersion": str(self.version)},
            "items": items,
        }

    async def _watch(self, request: web.Request, seen: Seen) -> web.StreamResponse:
        queue: asyncio.Queue[Any] = asyncio.Queue()
        for version, line in self._history:
            if version > seen.version:
                queue.put_nowait(line)
        self._watches.append(queue)
        response = web.StreamResponse()
        await response.prepare(request)
        self.seen.put_nowait(seen)
        with suppress(ConnectionResetError):  # the client has gone
            while (line := await queue.get()) not in (_DROP, _END):
                await response.write(line)
        if queue in self._watches:
            self._watches.remove(queue)
        if line is _DROP and request.transport:
            request.transport.abort()
        return response

    @classmethod
    @asynccontextmanager
    async def in_kubeconfig(cls, file: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
        """Serve one that KUBECONFIG, which is set to `file`, leads to."""
        async with cls().serve() as server:
            file.write_text(kubeconfig(server.url, {"token": "secret"}))  # noqa: ASYNC240 (a few bytes)
            monkeypatch.setenv("KUBECONFIG", str(file))
            yield server

    @asynccontextmanager
    async def serve(self, context: ssl.SSLContext | None = None) -> AsyncIterator[ApiServer]:
        """Serve on a free port of 127.0.0.1, over TLS with a context."""
        application = web.Application()
        path = "/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices"
        application.router.add_get(path, self._handle)
        runner = web.AppRunner(application, shutdown_timeout=0)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        self.url = f"{'https' if context else 'http'}://127.0.0.1:{runner.addresses[0][1]}"
        try:
            yield self
        finally:
            self.end_watches()
            await runner.cleanup()


def _refusal(code: int, message: str, headers: Mapping[str, str] | None = None) -> web.Response:
    body = json.dumps({"kind": "Status", "code": code, "message": message})
    return web.Response(status=code, text=body, headers=headers, content_type="application/json")


def event(kind: str, content: Object) -> bytes:
    """Return a line of a watch."""
    return json.dumps({"type": kind, "object": content}).encode() + b"\n"
