import asyncio
import os
import re
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
import trustme
from google.rpc import error_details_pb2
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from orders import orders_pb2 as pb
from orders.orders_pb2_grpc import OrdersStub
from prometheus_client import CollectorRegistry
from user.user_service_pb2_grpc import add_UserServiceServicer_to_server

from examples.orders import server
from examples.orders.store import Store, StoredOrder
from grpc_common import error_details
from grpc_common.testing import RecordedCalls, configure
from grpc_common.testing.certificates import CertificateDirectory
from grpc_common.testing.tokens import ISSUER, TokenIssuer
from services.user.config import DatabaseConfig
from services.user.servicer import UserService
from services.user.storage import open_storage
from services.user.users import new_user

pytest_plugins = ["grpc_common.testing.pytest_plugin"]

NOBODY = "019b2f60-7c00-7000-8000-000000000000"


def config_file(folder: Path) -> Path:
    """Return a copy of config.yaml whose second port is a free one."""
    text = Path(server.__file__).with_name("config.yaml").read_text()
    file = folder / "config.yaml"
    file.write_text(text.replace("127.0.0.1:50062", "127.0.0.1:0"))
    return file


class Shop:
    """The orders service as config.yaml says, beside a real users server with TLS and one user."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.issuer = TokenIssuer()
        (folder / "jwks.json").write_bytes(self.issuer.jwks())
        (folder / "token").write_text("token-of-orders")
        self.certificates = str(CertificateDirectory(folder / "certificates", trustme.CA()).path)
        self.registry = CollectorRegistry()
        self.store = Store()
        self.asked = RecordedCalls()
        self.spans = InMemorySpanExporter()

    def configure(self, target: str) -> server.OrdersConfig:
        """Return the configuration for a users server at `target`."""
        return configure(
            server.OrdersConfig,
            config_file(self.folder),
            DRAIN_GRACE="30s",
            JWT_JWKS=str(self.folder / "jwks.json"),
            JWT_ISSUER=ISSUER,
            TRACING_ENABLED="true",
            TRACING_SAMPLING_RATE="1",
            USERS_TARGET=target,
            USERS_TLS_DIRECTORY=self.certificates,
            USERS_TOKEN_FILE=str(self.folder / "token"),
        )

    @asynccontextmanager
    async def serving_users(self, serve):
        """Serve user.UserService, and yield what opens the service's own channel to it."""
        async with open_storage(DatabaseConfig(url=f"sqlite:///{self.folder}/users.db")) as storage:
            self.user_id = str((await storage.create(new_user("Ada", "ada@example.com"))).id)
            yield await serve(
                UserService(storage),
                add_UserServiceServicer_to_server,
                config=configure(TLS_DIRECTORY=self.certificates),
                channel=lambda target: server.users_channel(self.configure(target)),
                observers=[self.asked],
            )

    @asynccontextmanager
    async def serving(self, users: grpc.aio.Channel):
        """Serve orders.Orders, and yield a stub."""
        orders = server.make_server(self.configure("localhost:1"), self.store, users, self.registry)
        orders.tracing.provider.add_span_processor(SimpleSpanProcessor(self.spans))
        async with orders.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield OrdersStub(channel)

    def token(self, scope: str) -> list[tuple[str, str]]:
        """Return the metadata of a caller with a token."""
        return [("authorization", f"Bearer {self.issuer.token('bob', aud='orders.Orders', scope=scope)}")]


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """Return a shop that serves nothing yet, and whose spans go nowhere else."""
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "none")
    return Shop(tmp_path)


@pytest.fixture
async def orders(shop, serve):
    """Serve users and orders; return a stub."""
    async with shop.serving_users(serve) as users, shop.serving(users) as stub:
        yield stub


async def failure(call) -> grpc.aio.AioRpcError:
    """Return the error with which a call fails."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


KEY = [("api-key", "demo-key")]


async def test_placed_order_can_be_got(shop, orders):
    """An order that a token's scope allows is there for whoever may read, here by an API key."""
    request = pb.PlaceOrderRequest(user_id=shop.user_id, item="tea")
    order = await orders.PlaceOrder(request, metadata=shop.token("orders.write"))
    assert (order.item, order.placed_by) == ("tea", "subject:bob")
    assert await orders.GetOrder(pb.GetOrderRequest(id=order.id), metadata=KEY) == order


async def test_call_of_the_handler_carries_on(shop, orders):
    """user.UserService gets what is left of the deadline, the request id, and this service's own token."""
    request = pb.PlaceOrderRequest(user_id=shop.user_id, item="tea")
    await orders.PlaceOrder(request, timeout=20, metadata=[*KEY, ("x-request-id", "7")])
    (asked,) = (call for call in shop.asked.calls if call.method.name == "GetUser")  # health was asked, too
    assert 0 < asked.deadline < 21  # gRPC rounds it up
    metadata = dict(asked.metadata)
    assert (metadata["x-request-id"], metadata["authorization"]) == ("7", "Bearer token-of-orders")
    assert "api-key" not in metadata


class PatientStore(Store):
    """Sends no mail before it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_confirm = asyncio.Event()

    async def confirm(self, order: StoredOrder) -> None:
        """Send the mail that confirms an order."""
        await self.may_confirm.wait()
        await super().confirm(order)


async def test_drain_waits_for_the_mail(shop, serve):
    """An order's mail, which the caller did not wait for, is sent before the store closes."""
    shop.store = PatientStore()
    async with shop.serving_users(serve) as users:
        async with shop.serving(users) as stub:
            request = pb.PlaceOrderRequest(user_id=shop.user_id, item="tea")
            order = await stub.PlaceOrder(request, metadata=KEY)
            assert shop.store.confirmed == []
            shop.store.may_confirm.set()  # the mail takes a while, in which the server drains
        assert shop.store.confirmed == [order.id]
    with pytest.raises(AssertionError):
        await shop.store.ping()


async def test_sight(shop, orders):
    """A call has the service's own span below its own, and is counted by its caller."""
    await orders.PlaceOrder(pb.PlaceOrderRequest(user_id=shop.user_id, item="tea"), metadata=KEY)
    labels = {"caller": "ada", "code": "OK"}

    def spans():
        return {span.name: span for span in shop.spans.get_finished_spans()}

    async with asyncio.timeout(20):  # the caller has its answer before the call has ended here
        while (
            "orders.Orders/PlaceOrder" not in spans()
            or shop.registry.get_sample_value("orders_calls_total", labels) is None
        ):
            await asyncio.sleep(0.01)
    assert spans()["store"].parent.span_id == spans()["orders.Orders/PlaceOrder"].context.span_id
    assert shop.registry.get_sample_value("orders_calls_total", labels) == 1


async def test_callers(shop, orders):
    """Who has no credential, a wrong one, or one without the scope is told so."""
    request = pb.PlaceOrderRequest(user_id=shop.user_id, item="tea")
    for metadata, code in [
        ([], grpc.StatusCode.UNAUTHENTICATED),
        ([("api-key", "wrong")], grpc.StatusCode.PERMISSION_DENIED),
        (shop.token("orders.read"), grpc.StatusCode.PERMISSION_DENIED),
    ]:
        assert (await failure(orders.PlaceOrder(request, metadata=metadata))).code() is code


@pytest.mark.parametrize(
    ("request_", "code", "detail"),
    [
        (
            pb.PlaceOrderRequest(user_id=NOBODY),
            grpc.StatusCode.INVALID_ARGUMENT,
            error_details_pb2.BadRequest,
        ),
        (
            pb.PlaceOrderRequest(user_id=NOBODY, item="tea"),
            grpc.StatusCode.FAILED_PRECONDITION,
            error_details_pb2.PreconditionFailure,
        ),
        (pb.GetOrderRequest(id=NOBODY), grpc.StatusCode.NOT_FOUND, error_details_pb2.ResourceInfo),
    ],
)
async def test_errors(orders, request_, code, detail):
    """What is wrong has a code and its details, be it found by the handler, by users or by the store."""
    method = orders.GetOrder if isinstance(request_, pb.GetOrderRequest) else orders.PlaceOrder
    error = await failure(method(request_, metadata=KEY))
    assert error.code() is code
    assert [type(each) for each in error_details(error)] == [detail]


async def test_users_are_gone(shop):
    """The service starts without user.UserService; an order is UNAVAILABLE then, with a time to come back."""
    async with server.users_channel(shop.configure("localhost:1")) as users, shop.serving(users) as stub:
        error = await failure(stub.PlaceOrder(pb.PlaceOrderRequest(user_id=NOBODY, item="tea"), metadata=KEY))
    assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert [type(each) for each in error_details(error)] == [error_details_pb2.RetryInfo]


def refusal(port: str) -> grpc.StatusCode:
    """Return the code of a call for an order that is not there."""
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel, pytest.raises(grpc.RpcError) as caught:
        OrdersStub(channel).GetOrder(pb.GetOrderRequest(id="7"), metadata=KEY)
    return caught.value.code()


def test_program(tmp_path):
    """The program runs with its file, answers on its second port too, and ends with exit code 0."""
    ours = {"GRPC_PORT": "0", "METRICS_PORT": "0", "DRAIN_DELAY": "0s"}
    environment = os.environ | ours | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, server.__file__, "--config", config_file(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (
                ports := re.search(r"grpc_port=(\d+).*127\.0\.0\.1:(\d+)", line := process.stderr.readline())
            ):
                assert line
            assert [refusal(port) for port in ports.groups()] == [grpc.StatusCode.NOT_FOUND] * 2
            process.send_signal(signal.SIGTERM)
            _, rest = process.communicate(timeout=60)
        finally:
            process.kill()
    assert process.returncode == 0
    assert rest.count("no order has the id '7'") >= 2  # by failures_logged


ROW = re.compile(r"^\| .* \| `(?P<code>[^`]+)` \| \[`(?P<file>[a-z_.]+)`\]", re.MULTILINE)


def test_table_of_readme():
    """What the table of README.md shows is in the file that it names."""
    folder = Path(server.__file__).parent
    text = (folder / "README.md").read_text()
    rows = [*ROW.finditer(text)]
    assert len(rows) == text.count("\n| ") - 1  # the head
    missing = [row["code"] for row in rows if row["code"] not in (folder / row["file"]).read_text()]
    assert missing == []
