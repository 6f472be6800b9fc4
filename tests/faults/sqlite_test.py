import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from tests.faults.load import CREATORS, Load, assert_nothing_lost, users_of
from tests.programs import running_server


@pytest.fixture
def small_disk(tmp_path: Path):
    """Return a folder with room for 16 MB."""
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", tmp_path]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small disk (root with CAP_SYS_ADMIN)")
    yield tmp_path
    subprocess.run(["umount", tmp_path], check=True)


async def test_full_disk(small_disk: Path):
    """While the disk is full users can be read, not created; with room again the same server goes on."""
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(15_000_000))
    with running_server(small_disk / "users.db") as server:
        load = Load()
        async with load.running(server.target):
            await load.until_failed(5 * CREATORS)
            user = next(iter(load.acknowledged.values()))
            async with grpc.aio.insecure_channel(server.target) as channel:
                assert await UserServiceStub(channel).GetUser(pb.GetUserRequest(id=user.id)) == user
            ballast.unlink()
            await load.until_acknowledged(100)
        await assert_nothing_lost(load, "disk full", "sqlite", server.target)
        server.kill()
    with running_server(small_disk / "users.db") as server:
        assert len(await users_of(server.target)) == len(load.acknowledged)


async def test_file_locked_by_another_process(sqlite_url: str):
    """While another process holds the file creates end in time, and go on once it is free."""
    with running_server(sqlite_url) as server:
        load = Load()
        async with load.running(server.target):
            await load.until_acknowledged(50)
            with closing(sqlite3.connect(sqlite_url.removeprefix("sqlite:///"), autocommit=True)) as other:
                other.execute("BEGIN IMMEDIATE")
                await load.until_failed(2 * CREATORS)
            await load.until_acknowledged(100)
        await assert_nothing_lost(load, "file locked", "sqlite", server.target)
