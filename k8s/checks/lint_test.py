import copy
import re

import pytest
import yaml
from click.testing import CliRunner

from k8s.checks import rendered
from k8s.checks.lint import command


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


def test_problems_of_several_files(file, tmp_path):
    """Each problem is a line with its file, object, field, and what would be right."""
    service = {"kind": "Service", "metadata": {"name": "a"}, "spec": {"selector": {"app": "b"}}}
    unknown = {"apiVersion": "example.com/v1", "kind": "Whatever", "metadata": {"name": "c"}}
    write(file, service, unknown)
    other = tmp_path / "other.yaml"
    write(other, unknown)
    code, output = lint(file, other)
    assert code == 1
    assert output == (
        f"{file}: Service/a: spec.selector: {{'app': 'b'}} matches no pod; "
        "give the pods these labels, or select the ones they have\n"
    )


def test_list(file):
    """What is in a List is seen as if it were alone."""
    service = {"kind": "Service", "metadata": {"name": "a"}, "spec": {"selector": {"app": "b"}}}
    write(file, {"apiVersion": "v1", "kind": "List", "items": [service]})
    code, output = lint(file)
    assert (code, "Service/a: spec.selector" in output) == (1, True)


@pytest.mark.parametrize("rule", ["Host(`a`) &&", "PathPrefix(`/`"])
def test_rule_that_cannot_be_read(file, rule):
    """A rule of Traefik's that ends too early is told as wrong usage."""
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
    write(file, {"kind": "Gateway", "metadata": {"name": "a"}, "spec": {"gatewayClassName": "b"}})
    code, output = lint(file)
    assert (code, "there is no GatewayClass b" in output) == (1, True)
    external = tmp_path / "external.yaml"
    external.write_text("- {kind: GatewayClass, name: b, why: the platform team has it}")
    assert lint("--external", external, file) == (0, "")


def test_released_images(file):
    """With --released a tag is not enough."""
    text = yaml.safe_dump_all(rendered.load("istio"))
    file.write_text(re.sub(r"(library/postgres:[\d.]+)@sha256:\w+", r"\1", text))
    assert lint(file) == (0, "")
    code, output = lint("--released", file)
    assert (code, "postgres:18.6' has no digest" in output) == (1, True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "not YAML"),
        ("[1, 2]", "has a document without kind"),
        ("a: 1", "has a document without kind"),
        ("{kind: Service, spec: {ports: [{name: a}]}}", ""),
        ("{kind: Ingress, spec: {rules: [{http: {paths: [{}]}}]}}", "can't read (KeyError('path'))"),
    ],
)
def test_files_that_are_no_manifests(file, text, message):
    """What can't be read is wrong usage, told without a traceback."""
    file.write_text(text)
    code, output = lint(file)
    assert (code, message in output) == (2 if message else 0, True)


def test_help_says_what_is_checked():
    """Help names the form of the file and what the command does."""
    code, output = lint("--help")
    assert code == 0
    assert "kustomize build" in output
    assert lint()[0] == 2
