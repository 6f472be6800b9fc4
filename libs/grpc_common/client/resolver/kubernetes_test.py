import asyncio
import gc
import json
import random
import time
from contextlib import aclosing, asynccontextmanager
from functools import partial
from ipaddress import ip_address

import pytest
import structlog
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st
from kubernetes_asyncio.client import Configuration

from grpc_common.client.resolver.api_error import ConfigurationError
from grpc_common.client.resolver.endpoint import Endpoint
from grpc_common.client.resolver.endpoint_slices import merge
from grpc_common.client.resolver.known_slices import KnownSlices
from grpc_common.client.resolver.kubernetes import KubernetesEndpoints, backoff
from grpc_common.client.resolver.kubernetes_api import SliceList, read_list
from grpc_common.testing.api_server import ApiServer, endpoint_slice, event, kubeconfig

A, B, C = "10.0.0.1:50051", "10.0.0.2:50051", "10.0.0.3:50051"


def pods(*numbers, name="echo-1", **settings):
    """Return a slice with the pods 10.0.0.<number>."""
    return endpoint_slice(name, [f"10.0.0.{number}" for number in numbers], **settings)


@pytest.fixture
async def server():
    """A fake API server over plain HTTP."""
    async with ApiServer().serve() as running:
        yield running


@pytest.fixture
def lines():
    """A queue that gets every line of the log."""
    queue = asyncio.Queue()
    structlog.configure(processors=[lambda _logger, _level, line: queue.put_nowait(line) or ""])
    yield queue
    structlog.reset_defaults()


def source_of(server, port=50051, **settings):
    """Return a source of the Service echo in the namespace default."""

    async def load():
        return Configuration(host=server.url)

    return KubernetesEndpoints("echo", "default", port, **{"load": load} | settings)


async def addresses_of(source):
    """Yield the addresses of each update."""
    async with aclosing(source.watch()) as updates:
        async for endpoints in updates:
            yield [endpoint.address for endpoint in endpoints]


@asynccontextmanager
async def following(server, port=50051, **settings):
    """Yield the updates of the Service echo in the namespace default: addresses alone."""
    source = source_of(server, port, **settings)
    async with asyncio.timeout(60), aclosing(addresses_of(source)) as updates:
        yield updates


async def requests(server, *verbs):
    """Return the next requests, which must have these verbs."""
    seen = [await server.seen.get() for _ in verbs]
    assert [request.verb for request in seen] == list(verbs)
    return seen


async def test_slices_of_the_service_are_merged(server):
    """All slices of the Service count, those of other Services and namespaces don't."""
    for number in range(3):
        addresses = [f"10.0.{number}.{pod}" for pod in range([100, 100, 50][number])]
        server.put(endpoint_slice(f"echo-{number}", addresses))
    server.put(pods(1, name="other", service="other"))
    server.put(pods(1, name="elsewhere", namespace="elsewhere"))
    async with following(server) as updates:
        first = await anext(updates)
    assert len(first) == 250
    assert first == sorted({f"10.0.{n}.{p}:50051" for n in range(3) for p in range([100, 100, 50][n])})


async def test_added_changed_and_deleted_slices_are_followed(server):
    """Each change of a slice is in the next update."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        server.put(pods(2, name="echo-2"))
        assert await anext(updates) == [A, B]
        server.put(pods(1, 3))
        assert await anext(updates) == [A, B, C]
        server.delete("echo-1")
        assert await anext(updates) == [B]
        server.delete("echo-2")
        assert await anext(updates) == []
        assert server.seen.empty(), "a watch is enough"


async def test_pod_that_is_no_longer_ready_leaves(server):
    """The endpoints follow the readiness of pods, and come back with it."""
    server.put(pods(1))
    server.put(pods(2, name="echo-2"))
    async with following(server) as updates:
        assert await anext(updates) == [A, B]
        await requests(server, "list", "watch")
        server.put(pods(2, name="echo-2", conditions={"ready": False}))
        assert await anext(updates) == [A]
        server.put(pods(2, name="echo-2", conditions={"ready": True}))
        assert await anext(updates) == [A, B]


async def test_requests_say_what_they_want(server):
    """A watch starts where the list ended, wants bookmarks and has a limit in time."""
    async with following(server) as updates:
        await anext(updates)
        listed, watched = await requests(server, "list", "watch")
    assert listed.parameters["labelSelector"] == "kubernetes.io/service-name=echo"
    assert listed.user_agent == "grpc_common"
    assert listed.version == 0, "any version that the API server's cache has; not a read of its storage"
    assert watched.version == server.version
    assert watched.parameters["allowWatchBookmarks"] == "True"
    assert watched.parameters["timeoutSeconds"] == "300"


async def test_burst_of_changes_is_few_updates(server):
    """A hundred changes within a moment make few updates, the last of them with all."""

    async def burst():
        for number in range(1, 101):
            server.put(pods(*range(1, number + 1)))
            await asyncio.sleep(0.002)

    async with following(server) as updates:
        await anext(updates)
        await requests(server, "list", "watch")
        start = asyncio.get_running_loop().time()
        changes = asyncio.create_task(burst())
        count = 1
        while len(await anext(updates)) < 100:
            count += 1
        await changes
        seconds = asyncio.get_running_loop().time() - start
    assert count <= seconds / 0.05  # what is waited for further changes; a busy machine makes them slowly


async def test_event_without_a_change_is_no_update(server):
    """Neither a bookmark nor a repeated event leads to the same endpoints again."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        update = asyncio.ensure_future(anext(updates))
        server.bookmark()
        server.put(pods(1))
        await asyncio.wait([update], timeout=0.2)
        assert not update.done()
        server.put(pods(2))
        assert await update == [B]


async def test_ended_watch_goes_on_where_it_was(server):
    """After a watch has ended in good order the next one starts at the last bookmark, without a list."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        server.bookmark()
        server.end_watches()
        (again,) = await requests(server, "watch")
        assert again.version == server.version
        server.put(pods(1, 2))
        assert await anext(updates) == [A, B]


async def test_dropped_connection_loses_no_change(server):
    """What happened while the connection was down is told by the next watch."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        server.drop_watches()
        server.put(pods(1, 2))
        assert await anext(updates) == [A, B]
        await requests(server, "watch")


GONE = event("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})


@pytest.mark.parametrize(
    "lines",
    [
        pytest.param(GONE, id="410 as an event"),
        pytest.param(event("ERROR", {"kind": "Status", "code": 500}), id="500 as an event"),
        pytest.param(b"\x00\xff garbage\n", id="garbage"),
        pytest.param(b"\n", id="empty line"),
        pytest.param(b"[]\n", id="not an object"),
        pytest.param(b'{"type": "ADDED"}\n', id="no object"),
        pytest.param(b'{"type": "ADDED", "object": {}}\n', id="object without content"),
        pytest.param(event("BOOKMARK", {"metadata": {"resourceVersion": "x"}}), id="not a version"),
        pytest.param(event("ADDED", pods(1) | {"metadata": {"name": "a"}}), id="slice without version"),
        pytest.param(b"x" * 10_000_000, id="endless line"),
        pytest.param(event("BOOKMARK", {"metadata": {"resourceVersion": "3"}}), id="older version"),
    ],
)
async def test_watch_that_makes_no_sense_leads_to_a_new_list(server, lines):
    """The endpoints stay as they were until the new list tells the truth."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        server.send(lines)
        await requests(server, "list", "watch")
        server.put(pods(1, 2))
        assert await anext(updates) == [A, B]


async def test_half_a_line_is_not_an_event(server):
    """A connection that breaks within a line leads to a new one."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        server.send(event("DELETED", pods(1))[:50])
        server.drop_watches()
        await server.seen.get()
        server.put(pods(1, 2))
        assert await anext(updates) == [A, B]


async def test_change_of_an_attribute_is_a_change(server):
    """Zone, node, hints and the end of a pod reach the balancer, though its address stays."""
    hints = {"forZones": [{"name": "b"}]}
    async with asyncio.timeout(60), aclosing(source_of(server).watch()) as updates:
        assert await anext(updates) == []
        await requests(server, "list", "watch")
        server.put(pods(1))
        assert await anext(updates) == [Endpoint(A)]
        server.put(pods(1, zone="a", nodeName="n"))
        assert await anext(updates) == [Endpoint(A, zone="a", node="n")]
        server.put(pods(1, zone="a", nodeName="n", hints=hints))
        assert await anext(updates) == [Endpoint(A, zone="a", node="n", for_zones=("b",))]
        server.put(pods(1, conditions={"ready": False, "serving": True, "terminating": True}))
        assert await anext(updates) == [Endpoint(A, terminating=True)]
        server.put(pods(1, conditions={"ready": False, "serving": False, "terminating": True}))
        assert await anext(updates) == []


def complaints(logs):
    """Return the names of slices that are complained of."""
    return [line["slice"] for line in logs if line["event"] == "EndpointSlice makes no sense"]


async def test_bad_slices_take_nothing_away(server):
    """In a list and in a watch they are left out, and each is logged once."""
    server.put(pods(1))
    server.put(pods(name="bad-1") | {"endpoints": 7})
    server.put(endpoint_slice("names", ["example.com"], address_type="FQDN"))
    with structlog.testing.capture_logs() as logs:
        async with following(server) as updates:
            assert await anext(updates) == [A]
            await requests(server, "list", "watch")
            server.put(pods(2, name="bad-2") | {"ports": [7]})
            server.put(pods(name="bad-3") | {"endpoints": [{"addresses": ["10.0.0.2"]}, {"addresses": []}]})
            assert await anext(updates) == [A, B]
            server.put(pods(2, name="bad-2") | {"ports": [7]})
            server.send(GONE)  # so that all are listed again
            await requests(server, "list", "watch")
            server.put(pods(name="bad-1"))
            server.put(pods(1, 3))
            assert await anext(updates) == [A, B, C]
    assert complaints(logs) == ["bad-1", "names", "bad-2", "bad-3"]


async def test_unknown_objects_of_a_list_take_nothing_away(server):
    """Whatever else is among the slices is left out."""
    listed = json.dumps({"metadata": {"resourceVersion": "9"}, "items": [None, 7, [], {}, stored(pods(1))]})
    server.answers.append(web.Response(text=listed))
    async with following(server) as updates:
        assert await anext(updates) == [A]


def stored(piece, version="9"):
    """Return a slice as the API server stores it."""
    piece["metadata"]["resourceVersion"] = version
    return piece


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ('{"kind":"EndpointSliceList","metadata":{"resourceVersion":"9"},"items":[SLICE]}', [A]),
        ('{ "items" : [ SLICE , SLICE ] , "metadata" : { "resourceVersion" : "9" } }', [A]),
        ('{"items":[{"x":"]"},{"items":[[]]},SLICE],"metadata":{"resourceVersion":"9"}}\n', [A]),
        ('{"metadata":{"resourceVersion":"9"},"items":[]}', []),
        ('{"metadata":{"resourceVersion":"9"},"items":null}', []),
    ],
)
async def test_forms_of_a_list(server, form, expected):
    """Any JSON that means a list is one."""
    text = form.replace("SLICE", json.dumps(stored(pods(1))))
    server.answers.append(web.Response(text=text))
    async with following(server) as updates:
        assert await anext(updates) == expected
        await requests(server, "list", "watch")


async def test_false_events_do_not_change_the_endpoints(server):
    """Old events, repeated ones, a deletion of what was never there, and unknown kinds."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        now = {"name": "echo-1", "resourceVersion": str(server.version)}
        server.send(event("ADDED", pods(1) | {"metadata": now}))
        server.send(event("DELETED", pods(9) | {"metadata": now | {"name": "never-seen"}}))
        server.send(event("INVENTED", pods(9) | {"metadata": now}))
        server.send(event("DELETED", pods(1) | {"metadata": now | {"resourceVersion": "7"}}))
        await requests(server, "list", "watch")
        server.put(pods(1, 2))
        assert await anext(updates) == [A, B]


@pytest.mark.parametrize("code", [401, 403, 429, 502, 503])
async def test_refused_watch_goes_on_where_it_was(server, code):
    """What says nothing about the slices costs the API server no list."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        _, first = await requests(server, "list", "watch")
        server.refuse(code)
        server.end_watches()
        _, second = await requests(server, "watch", "watch")
        assert first.version == second.version
        server.put(pods(1, 2))
        assert await anext(updates) == [A, B]


@pytest.mark.parametrize("code", [400, 404, 410, 500, 504])
async def test_refused_watch_keeps_the_endpoints(server, code):
    """Whatever else the API server answers, the next update is the next truth."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        server.refuse(code)
        server.end_watches()
        await requests(server, "watch", "list", "watch")
        server.put(pods(1, 2))
        assert await anext(updates) == [A, B]


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "<html>",
        "{}",
        "[]",
        "\xff",
        '{"metadata": {"resourceVersion": "9"}}',
        '{"metadata": {}, "items": null}',
        '{"items": []}',
        '[{"metadata": {"resourceVersion": "9"}, "items": []}]',
        '{"metadata": {"resourceVersion": "9"}, "items": ["cut off',
        '{"metadata": {"resourceVersion": "9"}, "items": [7',
        '{"metadata": {"resourceVersion": "9"}, "items": []',
        '{"metadata": {"resourceVersion": "-9"}, "items": []}',
        pytest.param('{"metadata": {"resourceVersion": "9"}, "items": [' + "[" * 100_000, id="deep"),
    ],
)
async def test_list_that_makes_no_sense_is_asked_again(server, answer):
    """A proxy's page with status 200 is not an empty list."""
    server.put(pods(1))
    server.answers.append(web.Response(text=answer))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "list", "watch")


async def test_forbidden_says_which_role_is_needed(server):
    """The log has the API server's words and the Role that would help."""
    server.put(pods(1))
    server.refuse(403, 'User "system:serviceaccount:shop:cart" cannot list resource "endpointslices"')
    with structlog.testing.capture_logs() as logs:
        async with following(server) as updates:
            assert await anext(updates) == [A]
    warning = logs[0]
    assert warning["service"] == "echo.default"
    assert "system:serviceaccount:shop:cart" in warning["error"]
    for word in ("namespace default", "discovery.k8s.io", "endpointslices", "get, list, watch"):
        assert word in warning["needs"]


async def test_retry_after_is_respected(server):
    """The API server is left alone for as long as it asks."""
    server.refuse(429, "slow down", **{"Retry-After": "1"})
    async with following(server) as updates:
        start = asyncio.get_running_loop().time()
        await anext(updates)
        assert asyncio.get_running_loop().time() - start >= 1


async def test_new_list_is_not_older_than_what_is_known(server):
    """Another API server's cache may be behind, and the endpoints must not go back."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        server.put(pods(1, 2))
        assert await anext(updates) == [A, B]
        server.send(GONE)
        (listed, _) = await requests(server, "list", "watch")
        assert listed.version == server.version


async def test_older_list_is_not_taken(server):
    """An answer that is older than what is known is asked for again, from the storage."""
    server.put(pods(1, 2))
    older = json.dumps({"metadata": {"resourceVersion": "9"}, "items": [stored(pods(1))]})
    async with following(server) as updates:
        assert await anext(updates) == [A, B]
        await requests(server, "list", "watch")
        server.answers.append(web.Response(text=older))
        server.send(GONE)
        _, again, _ = await requests(server, "list", "list", "watch")
        assert again.version == -1
        server.put(pods(2))
        assert await anext(updates) == [B], "and nothing in between"


async def test_restored_backup_is_taken(server):
    """When even the storage is older than what is known, it is the truth."""
    server.put(pods(1))
    async with following(server) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        server.restore(7)
        _, cached, storage, _ = await requests(server, "watch", "list", "list", "watch")
        assert (cached.version > 7, storage.version) == (True, -1)
        server.put(pods(2))
        assert await anext(updates) == [B]


async def test_nonsense_in_place_of_a_list_is_no_reason_to_read_the_storage(server):
    """A fleet behind a proxy that answers in HTML does not load etcd afterwards."""
    server.answers.append(web.Response(text="<html>", content_type="text/html"))
    async with following(server) as updates:
        await anext(updates)
        _, second = await requests(server, "list", "list")
        assert second.version == 0


REFUSALS = [
    (401, "Unauthorized", "a token or certificate that the API server knows"),
    (403, "no", "a Role in namespace default bound to the caller"),
    (404, "the server could not find the requested resource", "Kubernetes has since 1.21"),
    (410, "too old", "410: too old"),
    (429, "slow\ndown", r"429: slow\ndown"),
    (500, "etcd", "500: etcd"),
]


@pytest.mark.parametrize(("code", "message", "words"), REFUSALS)
async def test_reason_is_what_the_api_server_says(server, lines, code, message, words):
    """Until all is well, the source tells why its endpoints can't be followed, and what would help."""
    source = source_of(server)
    server.put(pods(1))
    server.refuse(code, message)
    async with asyncio.timeout(60), aclosing(source.watch()) as updates:
        update = asyncio.ensure_future(anext(updates))
        while "can't be watched" not in (await lines.get())["event"]:
            pass
        assert source.reason.startswith(
            f"the endpoints of echo.default can't be followed: ApiError: {code}: "
        )
        assert words in source.reason
        assert source.reason.isprintable()
        assert source.updated is None
        assert await update == [Endpoint(A)]
        assert source.reason == ""


async def test_html_of_a_proxy_is_told(server, lines):
    """What stands between us and the API server is named as such, and not quoted."""
    server.answers.append(web.Response(status=407, text="<html>\n</html>", content_type="text/html"))
    source = source_of(server)
    async with asyncio.timeout(60), aclosing(source.watch()) as updates:
        update = asyncio.ensure_future(anext(updates))
        await lines.get()
        assert "407: Proxy Authentication Required (not from Kubernetes: text/html)" in source.reason
        await update


async def test_reason_of_no_endpoints(server):
    """The source tells why there are none, until there are some."""
    source = source_of(server)
    async with asyncio.timeout(60), aclosing(source.watch()) as updates:
        assert await anext(updates) == []
        assert "does not exist" in source.reason
        await requests(server, "list", "watch")
        server.put(pods(1))
        await anext(updates)
        assert source.reason == ""
        server.put(pods(1, ports=[("grpc", 1), ("metrics", 2)]))
        await anext(updates)
        assert "the Service has no port 50051" in source.reason


async def test_unreachable_api_server_is_a_reason(lines):
    """While nobody listens the source says so, and keeps the time of the last word."""
    server = ApiServer()
    source = source_of(server)
    server.put(pods(1))
    async with asyncio.timeout(60), aclosing(source.watch()) as updates:
        async with server.serve():
            assert await anext(updates) == [Endpoint(A)]
            await requests(server, "list", "watch")
        update = asyncio.ensure_future(anext(updates))
        while "Cannot connect" not in (await lines.get()).get("error", ""):
            pass
        last = source.updated
        assert "Cannot connect to host 127.0.0.1" in source.reason
        server.put(pods(2))
        async with server.serve():
            assert await update == [Endpoint(B)]
        assert source.reason == ""
        assert last is not None
        assert source.updated > last


async def test_bookmarks_renew_the_age(server):
    """A quiet service's endpoints are known to be current each time the API server says so."""
    source = source_of(server)
    async with asyncio.timeout(60), aclosing(source.watch()) as updates:
        await anext(updates)
        await requests(server, "list", "watch")
        before = source.updated
        server.bookmark()
        while source.updated == before:
            await asyncio.sleep(0)
        assert before < source.updated <= time.monotonic()


async def test_own_namespace(server, tmp_path, monkeypatch):
    """Without a namespace the Service is in one's own."""
    (tmp_path / "config").write_text(kubeconfig(server.url, {"token": "x"}, namespace="shop"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    server.put(pods(1, namespace="shop"))
    server.put(pods(2, name="other"))
    source = KubernetesEndpoints("echo", None, None)
    async with asyncio.timeout(60), aclosing(source.watch()) as updates:
        assert await anext(updates) == [Endpoint(A)]
    assert (await server.seen.get()).namespace == "shop"


def plenty(slices, pods_of_each):
    """Return slices with as many attributes as in a cloud."""
    hints = {"forZones": [{"name": "eu-central-1a"}]}
    place = {
        "zone": "eu-central-1a",
        "nodeName": "ip-10-0-0-17.eu-central-1.compute.internal",
        "hints": hints,
    }
    pod = {"kind": "Pod", "name": "echo-6b8d9f7c5d-4xk2p", "namespace": "default", "uid": "1" * 36}
    ips = [str(ip_address("10.0.0.0") + number) for number in range(slices * pods_of_each)]
    for number in range(slices):
        own = ips[number * pods_of_each : (number + 1) * pods_of_each]
        yield endpoint_slice(f"echo-{number}", own, targetRef=pod, **place)


async def longest_share(work):
    """Run `work`; return what share of its CPU time its longest turn of the event loop took."""
    turns, last = [], time.thread_time()
    task = asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0)
        now = time.thread_time()
        turns.append(now - last)
        last = now
    await task
    return max(turns) / sum(turns)


@pytest.mark.parametrize(("slices", "pods_of_each", "share"), [(30, 100, 0.2), (3, 1000, 0.6)])
async def test_many_endpoints_do_not_stop_the_event_loop(slices, pods_of_each, share):
    """Other tasks have their turn after each slice of a list, and after each hundred endpoints of a slice."""
    contents = [stored(piece) for piece in plenty(slices, pods_of_each)]
    text = json.dumps({"metadata": {"resourceVersion": "9"}, "items": contents})
    known = KnownSlices(50051)
    gc.disable()
    try:
        assert await longest_share(read_list(text)) < share
        assert await longest_share(known.replace(SliceList(9, contents))) < 0.2
    finally:
        gc.enable()
    assert len(merge(known.slices.values())) == 3000


async def test_thousands_of_endpoints(server):
    """They are listed, and an event that changes a slice changes its endpoints alone."""
    for piece in plenty(3, 1000):
        server.put(piece)
    async with following(server) as updates:
        assert len(await anext(updates)) == 3000
        await requests(server, "list", "watch")
        server.put(endpoint_slice("echo-0", ["10.0.0.0"]))
        assert len(await anext(updates)) == 2001


async def test_silent_watch_is_opened_anew(server):
    """A watch without any byte counts as dead, and what it may have missed is listed."""
    server.put(pods(1))
    async with following(server, silence=0.3) as updates:
        assert await anext(updates) == [A]
        _, first, listed, second = await requests(server, "list", "watch", "list", "watch")
    assert first.version == listed.version == second.version


async def test_restored_backup_that_waits_in_silence_is_found(server):
    """A watch from a version that is yet to come tells nothing, as seen with a real API server."""
    server.put(pods(1))
    async with following(server, silence=0.3) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        server.waits_in_silence = True
        server.restore(7)
        server.put(pods(2))
        assert await anext(updates) == [B]


async def test_lost_api_server_keeps_the_endpoints(server):
    """Nothing is yielded while the API server is away, and the truth when it is back."""
    server.put(pods(1, 2))
    async with following(server) as updates:
        assert await anext(updates) == [A, B]
        await requests(server, "list", "watch")
        server.refuse(500, times=4)
        server.drop_watches()
        update = asyncio.ensure_future(anext(updates))
        for _ in range(4):
            await server.seen.get()
            assert not update.done()
        server.put(pods(2))
        assert await update == [B]


async def test_unreachable_api_server_keeps_the_endpoints(lines):
    """While nobody listens nothing is yielded; a new API server in another place is found."""
    server = ApiServer()
    server.put(pods(1))
    async with following(server) as updates:
        async with server.serve():
            assert await anext(updates) == [A]
        update = asyncio.ensure_future(anext(updates))
        while "Cannot connect" not in (await lines.get()).get("error", ""):
            pass
        assert not update.done()
        server.put(pods(2))
        async with server.serve():
            assert await update == [B]


async def test_configuration_that_vanishes_later_keeps_the_endpoints(server, lines):
    """Once endpoints are known, an unusable configuration is one more error that passes."""
    good = True

    async def load():
        if not good:
            raise ConfigurationError("the kubeconfig has vanished")
        return Configuration(host=server.url)

    server.put(pods(1))
    async with following(server, load=load) as updates:
        assert await anext(updates) == [A]
        await requests(server, "list", "watch")
        good = False
        server.end_watches()
        update = asyncio.ensure_future(anext(updates))
        while "vanished" not in (await lines.get()).get("error", ""):
            pass
        good = True
        server.put(pods(2))
        assert await update == [B]


async def test_no_configuration_at_the_start_is_an_error():
    """A program that can't reach any API server learns it at once."""

    async def load():
        raise ConfigurationError("there is no kubeconfig")

    async with following(None, load=load) as updates:
        with pytest.raises(ConfigurationError, match="no kubeconfig"):
            await anext(updates)


@given(attempt=st.integers(0, 100_000))
def test_backoff_is_bounded(attempt):
    """The bound doubles from 0.2 to 30 seconds, and never fails."""
    assert 0 <= backoff(attempt) <= min(30, 0.2 * 2 ** min(attempt, 20))


def test_backoff_is_spread():
    """A fleet that lost its API server comes back at different times."""
    waits = [backoff(20) for _ in range(1000)]
    assert min(waits) < 3
    assert max(waits) > 27


async def test_no_endpoints_says_why(server):
    """An empty update comes with the reason in the log."""
    with structlog.testing.capture_logs() as logs:
        async with following(server) as updates:
            assert await anext(updates) == []
            await requests(server, "list", "watch")
            server.put(pods(1, ports=[("grpc", 1), ("metrics", 2)]))
            server.put(pods(2, name="ready"))
            assert await anext(updates) == [B]
            server.put(pods(1, ports=[("grpc", 1), ("metrics", 2)]))
            server.delete("ready")
            assert await anext(updates) == []
    reasons = [line["reason"] for line in logs if line["event"] == "no endpoints"]
    assert "does not exist" in reasons[0]
    assert reasons[1] == "the Service has no port 50051; its pods' ports are 1 (grpc), 2 (metrics)"


async def test_chaos_ends_in_the_truth(server):
    """After any mixture of changes and faults the endpoints are those of the API server."""
    choose = random.Random(7)  # noqa: S311
    faults = [
        server.drop_watches,
        server.end_watches,
        server.bookmark,
        partial(server.send, GONE),
        partial(server.send, b"{]\n"),
        partial(server.refuse, 410),
    ]
    truth = {}
    async with following(server) as updates:
        await anext(updates)
        for _ in range(150):
            name = choose.choice(["echo-1", "echo-2", "echo-3"])
            truth[name] = choose.sample(range(1, 200), choose.randrange(5))
            server.put(pods(*truth[name], name=name))
            choose.choice(faults)()
            await asyncio.sleep(0.005)
        server.answers.clear()
        truth["echo-1"] = [201]
        server.put(pods(201, name="echo-1"))
        expected = sorted({f"10.0.0.{number}:50051" for numbers in truth.values() for number in numbers})
        while await anext(updates) != expected:
            pass
