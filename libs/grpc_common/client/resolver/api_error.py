"""How Kubernetes' API server says no."""

from http import HTTPStatus

from pydantic import BaseModel

from grpc_common.core.errors import StartError, excerpt

# What a new list of the slices would not settle: the watch goes on where it was.
_PASSING: set[int] = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
}

_ROLE = (
    "a Role in namespace {namespace} bound to the caller, with apiGroups [discovery.k8s.io], "
    "resources [endpointslices], verbs [get, list, watch]"
)
_ADVICE: dict[int, str] = {
    HTTPStatus.UNAUTHORIZED: "a token or certificate that the API server knows, in the pod's service account "
    "or in the kubeconfig",
    HTTPStatus.FORBIDDEN: _ROLE,
    HTTPStatus.NOT_FOUND: "an API server with discovery.k8s.io/v1, which Kubernetes has since 1.21",
}


class Status(BaseModel):
    """The body of an error, and the content of an event ERROR."""

    code: int
    message: str = ""


class ApiError(Exception):
    """The API server said no; the text has its status and reason."""

    def __init__(self, status: Status, retry_after: float = 0.0) -> None:
        super().__init__(f"{status.code}: {excerpt(status.message, 500)}")
        self.code = status.code
        self.retry_after = retry_after
        """Seconds that the API server wants to be left alone."""

    @property
    def passing(self) -> bool:
        """Whether it says nothing about the slices."""
        return self.code in _PASSING

    @property
    def version_unavailable(self) -> bool:
        """Whether the API server no longer has the wanted version, or does not have it yet.

        client-go's reflector looks for the same code, and for the same text in answers without a cause.
        """
        too_large = self.code == HTTPStatus.GATEWAY_TIMEOUT and "Too large resource version" in str(self)
        return self.code == HTTPStatus.GONE or too_large

    def advice(self, namespace: str) -> str:
        """Say what would help, if it is known."""
        return _ADVICE.get(self.code, "").format(namespace=namespace)


class SilenceError(Exception):
    """A watch is open and tells nothing.

    Either the connection is dead, or the API server has not reached the version from which it is watched:
    after a restored backup it waits for that, without a word.
    """


class ConfigurationError(StartError):
    """There is no usable way to the API server; the text says what was tried."""
