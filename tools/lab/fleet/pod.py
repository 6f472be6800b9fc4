"""A server process as a pod: an address of its own, and a beginning and an end as the kubelet makes them."""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.faults.proxy import Proxy
from tests.programs import PATIENCE
from tools.wrappers import DIES_WITH_US

_STARTUP_PERIOD = 0.1
"""Seconds between the probes of a pod that starts."""

_RESTART_DELAY = 1.0
"""Seconds until a container that has ended runs again: the kubelet looks for such once a second."""

_LINE = 1 << 20
"""Bytes of the longest line of a log."""

_METRICS_PORT = re.compile(rb'metrics_port[":= ]+(\d+)')


@dataclass(frozen=True)
class Timing:
    """What takes time in a cluster, in seconds, and sooner than by k8s/base/deployment.yaml."""

    probe_period: float = 0.5
    probe_timeout: float = 1.0
    failure_threshold: int = 2
    """So many readiness probes must fail in a row."""

    pre_stop: float = 1.0
    """preStop's sleep: from `terminating` in the endpoints to SIGTERM."""

    termination_grace: float = 60.0
    """terminationGracePeriodSeconds: from the start of preStop to SIGKILL."""

    propagation: float = 0.05
    """From a change of a pod to the EndpointSlices, the DNS and the ClusterIP that know of it."""

    dns_ttl: int = 1
    """Of DNS records; whole seconds."""


class Pod:
    """A server process with an address of its own, and the same ports as all others.

    A process that ends by itself, or by `kill`, is started again at its address, as a container is.

    Args:
        name: unique in its fleet.
        command: the program that runs, and its arguments.
        address: an IP address of this machine.
        environment: of the process; GRPC_PORT and HEALTH_PORT are in it.
        database: the pod's own way to PostgreSQL, if it has one.
        timing: of the kubelet.
        on_change: called with what happens to the pod: "started", "ready", "not-ready", "terminating",
            "crashed" or "ended".
        on_line: called with each line of its log.

    """

    def __init__(
        self,
        name: str,
        command: Sequence[str | Path],
        address: str,
        *,
        environment: Mapping[str, str],
        database: Proxy | None,
        timing: Timing,
        on_change: Callable[[Pod, str], None],
        on_line: Callable[[Pod, bytes], None],
    ) -> None:
        self.name = name
        self.address = address
        self.port = int(environment["GRPC_PORT"])
        self.health_port = int(environment["HEALTH_PORT"])
        """Where health alone is served, in plaintext."""
        self.metrics_port = 0
        """Where /metrics is, on 127.0.0.1 as on all interfaces; another one after a restart."""
        self.database = database
        """The way to PostgreSQL, which is this pod's alone, and may be slow or cut."""
        self.ready = False
        """Whether the kubelet's probes say so."""
        self.terminating = False
        self.restarts = 0
        self.exit_code: int | None = None
        """Of the last process that has ended; -9 if it was killed."""
        self.log: deque[bytes] = deque(maxlen=200)
        """The newest lines."""
        self._command = command
        self._environment = {**environment, "GRPC_HOST": address, "POD_NAME": name}
        self._timing = timing
        self._on_change, self._on_line = on_change, on_line
        self._process: asyncio.subprocess.Process | None = None
        self._has_started = False
        self._first_ready = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._probing: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int:
        """The process id; the last one's if none runs."""
        assert self._process
        return self._process.pid

    @property
    def target(self) -> str:
        """Where it takes calls."""
        return f"{self.address}:{self.port}"

    async def start(self) -> None:
        """Start the process, and wait until the pod is ready.

        Raises:
            RuntimeError: it is not within PATIENCE, or the process has ended; the text has its log.

        """
        self._running = asyncio.create_task(self._run())
        self._probing = asyncio.create_task(self._probe())
        first_ready = asyncio.create_task(self._first_ready.wait())
        events = {first_ready, self._running}
        await asyncio.wait(events, timeout=PATIENCE, return_when=asyncio.FIRST_COMPLETED)
        first_ready.cancel()
        if not self._first_ready.is_set():
            await self.end()
            log = b"".join(self.log).decode(errors="replace")
            raise RuntimeError(f"{self.name} has not become ready (exit code {self.exit_code}):\n{log}")

    async def terminate(self, *, pre_stop: bool = True) -> None:
        """End it as the kubelet does: preStop, SIGTERM, and SIGKILL at the end of the grace period."""
        self.terminating = True
        self._on_change(self, "terminating")
        await asyncio.sleep(self._timing.pre_stop if pre_stop else 0)
        self.signal(signal.SIGTERM)
        assert self._running
        await asyncio.wait({self._running}, timeout=self._timing.termination_grace - self._timing.pre_stop)
        await self.end()

    async def end(self) -> None:
        """End the process at once, for good."""
        self.terminating = True
        self.kill()
        if self._probing and self._running:
            self._probing.cancel()
            await asyncio.wait({self._running, self._probing})
        self._on_change(self, "ended")

    def kill(self) -> None:
        """End the process as the kernel does when memory is gone; the kubelet starts another."""
        self.signal(signal.SIGKILL)

    def stop(self) -> None:
        """Have the process stand still: its sockets stay open, and nothing answers."""
        self.signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Let a stopped process go on."""
        self.signal(signal.SIGCONT)

    def leave_log(self) -> None:
        """Read its log no more: the pipe fills up."""
        self._log_pipe().pause_reading()

    def read_log(self) -> None:
        """Read its log on."""
        self._log_pipe().resume_reading()

    def close_log(self) -> None:
        """Have nobody there to read what this process writes from now on."""
        self._log_pipe().close()

    def _log_pipe(self) -> asyncio.ReadTransport:
        assert self._process
        transport = self._process._transport  # type: ignore[attr-defined]  # noqa: SLF001 (no other way)
        pipe: asyncio.ReadTransport = transport.get_pipe_transport(2)
        return pipe

    def signal(self, signum: signal.Signals) -> None:
        """Send a signal to the process, if one runs."""
        if self._process and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.kill(self._process.pid, signum)

    async def _run(self) -> None:
        """Run the process, and start it again when it has ended, unless it is to end."""
        while True:
            await self._run_once()
            self._has_started = False
            self._set_ready(ready=False)
            if self.terminating or not self._first_ready.is_set():
                return
            self._on_change(self, "crashed")
            await asyncio.sleep(_RESTART_DELAY)
            if self.terminating:
                return
            self.restarts += 1

    async def _run_once(self) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *DIES_WITH_US,
            *self._command,
            env=self._environment,
            stderr=asyncio.subprocess.PIPE,
            limit=_LINE,
            start_new_session=True,
        )
        self._on_change(self, "started")
        assert self._process.stderr
        async for line in self._process.stderr:
            self.log.append(line)
            if found := _METRICS_PORT.search(line):
                self.metrics_port = int(found[1])
            self._on_line(self, line)
        self.exit_code = await self._process.wait()

    async def _probe(self) -> None:
        """Ask for readiness as the kubelet does, at the end of the pod's life too."""
        failures = 0
        while True:
            if await self._is_serving():
                failures = 0
                self._has_started = True
                self._set_ready(ready=True)
                self._first_ready.set()
            elif (failures := failures + 1) >= self._timing.failure_threshold:
                self._set_ready(ready=False)
            await asyncio.sleep(self._timing.probe_period if self._has_started else _STARTUP_PERIOD)

    async def _is_serving(self) -> bool:
        """Ask over a connection of its own, as each probe does."""
        options = [("grpc.use_local_subchannel_pool", 1)]
        target = f"{self.address}:{self.health_port}"
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            request = health_pb2.HealthCheckRequest(service="readiness")
            try:
                answer = await stub.Check(request, timeout=self._timing.probe_timeout)
            except grpc.aio.AioRpcError:
                return False
            return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    def _set_ready(self, *, ready: bool) -> None:
        if ready != self.ready:
            self.ready = ready
            self._on_change(self, "ready" if ready else "not-ready")
