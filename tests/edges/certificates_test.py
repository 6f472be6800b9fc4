import copy
import re
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
import trustme
import yaml
from user import user_service_pb2 as pb
from user.user_service_pb2_grpc import UserServiceStub

from grpc_common.testing.certificates import CertificateDirectory
from k8s.checks import authentication
from k8s.checks.manifests import Manifests
from k8s.checks.rendered import load
from tests.edges.secrets import Issuer, environment, issue_secrets
from tests.edges.traefik import running_traefik
from tests.programs import running_server

CODE = grpc.StatusCode
NOBODY = "01a20dfc-c89e-76ef-b891-a3fba7c9c311"
PARTNERS = "user-service-partners-ca"

_README = Path("k8s/components/authentication/README.md").read_text("utf-8")


def documented():
    """Return the objects and the settings that the README gives for certificates in place of tokens."""
    objects, settings = re.findall(r"```yaml\n(.*?)```", _README, re.DOTALL)
    return [*yaml.safe_load_all(objects)], yaml.safe_load(settings)["server"]


def overlay(*, tokens):
    """Return prod as the README changes it; `tokens` if callers need a token besides."""
    (option, route), settings = documented()
    objects = copy.deepcopy(load("prod"))
    namespace = {"namespace": "user-service"}
    objects.append(option | {"metadata": option["metadata"] | namespace})
    [ours] = [each for each in objects if each["kind"] == "IngressRoute"]
    ours["spec"] |= route["spec"]
    [config] = [each for each in objects if each["metadata"]["name"].startswith("user-service-config-")]
    known = yaml.safe_load(config["data"]["config.yaml"])
    known["server"] |= {} if tokens else settings
    config["data"]["config.yaml"] = yaml.safe_dump(known)
    return objects


@pytest.fixture(params=[False, True], ids=["certificate alone", "token besides"])
def tokens(request):
    """Tell whether callers need a token besides."""
    return request.param


@pytest.fixture
def partners(tmp_path):
    """Make the authority of those outside, with a certificate of it and one of another."""
    authority = trustme.CA()
    for name, ca in {PARTNERS: authority, "stranger": trustme.CA()}.items():
        CertificateDirectory(tmp_path / name, ca, "partner.example.org")
    return tmp_path


def test_the_lint_knows_the_lock(tokens):
    """The rules find nothing wrong with what the README says."""
    found = authentication.ask_who_calls_from_outside(Manifests(overlay(tokens=tokens)))
    assert [str(problem) for problem in found] == []


async def test_certificates_in_place_of_tokens(partners, tokens):
    """Only who has a certificate of the authority comes in, and may call what the edge may."""
    objects = overlay(tokens=tokens)
    issue_secrets(objects, partners)
    issuer = Issuer(objects, partners)
    with (
        running_server(partners / "users.db", **environment(objects, partners), **issuer.variables) as server,
        running_traefik(partners, objects, partners, [server.port("grpc_port")]) as edge,
    ):

        async def codes(certificate, token=None):
            shown = certificate and partners / certificate
            async with replace(edge, certificate=shown, token=token).channel() as channel:
                stub = UserServiceStub(channel)
                gotten = await stub.GetUser(pb.GetUserRequest(id=NOBODY), timeout=25).code()
                return gotten, await stub.ListUsers(pb.ListUsersRequest(), timeout=25).code()

        refused = (CODE.UNAVAILABLE, CODE.UNAVAILABLE)
        assert await codes(None, issuer.token("GetUser")) == refused
        assert await codes("stranger", issuer.token("GetUser")) == refused
        without_token = (CODE.UNAUTHENTICATED,) * 2 if tokens else (CODE.NOT_FOUND, CODE.PERMISSION_DENIED)
        assert await codes(PARTNERS) == without_token
        assert await codes(PARTNERS, issuer.token("GetUser")) == (CODE.NOT_FOUND, CODE.PERMISSION_DENIED)
