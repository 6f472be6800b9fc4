import copy
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from k8s.checks import lint as lint_module
from k8s.checks import rendered
from k8s.checks.lint import command, read_external


def lint(*arguments):
    """Run the command; return the exit code and what it printed."""
    result = CliRunner().invoke(command, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return result.exit_code, result.output


@pytest.fixture
def file(tmp_path):
    """Return the path of a file of manifests."""
    return tmp_path / "rendered.yaml"


def write(file, *objects):
    """Write manifests into the file."""
    file.write_text(yaml.safe_dump_all(objects))


def test_clean_overlays(file):
    """Nothing is printed about what has no problem."""
    write(file, *rendered.load("dev"))
    assert lint(file, file) == (0, "")


def service(**changes):
    """Return a Service that selects no pod."""
    metadata = {"name": "a"}
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"selector": {"app": "b"}},
    } | changes


def test_problems_of_several_files(file, tmp_path):
    """Each problem is a line with its file, object, field, and what would be right."""
    write(file, service())
    other = tmp_path / "other.yaml"
    write(other, service(metadata={"name": "b"}))
    code, output = lint(file, other)
    assert code == 1
    first, second = output.splitlines()
    assert first == (
        f"{file}: Service/a: spec.selector: {{'app': 'b'}} matches no pod; "
        "give the pods these labels, or select the ones they have"
    )
    assert second.startswith(f"{other}: Service/b: ")


def test_unknown_kinds(file):
    """An object of a kind that nobody knows is named as not checked, and the others are checked."""
    named = {"apiVersion": "apps.example.com/v1", "kind": "Deployment", "metadata": {"name": "c"}}
    write(file, service(), named)
    code, output = lint(file)
    assert code == 2
    first, second = output.splitlines()
    assert first.startswith(f"{file}: not checked: Deployment/c: kind: Kubernetes ")
    assert "has no apps.example.com/v1 Deployment, and no rule knows it" in first
    assert second.startswith(f"{file}: Service/a: spec.selector")


def test_other_files_are_checked(file, tmp_path):
    """A file that can't be read is named, and ends no check of another."""
    write(file, service())
    code, output = lint(tmp_path / "missing.yaml", tmp_path, file)
    assert code == 2
    assert output.splitlines()[:2] == [
        f"{tmp_path}/missing.yaml: not checked: not read: No such file or directory",
        f"{tmp_path}: not checked: not read: Is a directory",
    ]
    assert f"{file}: Service/a: spec.selector" in output


@pytest.mark.parametrize("kind", ["List", "ServiceList"])
def test_list(file, kind):
    """What is in a list is seen as if it were alone, in a list of lists too."""
    inner = {"apiVersion": "v1", "kind": kind, "items": [service()]}
    write(file, {"apiVersion": "v1", "kind": "List", "items": [inner]})
    code, output = lint(file)
    assert (code, "Service/a: spec.selector" in output) == (1, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metadata": None}, "Service/: the object: 'metadata' is a required property"),
        ({"metadata": ["a"]}, "Service/: metadata: is a list"),
        ({"metadata": {"name": 5}}, "Service/5: metadata.name: is a number"),
        ({"metadata": {"name": "a", "labels": ["a"]}}, "Service/a: metadata.labels: is a list"),
        ({"spec": {"ports": "80"}}, "Service/a: spec.ports: is of type str"),
        ({"spec": {"ports": [{"name": "a"}]}}, "Service/a: spec.ports[0]: 'port' is a required property"),
        ({"spec": {"port": []}}, "Service/a: spec.port: unknown field"),
        ({"spec": {"externalIPs": [None]}}, "Service/a: spec.externalIPs[0]: is null"),
        ({"apiVersion": None}, "Service/a: the object: 'apiVersion' is a required property"),
        (
            {"apiVersion": "traefik.io/v1alpha1", "kind": "IngressRoute", "spec": {"routes": [{"match": 5}]}},
            "IngressRoute/a: spec.routes[0].match: is a number; make it of type string",
        ),
    ],
)
def test_wrong_forms(file, changes, message):
    """What has another form than its kind is named with its field, and no rule sees the file."""
    write(file, service(**changes))
    code, output = lint(file)
    assert (code, f"{file}: not checked: {message}" in output) == (2, True), output
    assert output.endswith(f"{file}: not checked: no rule was asked, as they see all objects together\n")


def test_rules_that_fail(file, monkeypatch):
    """Rules that can't read a value are named in one line, and the others still look at the file."""

    def first(_):
        raise IndexError("hunter2")

    def second(_):
        raise KeyError("hunter2")

    monkeypatch.setattr(lint_module, "RULES", [first, *lint_module.RULES, second])
    write(file, service())
    code, output = lint(file)
    assert code == 2
    found, *failed = output.splitlines()
    assert "spec.selector" in found
    start = f"{file}: not checked: a value has a form that "
    assert [each.rpartition(" ")[0] for each in failed] == [
        f"{start}first can't read (IndexError in lint_test.py, line",
        f"{start}second can't read (KeyError in lint_test.py, line",
    ]


def test_secret_that_is_not_base64(file):
    """What Kubernetes could not decode is named with its key, and not quoted."""
    write(file, service(kind="Secret", spec=None, data={"password": "hunter2"}))
    code, output = lint(file)
    assert (code, "Secret/a: data[password]: is not base64" in output, "hunter2" in output) == (
        2,
        True,
        False,
    )


def test_references_without_a_name(file):
    """A reference may have no name in the schema: it is one to nothing."""
    objects = copy.deepcopy(rendered.load("dev"))
    [deployment] = [each for each in objects if each["kind"] == "Deployment"]
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    container["env"] = [{"name": "A", "valueFrom": {"configMapKeyRef": {"key": "a"}}}, *container["env"]]
    write(file, *objects)
    code, output = lint(file)
    assert (code, "there is no ConfigMap ;" in output) == (1, True), output


def test_values_of_wrong_types_are_not_quoted(file):
    """Nothing of a Secret is printed."""
    write(file, service(kind="Secret", spec=None, stringData={"password": ["hunter2"]}))
    code, output = lint(file)
    assert (code, "hunter2" in output) == (2, False)
    assert "stringData.password: is of type list" in output


def test_null_is_unset(file):
    """A field that is null is one that is not there, as to Kubernetes."""
    write(
        file, service(metadata={"name": "a", "labels": None}, spec={"selector": {"app": "b"}, "ports": None})
    )
    assert lint(file)[0] == 1


def test_object_that_is_there_twice(file):
    """Of two objects with one name either may hold, so neither is checked."""
    write(file, service(), service())
    code, output = lint(file)
    assert (code, "not checked: Service/a: metadata.name: is there twice" in output) == (2, True)


def test_control_characters(file):
    """What a terminal would obey is shown as it is written."""
    write(file, service(metadata={"name": "a\x1b[2J\nb"}))
    code, output = lint(file)
    assert code == 1
    assert output.startswith(f"{file}: Service/a\\x1b[2J\\nb: spec.selector")
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("name", rendered.OVERLAYS)
def test_overlays_are_checked_as_a_whole(file, name):
    """Nothing of any overlay is left unchecked."""
    write(file, *rendered.load(name))
    assert lint(file) == (0, "")


@pytest.mark.parametrize("rule", ["Host(`a`) &&", "PathPrefix(`/`"])
def test_rule_that_cannot_be_read(file, rule):
    """A rule of Traefik's that ends too early is told, and is not checked."""
    objects = copy.deepcopy(rendered.load("traefik"))
    [route] = [each for each in objects if each["kind"] == "IngressRoute"]
    route["spec"]["routes"][0]["match"] = rule
    write(file, *objects)
    code, output = lint(file)
    assert (code, "is no rule of Traefik's" in output) == (2, True)


def test_settings_that_are_no_yaml(file):
    """A broken config.yaml is one problem more, and ends no other check."""
    objects = copy.deepcopy(rendered.load("dev"))
    config_map = next(each for each in objects if each["kind"] == "ConfigMap")
    config_map["data"]["config.yaml"] = "server: ["
    write(file, *objects)
    code, output = lint(file)
    assert code == 1
    assert output.startswith(
        f"{file}: ConfigMap/{config_map['metadata']['name']}: data: config.yaml:1: not YAML: "
    )


def test_what_others_make(file, tmp_path):
    """A team declares in a file of its own what its manifests take for granted."""
    spec = {"gatewayClassName": "b", "listeners": []}
    write(file, service(apiVersion="gateway.networking.k8s.io/v1", kind="Gateway", spec=spec))
    code, output = lint(file)
    assert (code, "there is no GatewayClass b" in output) == (1, True)
    external = tmp_path / "external.yaml"
    external.write_text("- {kind: GatewayClass, name: b, why: the platform team has it}")
    assert lint("--external", external, file) == (0, "")


def test_released_images(file):
    """With --released a tag is not enough."""
    objects = rendered.load("istio")
    [database] = [each for each in objects if each["kind"] == "StatefulSet"]
    database["spec"]["template"]["spec"]["containers"][0]["image"] = "postgres:18.6"
    write(file, *objects)
    assert lint(file) == (0, "")
    code, output = lint("--released", file)
    assert (code, "'postgres:18.6' has no digest" in output) == (1, True)


@pytest.mark.parametrize(
    "text",
    [
        "kind: GatewayClass",
        "[1, 2]",
        "- name: b",
        "- {kind: GatewayClass, name: b, who: nobody}",
        "5",
        "a: [",
        "- {kind: !!bool a, name: b}",
    ],
)
def test_external_of_another_form(file, tmp_path, text):
    """What is declared external in a wrong form is wrong usage, told without a traceback."""
    write(file, service())
    external = tmp_path / "external.yaml"
    external.write_text(text)
    code, output = lint("--external", external, file)
    assert (code, "Invalid value for --external" in output) == (2, True)


def test_deep_external_is_refused_at_once(tmp_path):
    """Brackets cost no more CPU time than what else is refused; a tenth of a second is fifty times that."""
    external = tmp_path / "external.yaml"
    external.write_text(4000 * "[")
    before = time.process_time()
    with pytest.raises(ValueError, match="nesting"):
        read_external(external)
    assert time.process_time() - before < 0.1


def test_help_says_what_is_checked():
    """Help names the form of the file and what the command does."""
    code, output = lint("--help")
    assert code == 0
    assert "kustomize build" in output
    assert "services on grpc_common" in output
    assert "Exit code 0: nothing is wrong. 1: there are problems. 2: something was not checked" in " ".join(
        output.split()
    )
    assert lint()[0] == 2


ENDLESS = "/(([a-zA-Z.]+)+)+!"
"""A regular expression for which Python tries more ways than there are atoms."""


def with_endless_rules(name):
    """Return the objects of an overlay whose routes have ENDLESS."""
    objects = copy.deepcopy(rendered.load(name))
    for each in objects:
        match each["kind"]:
            case "IngressRoute":
                each["spec"]["routes"][0]["match"] = f"PathRegexp(`{ENDLESS}`)"
            case "VirtualService":
                each["spec"]["http"][0]["match"] = [{"uri": {"regex": ENDLESS}}]
            case "Ingress":
                each["metadata"]["annotations"]["nginx.ingress.kubernetes.io/use-regex"] = "true"
                each["spec"]["rules"][0]["http"]["paths"][0]["path"] = ENDLESS
            case "GRPCRoute":
                method = {"type": "RegularExpression", "service": ENDLESS[1:]}
                each["spec"]["rules"][0]["matches"] = [{"method": method}]
    return objects


@pytest.mark.parametrize("name", ["traefik", "istio", "nginx-ingress", "gateway-api"])
def test_regular_expressions_without_an_end(file, monkeypatch, name):
    """A rule that would try forever is told not to have looked, and the others look."""
    monkeypatch.setattr(lint_module, "ASKING", 0.5)
    write(file, *with_endless_rules(name), service())
    code, output = lint(file)
    assert (code, "let_every_method_through" in output) == (2, True), output
    assert "take more than 0.5 s for" in output
    assert "Service/a: spec.selector" in output


def test_file_that_nobody_writes(file, monkeypatch):
    """A pipe from which nothing comes is not waited for without an end."""
    monkeypatch.setattr(lint_module, "READING", 0.5)
    os.mkfifo(file)
    assert lint(file) == (2, f"{file}: not checked: not read: takes more than 0.5 s\n")


def test_result_that_can_not_be_written(file):
    """A full disk is told, and is no sign that all is right."""
    write(file, service())
    with Path("/dev/full").open("w") as full:
        result = subprocess.run(
            [sys.executable, lint_module.__file__, file],
            env={"PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert (result.returncode, result.stderr) == (
        2,
        "error: what was found could not be written: No space left on device\n",
    )
