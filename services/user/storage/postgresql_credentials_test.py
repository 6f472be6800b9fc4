import os
import tempfile
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import grpc
import pytest
import trustme
from grpc_health.v1 import health_pb2, health_pb2_grpc
from structlog.testing import capture_logs

import grpc_common
from grpc_common.testing import configure
from services.user.config import DatabaseConfig
from services.user.storage import StorageError, migrate_storage, open_storage
from services.user.storage.postgresql_credentials import CredentialError, check_files, read_password
from services.user.testing_postgresql import running_postgresql
from services.user.users import new_user

ARE_ENCRYPTED = """
SELECT bool_and(ssl) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE usename = 'service'
"""


@pytest.fixture(scope="module")
def postgresql():
    """Run a server of this file's own, since it asks for passwords and has certificates."""
    with running_postgresql() as server:
        yield server


@asynccontextmanager
async def administrator(url: str):
    """Yield a connection that may all."""
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


class Secret:
    """A folder as the kubelet mounts a Secret: what changes is a link to the folder of all files."""

    def __init__(self, folder) -> None:
        self._folder = folder
        self._count = 0

    def write(self, **files: bytes) -> None:
        """Replace all files at once."""
        self._count += 1
        version = self._folder / f"..{self._count}"
        version.mkdir()
        for name, content in files.items():
            (version / name).write_bytes(content)
            if not (self._folder / name).is_symlink():
                (self._folder / name).symlink_to(f"..data/{name}")
        (self._folder / "..new").symlink_to(version.name)
        (self._folder / "..new").rename(self._folder / "..data")

    def file(self, name: str):
        """Return the path of a file."""
        return self._folder / name


@pytest.fixture
def secret():
    """Return a mounted Secret without files, whose paths are short enough for a line of the log."""
    with tempfile.TemporaryDirectory() as folder:
        yield Secret(Path(folder))


@pytest.fixture
async def database(postgresql, secret) -> DatabaseConfig:
    """Return a migrated database whose role `service` needs the password of a file."""
    await migrate_storage(DatabaseConfig(url=postgresql.url))
    async with administrator(postgresql.url) as admin:
        await admin.execute("DROP ROLE IF EXISTS service")
        await admin.execute("CREATE ROLE service LOGIN SUPERUSER PASSWORD 'first'")
    postgresql.require_password("service")
    secret.write(password=b"first\n")
    url = postgresql.url.replace("postgres@", "service@")
    return DatabaseConfig(url=url, password_file=secret.file("password"))


async def test_rotated_password_is_taken(postgresql, database, secret):
    """New connections have the password of the moment, and those that are open go on."""
    async with open_storage(database) as storage, administrator(postgresql.url) as admin:
        ada = await storage.create(new_user("Ada", "ada@example.com"))
        await admin.execute("ALTER ROLE service PASSWORD 'second'")
        assert await storage.get(ada.id) == ada
        await cut_connections(admin)
        with pytest.raises(StorageError, match="password authentication failed"):
            await until_works(storage, tries=3)
        secret.write(password=b"second\r\n")
        await until_works(storage)
        assert await storage.get(ada.id) == ada


async def cut_connections(admin) -> None:
    """End the service's connections."""
    await admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'service'")


async def until_works(storage, tries: int = 100) -> None:
    """Ask until the database can be used; raise the last error after so many tries."""
    for left in reversed(range(tries)):
        try:
            await storage.ping()
            await storage.page(None, 1)
        except StorageError:
            if not left:
                raise
        else:
            return


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is empty"),
        (b"\n", "is empty"),
        (b"\r\n\n", "is empty"),
        (b"first\xff", "is not UTF-8"),
        ("first".encode("utf-16"), "is not UTF-8"),
        (b"fi\0rst", "control characters"),
        (b"first\nsecond\n", "several lines"),
        (b"first" * 2**14, "more than 65536 bytes"),
        (None, "can't be read: No such file or directory"),
    ],
    ids=str,
)
async def test_password_file_that_is_of_no_use(postgresql, database, secret, content, fault):
    """The error names the file and not what is in it; the service recovers once the file is right."""
    async with open_storage(database) as storage, administrator(postgresql.url) as admin:
        if content is None:
            secret.write()
        else:
            secret.write(password=content)
        await cut_connections(admin)
        with pytest.raises(StorageError, match=fault) as caught:
            await until_works(storage, tries=3)
        assert str(secret.file("password")) in str(caught.value)
        assert "first" not in str(caught.value)
        secret.write(password=b"first")
        await until_works(storage)


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (Path.mkdir, "is no regular file"),
        (os.mkfifo, "is no regular file"),
        (lambda path: path.symlink_to(path.name), "can't be read: Too many levels of symbolic links"),
        (lambda path: path.symlink_to("/dev/zero"), "is no regular file"),
    ],
    ids=["folder", "pipe", "loop", "device"],
)
def test_what_is_no_file(monkeypatch, tmp_path, make, fault):
    """It is an error, and holds nobody up."""
    monkeypatch.chdir(tmp_path)  # or its path may be too long for the error
    file = Path("pass\nword")
    make(file)
    with pytest.raises(CredentialError, match=fault) as caught:
        read_password(file)
    assert r"pass\nword" in str(caught.value)


@pytest.mark.parametrize("password", ["first", " s p ", "\u00e9\u00a0\U0001f511", "p:@/?#%"])
def test_password_as_it_is(tmp_path, password):
    """Nothing but the newline at its end is taken away."""
    for end in ("", "\n", "\r\n"):
        (tmp_path / "password").write_bytes((password + end).encode())
        assert read_password(tmp_path / "password") == password


async def test_replica_without_its_password_file(database, secret):
    """It starts, is not ready, says why, and becomes ready when the file is there."""
    secret.write()
    server = grpc_common.Server(configure())
    with capture_logs() as logs:
        async with open_storage(database) as storage:
            server.depend_on("database", storage.ping, interval=0.01)
            async with server.serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                request = health_pb2.HealthCheckRequest(service="readiness")
                watch = health_pb2_grpc.HealthStub(channel).Watch(request, timeout=20)
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
                secret.write(password=b"first")
                assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
    reasons = [line["reason"] for line in logs if line["event"] == "dependency failed"]
    assert f"database.password_file {secret.file('password')} can't be read" in reasons[0]


@pytest.fixture
async def authority(postgresql, tmp_path) -> trustme.CA:
    """Return the authority of the server's certificate, which is for 127.0.0.1 alone."""
    authority = trustme.CA()
    await use_certificate(postgresql, authority, tmp_path)
    return authority


async def use_certificate(postgresql, authority: trustme.CA, folder) -> None:
    """Let the server have a certificate."""
    certificate = authority.issue_cert("127.0.0.1")
    key, chain = folder / f"{id(authority)}.key", folder / f"{id(authority)}.crt"
    key.write_bytes(certificate.private_key_pem.bytes())
    key.chmod(0o600)
    chain.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    os.chown(key, os.geteuid(), -1)
    async with administrator(postgresql.url) as admin:
        await admin.execute(f"ALTER SYSTEM SET ssl_key_file = '{key}'")
        await admin.execute(f"ALTER SYSTEM SET ssl_cert_file = '{chain}'")
        await admin.execute("ALTER SYSTEM SET ssl = on")
        await admin.execute("SELECT pg_reload_conf()")


def verified(database: DatabaseConfig, secret: Secret, host: str = "127.0.0.1") -> DatabaseConfig:
    """Return the database with its certificate checked against the Secret's ca.crt."""
    url = database.url.replace("127.0.0.1", host)
    parameters = f"?sslmode=verify-full&sslrootcert={secret.file('ca.crt')}"
    return database.model_copy(update={"url": url + parameters})


async def test_authority_of_the_database_is_rotated(postgresql, database, secret, authority, tmp_path):
    """New connections check the certificate with the authority that is mounted at the moment."""
    secret.write(**{"password": b"first", "ca.crt": authority.cert_pem.bytes()})
    async with open_storage(verified(database, secret)) as storage, administrator(postgresql.url) as admin:
        await until_works(storage)
        assert await admin.fetchval(ARE_ENCRYPTED)
        other = trustme.CA()
        await use_certificate(postgresql, other, tmp_path)
        await cut_connections(admin)
        with pytest.raises(StorageError, match="certificate verify failed"):
            await until_works(storage, tries=3)
        secret.write(**{"password": b"first", "ca.crt": other.cert_pem.bytes()})
        await until_works(storage)


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "can't be read: No such file or directory"),
        (b"", "has no certificate in PEM"),
        (b"\x30\x82", "has no certificate in PEM"),
    ],
    ids=str,
)
async def test_authority_that_is_of_no_use(database, secret, authority, content, fault):
    """The error names the file, and the service recovers once that is right."""
    files = {} if content is None else {"ca.crt": content}
    secret.write(password=b"first", **files)
    config = verified(database, secret)
    async with open_storage(config) as storage:
        with pytest.raises(StorageError, match=fault) as caught:
            await storage.ping()
        assert f"sslrootcert {secret.file('ca.crt')} " in str(caught.value)
        secret.write(**{"password": b"first", "ca.crt": authority.cert_pem.bytes()})
        await until_works(storage)


def test_authority_of_the_environment(monkeypatch, tmp_path):
    """What the URL leaves out, and PGSSLROOTCERT names, is named as well."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PGSSLROOTCERT", "ca.crt")
    with pytest.raises(CredentialError, match=r"sslrootcert ca\.crt can't be read"):
        check_files("postgresql://host/users?sslmode=verify-full")


async def test_start_with_the_authority_of_another_database(database, secret, authority):
    """It is no fault of the URL: the service starts, and is ready once the right authority is mounted."""
    secret.write(**{"password": b"first", "ca.crt": trustme.CA().cert_pem.bytes()})
    async with open_storage(verified(database, secret)) as storage:
        with pytest.raises(StorageError, match="certificate verify failed"):
            await storage.ping()
        secret.write(**{"password": b"first", "ca.crt": authority.cert_pem.bytes()})
        await until_works(storage)


async def test_migration_takes_both_files(database, secret, authority):
    """The Job has the password and the authority of the server."""
    secret.write(**{"password": b"first", "ca.crt": authority.cert_pem.bytes()})
    await migrate_storage(verified(database, secret))
    secret.write(**{"password": b"other", "ca.crt": authority.cert_pem.bytes()})
    with pytest.raises(StorageError, match="password authentication failed"):
        await migrate_storage(verified(database, secret))


async def test_database_with_a_certificate_for_another_host(database, secret, authority):
    """A certificate that is not for the host of the URL is refused, whoever has signed it."""
    secret.write(**{"password": b"first", "ca.crt": authority.cert_pem.bytes()})
    async with open_storage(verified(database, secret, "localhost")) as storage:
        with pytest.raises(StorageError, match="localhost"):
            await storage.ping()
