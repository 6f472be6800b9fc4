"""Requests for EndpointSlices to the API server, authenticated as a pod or by a kubeconfig.

kubernetes_asyncio takes a third of a second to import: import this module when it is needed.
"""

import os
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from kubernetes_asyncio.client import ApiClient, Configuration, DiscoveryV1Api
from kubernetes_asyncio.config import load_kube_config
from kubernetes_asyncio.config.incluster_config import InClusterConfigLoader
from pydantic import ValidationError

from grpc_common.client.resolver.endpoint_slices import (
    ApiError,
    ConfigurationError,
    EndpointSliceList,
    Status,
    WatchEvent,
)

type Loader = Callable[[], Awaitable[Configuration]]

# Where the kubelet mounts what a pod needs to call the API server.
_SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")

# Seconds after which the API server ends a watch in good order; client-go asks for 300 to 600.
_WATCH_TIMEOUT = 300

# Seconds to connect, and for a list to come.
_REQUEST_TIMEOUT = 10.0


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
    if "KUBERNETES_SERVICE_HOST" in os.environ and not os.environ.get("KUBECONFIG"):
        with _configuration_errors(service_account):
            _load_service_account(configuration, service_account)
        return configuration
    files = _kubeconfig()
    with _configuration_errors(files):
        await load_kube_config(files, client_configuration=configuration, persist_config=False)
    return configuration


def _load_service_account(configuration: Configuration, directory: Path) -> None:
    token, authority = directory / "token", directory / "ca.crt"
    InClusterConfigLoader(str(token), str(authority), try_refresh_token=False).load_and_set(configuration)


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
        raise ConfigurationError(f"{source}: {error}") from error


@asynccontextmanager
async def connect(load: Loader) -> AsyncIterator[DiscoveryV1Api]:
    """Open connections to the API server with credentials as they are now.

    Raises:
        ConfigurationError: `load` raised it, or certificate files can't be used.

    """
    configuration = await load()
    with _configuration_errors(f"certificates for {configuration.host}"):
        client = ApiClient(configuration)
    async with client:
        client.user_agent = "grpc_common"
        yield DiscoveryV1Api(client)


async def list_slices(api: DiscoveryV1Api, service: str, namespace: str) -> EndpointSliceList:
    """Return all slices of a service.

    Raises:
        ApiError: the API server refuses.
        OSError: it can't be reached, or the connection broke.
        ValueError: the answer makes no sense.

    """
    limits = aiohttp.ClientTimeout(total=_REQUEST_TIMEOUT)
    async with _get(api, service, namespace, limits) as response:
        return EndpointSliceList.model_validate_json(await response.read())


async def watch_slices(
    api: DiscoveryV1Api, service: str, namespace: str, version: int, silence: float
) -> AsyncGenerator[WatchEvent]:
    """Yield what happens to the slices of a service after `version`, until the API server ends it.

    `silence` is how many seconds may pass without an event. Errors are those of `list_slices`.
    """
    limits = aiohttp.ClientTimeout(total=None, connect=_REQUEST_TIMEOUT, sock_read=silence)
    watch = {
        "watch": True,
        "resource_version": str(version),
        "allow_watch_bookmarks": True,
        "timeout_seconds": _WATCH_TIMEOUT,
    }
    async with _get(api, service, namespace, limits, **watch) as response:
        async for line in response.content:
            event = WatchEvent.model_validate_json(line)
            if event.type == "ERROR":
                raise ApiError(Status.model_validate(event.object))
            yield event


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
    except aiohttp.ClientError as error:
        raise ConnectionError(str(error) or type(error).__name__) from error


async def _api_error(response: aiohttp.ClientResponse) -> ApiError:
    try:
        message = Status.model_validate_json(await response.read()).message
    except ValidationError:
        # A proxy on the way answers in HTML or not at all.
        message = response.reason or ""
    retry_after = response.headers.get("Retry-After", "")
    return ApiError(
        Status(code=response.status, message=message), float(retry_after) if retry_after.isdecimal() else 0.0
    )
