import pytest

from grpc_common.client.resolver.target import GrpcTarget, KubernetesTarget, endpoints_target, parse_target


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("user-service.default:50051", ("user-service", "default", 50051, "user-service.default")),
        ("user-service.default:grpc", ("user-service", "default", "grpc", "user-service.default")),
        ("a.b.svc:1", ("a", "b", 1, "a.b.svc")),
        ("a.b.svc.cluster.local:65535", ("a", "b", 65535, "a.b.svc.cluster.local")),
    ],
)
def test_kubernetes_targets(target, expected):
    """Service and namespace, with or without the cluster's domain, and a port by number or name."""
    assert parse_target(f"kubernetes:///{target}") == KubernetesTarget(*expected)


@pytest.mark.parametrize(
    "target",
    [
        "user-service:50051",
        "localhost:1",
        "10.0.0.7:50051",
        "[::1]:50051",
        "dns:///user-service-headless:50051",
        "dns:///[fd00::7]:50051",
        "dns:user-service:50051",
        "dns://127.0.0.1:5353/user-service.default.svc.cluster.local.:50051",
        "ipv4:10.0.0.7:50051,10.0.0.8:50051",
        "ipv6:[::1]:50051,[::2]:50051",
        "unix:relative.sock",
        "unix:///run/user.sock",
        "unix-abstract:user",
    ],
)
def test_targets_of_grpc_stay_as_they_are(target):
    """What grpc resolves by itself is handed to it unchanged."""
    assert parse_target(target) == GrpcTarget(target)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "user-service",
        "user-service:",
        "user-service:grpc",
        "user-service:0",
        "user-service:65536",
        "user service:1",
        "http://user-service:80",
        "dns:///user-service",
        "dns://resolver:50051",
        "ipv4:10.0.0.7",
        "ipv4:10.0.0.7:1,",
        "unix:",
        "xds:///user-service",
        "user-service:1\n",
        "user-service:\uff11",
        "unix:/a\0b",
        "unix-abstract:\0a",
        "unix:/a\nb",
    ],
)
def test_other_targets_are_refused(target):
    """A target that would fail later, or mean port 443, is an error that lists the right forms."""
    with pytest.raises(ValueError, match="is not of the form kubernetes:///SERVICE") as caught:
        parse_target(target)
    assert repr(target) in str(caught.value)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "target",
    [
        "kubernetes:///user-service:50051",
        "kubernetes:///user-service.default",
        "kubernetes:///user-service.default:0",
        "kubernetes:///user-service.default:65536",
        "kubernetes:///user-service.default.pod:1",
        "kubernetes:///User.default:1",
        "kubernetes://default/user-service:50051",
        "kubernetes:user-service.default:50051",
        "kubernetes:///user-service.default:50051/",
    ],
)
def test_other_kubernetes_targets_are_refused(target):
    """A Kubernetes target without a namespace, or of another form, is an error with an example."""
    with pytest.raises(ValueError, match=r"as in kubernetes:///user-service\.default:50051"):
        parse_target(target)


def test_endpoints_of_two_families():
    """A target of grpc takes one family at a time; of a dual-stack service the IPv4 addresses are enough."""
    assert endpoints_target(["[fd00::7]:1", "10.0.0.7:1", "10.0.0.8:1"]) == "ipv4:10.0.0.7:1,10.0.0.8:1"
    assert endpoints_target(["[fd00::7]:1", "[fd00::8]:1"]) == "ipv6:[fd00::7]:1,[fd00::8]:1"
