"""Requests for EndpointSlices to the API server, authenticated as a pod or by a kubeconfig.

kubernetes_asyncio takes a third of a second to import: import this module when it is needed.
"""

import asyncio
import json
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration, DiscoveryV1Api
from kubernetes_asyncio.config import ConfigException, list_kube_config_contexts, load_kube_config
from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader
from pydantic import Field, ValidationError

from grpc_common.client.resolver.api_error import ApiError, ConfigurationError, SilenceError, Status
from grpc_common.client.resolver.endpoint_slices import Version, Wire
from grpc_common.client.resolver.no_proxy import bypasses_proxy
from grpc_common.core.errors import printable

type Loader = Callable[[], Awaitable[Configuration]]

# Where the kubelet mounts what a pod needs to call the API server.
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# Seconds after which the API server ends a watch in good order; client-go asks for 300 to 600.
_WATCH_TIMEOUT = 300

# Seconds to connect, and for a list to come.
_REQUEST_TIMEOUT = 10.0

# Bytes, as kubernetes_asyncio has it: the longest line of a watch is twice that, a slice has up to 1.5 MiB.
_READ_BUFFER = 2**21

_ITEMS = re.compile(r'"items"\s*:\s*\[\s*')
_AFTER_ITEM = re.compile(r"[ \t\r\n]*(?:(?P<more>,)[ \t\r\n]*|(?=\]))")  # \s is more than JSON's space


async def load_configuration(service_account: Path = _SERVICE_ACCOUNT) -> Configuration:
    """Find the API server: KUBECONFIG, else a pod's service account, else ~/.kube/config.

    Call it again to have rotated tokens and certificates; it also asks exec plugins.

    Raises:
        ConfigurationError: there is none of them, or it can't be read.

    """
    configuration = Configuration()
    # Python demands extensions that the certificates of many clusters lack and that client-go
    # ignores. Chain, expiry and host name are still verified.
    configuration.disable_strict_ssl_verification = True
    source = str(service_account) if _in_pod() else _kubeconfig()
    with _configuration_errors(source):
        if _in_pod():
            _load_service_account(configuration, service_account)
        else:
            await load_kube_config(source, client_configuration=configuration, persist_config=False)
        _strip_token(configuration)
    return configuration


def own_namespace(service_account: Path = _SERVICE_ACCOUNT) -> str:
    """Return the namespace of the pod, else of the kubeconfig's current context, else `default`.

    Raises:
        ConfigurationError: there is neither, or it can't be read.

    """
    if not _in_pod():
        source = _kubeconfig()
        with _configuration_errors(source):
            context = list_kube_config_contexts(source)[1] or {}
            return str(context.get("context", {}).get("namespace") or "default")
    file = service_account / "namespace"
    with _configuration_errors(file):
        return (file.read_text().strip() if file.exists() else "") or "default"


def _in_pod() -> bool:
    return "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG")


def _load_service_account(configuration: Configuration, directory: Path) -> None:
    token, authority = directory / "token", directory / "ca.crt"
    InClusterConfigLoader(str(token), str(authority), try_refresh_token=False).load_and_set(configuration)


def _strip_token(configuration: Configuration) -> None:
    """Take away the end of line that most editors and `echo` leave, which no header may have."""
    token = configuration.api_key.get("BearerToken")
    if token is None:
        return
    configuration.api_key["BearerToken"] = token.strip()
    if token.strip() == "Bearer":
        raise ValueError("the token is empty")
    if not token.strip().isprintable():
        raise ValueError("the token has a control character in it; it must be one word")


def _kubeconfig() -> str:
    files = os.environ.get("KUBECONFIG") or str(Path.home() / ".kube/config")
    if not any(Path(file).expanduser().exists() for file in files.split(os.pathsep)):
        raise ConfigurationError(f"not in a pod, and there is no kubeconfig {files}; set KUBECONFIG")
    return files


@contextmanager
def _configuration_errors(source: object) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        # kubernetes_asyncio fails in a dozen ways on a bad file, AttributeError among them.
        is_told = isinstance(error, OSError | ValueError | ConfigException)
        text = str(error) if is_told else "it is not of the form of a kubeconfig"
        raise ConfigurationError(f"{source}: {printable(text)}") from error


@asynccontextmanager
async def connect(load: Loader) -> AsyncIterator[DiscoveryV1Api]:
    """Open connections to the API server with credentials as they are now.

    Raises:
        ConfigurationError: `load` raised it, or certificate files can't be used.

    """
    configuration = await load()
    with _configuration_errors(f"certificates for {configuration.host}"):
        client = ApiClient(configuration)
    _apply_no_proxy(client)
    async with client:
        client.user_agent = "grpc_common"
        yield DiscoveryV1Api(client)


def _apply_no_proxy(client: ApiClient) -> None:
    """Take the session that trusts the environment's proxies away, if the API server is none of theirs.

    A proxy of the kubeconfig (proxy-url) counts in any case, as for client-go.
    """
    if not bypasses_proxy(client.configuration.host or ""):
        return
    trusting = client.rest_client.pool_manager
    client.rest_client.pool_manager = aiohttp.ClientSession(
        connector=trusting.connector, trust_env=False, read_bufsize=_READ_BUFFER
    )
    trusting.detach()


@dataclass(frozen=True)
class SliceList:
    """All slices of a service at one moment, as the API server sent them."""

    version: int
    items: list[object]


class WatchEvent(Wire):
    """A line of a watch: ADDED, MODIFIED or DELETED with a slice, BOOKMARK, or ERROR with a Status."""

    type: str
    object: dict[str, Any]


async def list_slices(api: DiscoveryV1Api, service: str, namespace: str, not_before: str = "0") -> SliceList:
    """Return all slices of a service.

    Args:
        api: what `connect` gives.
        service: name of the Service.
        namespace: its namespace.
        not_before: the version that the API server's cache must have reached, as client-go's reflector
            asks for it: "0" for any, which costs the API server least; an empty text for the state
            of its storage, etcd.

    Raises:
        ApiError: the API server refuses.
        OSError: it can't be reached, or the connection broke.
        ValueError: the answer makes no sense.

    """
    limits = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT)
    version = {"resource_version": not_before} if not_before else {}
    async with _get(api, service, namespace, limits, **version) as response:
        return await read_list((await response.read()).decode())


class _Envelope(Wire):
    metadata: Version
    items: Annotated[list[object], Field(max_length=0)] | None


async def read_list(text: str) -> SliceList:
    """Parse a list, with a turn of the event loop after each slice: 3000 endpoints take over 10 ms."""
    decoder, items = json.JSONDecoder(), list[object]()
    start = end = match.end() if (match := _ITEMS.search(text)) else 0
    more = start > 0 and not text.startswith("]", start)
    while more:
        item, end = decoder.raw_decode(text, end)
        items.append(item)
        if (after := _AFTER_ITEM.match(text, end)) is None:
            raise ValueError("the list has neither a comma nor its end after a slice")
        more, end = after["more"] is not None, after.end()
        await asyncio.sleep(0)
    envelope = _Envelope.model_validate_json(text[:start] + text[end:])
    return SliceList(envelope.metadata.resource_version, items)


@asynccontextmanager
async def watch_slices(
    api: DiscoveryV1Api, service: str, namespace: str, version: int, silence: float
) -> AsyncIterator[AsyncGenerator[WatchEvent]]:
    """Open a watch on the slices of a service; it yields what happens after `version`, until it is ended.

    `silence` is how many seconds may pass without an event, until a SilenceError. The other errors are
    those of `list_slices`.
    """
    limits = aiohttp.ClientTimeout(total=None, connect=_REQUEST_TIMEOUT, sock_read=silence)
    watch = {
        "watch": True,
        "resource_version": str(version),
        "allow_watch_bookmarks": True,
        "timeout_seconds": _WATCH_TIMEOUT,
    }
    async with (
        _get(api, service, namespace, limits, **watch) as response,
        aclosing(_events(response, silence)) as events,
    ):
        yield events


async def _events(response: aiohttp.ClientResponse, silence: float) -> AsyncGenerator[WatchEvent]:
    try:
        async for line in response.content:
            event = WatchEvent.model_validate_json(line)
            if event.type == "ERROR":
                raise ApiError(Status.model_validate(event.object))
            yield event
    except aiohttp.ServerTimeoutError:
        raise SilenceError(f"the API server said nothing for {silence:g} s, not even a bookmark") from None


@asynccontextmanager
async def _get(
    api: DiscoveryV1Api, service: str, namespace: str, limits: aiohttp.ClientTimeout, **parameters: Any
) -> AsyncIterator[aiohttp.ClientResponse]:
    with _plain_errors():
        answer: Any = await api.list_namespaced_endpoint_slice(
            namespace,
            label_selector=f"kubernetes.io/service-name={service}",
            _preload_content=False,
            _request_timeout=limits,
            **parameters,
        )
        response: aiohttp.ClientResponse = answer
        async with response:
            if not response.ok:
                raise await _api_error(response)
            yield response


@contextmanager
def _plain_errors() -> Iterator[None]:
    """Spare callers the import of aiohttp."""
    try:
        yield
    except aiohttp.InvalidURL as error:
        text = f"the API server's URL {str(error)!r} is not of the form https://HOST:PORT"
        raise ConnectionError(text) from None
    except aiohttp.ClientError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


async def _api_error(response: aiohttp.ClientResponse) -> ApiError:
    try:
        message = Status.model_validate_json(await response.read()).message
    except (ValidationError, aiohttp.ClientError):
        # A proxy on the way answers in HTML or not at all.
        message = f"{response.reason or ''} (not from Kubernetes: {response.content_type})"
    retry_after = response.headers.get("Retry-After", "")
    return ApiError(
        Status(code=response.status, message=message), float(retry_after) if retry_after.isdecimal() else 0.0
    )
