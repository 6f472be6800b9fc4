"""What a file may say of listeners and of channel arguments, and the words for what it may not."""

import re
import socket

import grpc
import pytest
import yaml

from grpc_common import Server, ServerConfig, load
from grpc_common.config.addresses import parse_address
from grpc_common.config.document import ConfigError
from grpc_common.config.loading import to_yaml
from grpc_common.server.options import options


def configured(folder, environ=(), metrics=None, **server) -> ServerConfig:
    """Return the configuration of a file with this section."""
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump({"server": server, "metrics": metrics or {}}))
    return load(ServerConfig, file, environ=dict(environ))


def listen(*addresses: str) -> list[dict]:
    """Return listeners."""
    return [{"address": address} for address in addresses]


def test_listeners_are_read_and_printed(tmp_path):
    """What a file says comes out of --print-config as it was."""
    listeners = [{"address": "[::1]:0", "tls": None}, {"address": "unix:/run/s", "tls": False}]
    config = configured(
        tmp_path, listen=listeners, host="::1", compression="gzip", channel_args={"grpc.x": 1}
    )
    section = yaml.safe_load(to_yaml(config))["server"]
    assert section["listen"] == listeners
    assert (section["host"], section["compression"], section["channel_args"]) == (
        "::1",
        "gzip",
        {"grpc.x": 1},
    )


def test_host_and_compression_have_variables(tmp_path):
    """The host's is not HOST, which shells set."""
    config = configured(tmp_path, {"GRPC_HOST": "127.0.0.1", "COMPRESSION": "deflate", "HOST": "laptop"})
    assert (config.server.host, config.server.compression) == ("127.0.0.1", "deflate")
    assert configured(tmp_path, {"GRPC_HOST": ""}, host="::1").server.host == ""


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        (":50052", "", 50052),
        ("0.0.0.0:1", "0.0.0.0", 1),  # noqa: S104 (an address that is written)
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("[::1]:65535", "::1", 65535),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        ("localhost:1", "localhost", 1),
    ],
)
def test_addresses(text, host, port):
    """Each form is read, and written as it was."""
    address = parse_address(text)
    assert (address.host, address.port, str(address)) == (host, port, text)


@pytest.mark.parametrize("text", ["unix:/run/a.sock", "unix:///run/a.sock"])
def test_unix_addresses(text):
    """Both of gRPC's forms of an absolute path are the same."""
    assert str(parse_address(text)) == "unix:/run/a.sock"


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("", "write HOST:PORT"),
        ("50051", "write HOST:PORT"),
        ("127.0.0.1", "write HOST:PORT"),
        ("127.0.0.1:", "write HOST:PORT"),
        ("127.0.0.1:http", "write HOST:PORT"),
        (":65536", "a port is 0 to 65535"),
        (":-1", "write HOST:PORT"),
        (":٣", "write HOST:PORT"),
        ("::1:50051", "write an IPv6 address in brackets"),
        ("[127.0.0.1]:1", "write an IP address"),
        ("[:1", "write an IP address"),
        ("[::1", "write an IPv6 address in brackets"),
        ("example.com:1", "write an IP address of this machine, localhost, or nothing"),
        ("256.0.0.1:1", "write an IP address"),
        ("unix:", "write an absolute path"),
        ("unix:run/s", "write an absolute path"),
        ("unix:@abstract", "write an absolute path"),
        ("unix:/", "write the path of a file"),
        ("unix:/run/", "write the path of a file"),
        ("unix:/a\0b", "write the path of a file"),
        ("unix:/a%00b/s", "write a path without %, # and ?"),
        ("unix:/a#1", "write a path without %, # and ?"),
        ("unix:/run?/s", "write a path without %, # and ?"),
        ("[fe80::1%a\0]:1", "write an IP address"),
        ("unix:/" + "a" * 107, "the path has 108 bytes; a Unix socket's has at most 107"),
        ("unix:/" + "é" * 54, "the path has 109 bytes"),
    ],
)
def test_address_that_can_not_be_right_is_refused(tmp_path, address, reason):
    """The error has the line, the key and what would be right."""
    with pytest.raises(
        ConfigError, match=rf"config\.yaml:\d+: server\.listen.*address: .*{re.escape(reason)}"
    ):
        configured(tmp_path, listen=listen(address))


@pytest.mark.parametrize(
    "host", ["example.com", "127.0.0.1:1", "[::1]", "*", "1", " ", "local host", "::1%a\0", "::1%\n"]
)
def test_host_that_is_no_address_is_refused(tmp_path, host):
    """No name is looked up but localhost."""
    with pytest.raises(
        ConfigError, match=r"server\.host: .*write an IP address of this machine, localhost, or"
    ):
        configured(tmp_path, host=host)


@pytest.mark.parametrize(
    ("section", "reason"),
    [
        ({"port": 50051, "listen": listen(":50051")}, r"listen\.0.address and port are both 50051"),
        ({"health_port": 7, "listen": listen(":7")}, r"listen\.0.address and health_port are both 7"),
        (
            {"listen": listen("127.0.0.1:7", "[::1]:7")},
            r"listen\.1.address and listen\.0.address are both 7; give each .*, whatever the host",
        ),
        ({"listen": listen("unix:/s", "unix:///s")}, r"listen\.1.address and .* are both /s"),
        ({"listen": listen("127.0.0.1:9090")}, r"metrics.port and server.listen\.0.address are both 9090"),
        ({"port": 9090}, "metrics.port and server.port are both 9090"),
        ({"health_port": 9090}, "metrics.port and server.health_port are both 9090"),
        ({"listen": [{"address": ":7", "tls": True}]}, r"listen\.0.tls needs tls.directory"),
        ({"listen": [{"adress": ":7"}]}, r"server\.listen\.0\.adress: unknown key"),
        ({"listen": [{"tls": False}]}, r"server\.listen\.0\.address: is required"),
        ({"listen": ":7"}, "server.listen: .*list"),
        ({"listen": [":7"]}, r"server\.listen\.0"),
        ({"compression": "br"}, "server.compression: .*'none', 'gzip' or 'deflate'"),
    ],
)
def test_listeners_that_exclude_each_other_are_refused(tmp_path, section, reason):
    """The error names both."""
    with pytest.raises(ConfigError, match=reason):
        configured(tmp_path, **section)


def test_free_ports_never_clash(tmp_path):
    """Any number of listeners may take a free port; one without metrics may have the port of those."""
    configured(tmp_path, port=0, health_port=0, listen=listen(":0", "127.0.0.1:0"), metrics={"port": 0})
    configured(tmp_path, port=9090, metrics={"enabled": False})


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"grpc.max_connection_age_ms": 1}, "is set by server.keepalive.max_connection_age$"),
        ({"grpc.max_receive_message_length": 1}, "is set by server.max_recv_msg_size$"),
        ({"grpc.x": True}, "1 and 0 for on and off"),
        ({"grpc.x": 1.5}, "write a text, or a whole number of at most 32 bits"),
        ({"grpc.x": None}, "write a text, or a whole number of at most 32 bits"),
        ({"grpc.x": [1]}, "write a text, or a whole number of at most 32 bits"),
        ({"grpc.x": 2**31}, "write a text, or a whole number of at most 32 bits"),
        ({"grpc.x": "a\0b"}, "write a text, or a whole number of at most 32 bits"),
        ({"grpc.x": "\ud800"}, "write a text, or a whole number of at most 32 bits"),
        ({"": 1}, "write the name of an option"),
    ],
)
def test_channel_arguments_that_can_not_be_right_are_refused(tmp_path, arguments, reason):
    """An option that a setting has is told with it, and a value that C-core can't take is refused."""
    with pytest.raises(ConfigError, match=reason):
        configured(tmp_path, channel_args=arguments)


def test_every_option_of_a_setting_is_refused(tmp_path):
    """Whatever the library tells C-core is either a setting's, and refused, or free to be overruled."""
    free = {
        "grpc.keepalive_permit_without_calls",
        "grpc.http2.max_deallocating_streams",
        "grpc.http2.bdp_probe",
        "grpc.server.max_pending_requests",
        "grpc.server.max_pending_requests_hard_limit",
        "grpc.so_reuseport",
    }
    for name in {name for name, _ in options(configured(tmp_path, compression="gzip").server)} - free:
        with pytest.raises(ConfigError, match=f"{name} is set by server."):
            configured(tmp_path, channel_args={name: 1})
    configured(tmp_path, channel_args=dict.fromkeys(free, 1))


async def test_channel_argument_reaches_c_core(tmp_path):
    """With grpc.so_reuseport, which the library switches off, C-core's listener says so."""
    arguments = {"grpc.so_reuseport": 1, "grpc.primary_user_agent": "text"}
    config = configured(
        tmp_path, port=0, channel_args=arguments, metrics={"enabled": False}, drain={"delay": "0s"}
    )
    async with Server(config).serving() as port, grpc.aio.insecure_channel(f"127.0.0.1:{port}"):
        with socket.socket(socket.AF_INET6) as second:
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            second.bind(("::", port))
