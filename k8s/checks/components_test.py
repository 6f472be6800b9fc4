import re
from pathlib import Path

import pytest
import yaml

from k8s.checks import autoscaling, gitops, mesh, references, scraping
from k8s.checks.kustomize import OVERLAYS, UNUSED, USED, build, components_of, compose, copy_files, names
from k8s.checks.lint import EXTERNAL, RULES, read_external
from k8s.checks.rendered import OVERLAYS as RENDERED
from k8s.checks.schemas import NEWEST, OLDEST, validate
from k8s.checks.scraping import scrapes
from k8s.checks.servers import servers
from k8s.checks.testing import config_map, overlay, texts

INJECTED = {"name": "injected", "image": "mesh.example.com/proxy:1"}

BY_INDEX = re.compile(r"[cC]ontainers[/.\[]\d")
"""A container addressed by its place, in a JSON patch, a replacement or a kubectl command."""


@pytest.fixture
def files(tmp_path):
    """Return a copy of k8s/ to render from."""
    return copy_files(tmp_path)


def test_every_overlay_is_rendered_from_here():
    """The tests below were given the overlays and the components."""
    assert {"dev", "istio", "prod", "staging"} <= {*OVERLAYS}
    assert {"postgres", "tls", "traefik"} <= USED


def is_core(manifest):
    """Return whether a kind is Kubernetes' own."""
    group = manifest["apiVersion"].rpartition("/")[0]
    return "." not in group or group.endswith(".k8s.io")


def problems(objects, version):
    """Return what a version of Kubernetes finds wrong."""
    return [problem for each in objects for problem in validate(each, version)]


@pytest.mark.parametrize("base", ["istio", "prod"])
@pytest.mark.parametrize("name", UNUSED)
def test_component_that_no_overlay_has(name, base, files):
    """It is rendered with production and in a mesh, passes all checks there, and is what Kubernetes knows."""
    rendered = compose(files, f"overlays/{base}", name)
    assert [text for rule in RULES for text in texts(rule, rendered)] == []
    core = [each for each in rendered.objects if is_core(each)]
    assert [str(each) for version in (OLDEST, NEWEST) for each in problems(core, version)] == []


def test_no_file_addresses_a_container_by_its_place():
    """Meshes put containers before ours: each patch and replacement names the one that it means."""
    found = [
        f"{file}: {match.group()}"
        for folder in ("base", "components", "overlays")
        for file in sorted(Path("k8s", folder).rglob("*"))
        if file.is_file()
        for match in BY_INDEX.finditer(file.read_text("utf-8"))
    ]
    assert found == []


def containers(manifests):
    """Return all containers by workload and name."""
    return {
        (pod.workload["kind"], container["name"]): container
        for pod in manifests.pods
        for _, container in pod.containers
    }


def inject(file):
    """Put a sidecar before the container of a workload."""
    workload = yaml.safe_load(file.read_text())
    workload["spec"]["template"]["spec"]["containers"].insert(0, INJECTED)
    file.write_text(yaml.safe_dump(workload))


@pytest.mark.parametrize("name", OVERLAYS)
def test_sidecar_before_the_server(name, files):
    """Every overlay sets on its own containers what it sets without one, and nothing on the sidecar."""
    before = containers(build(files, f"overlays/{name}"))
    inject(files / "base/deployment.yaml")
    inject(files / "base/migration-job.yaml")
    after = containers(build(files, f"overlays/{name}"))
    injected = [after.pop(key) for key in list(after) if key[1] == "injected"]
    assert injected
    assert all(each == INJECTED for each in injected)
    assert after == before


def test_no_replacement_is_written_twice():
    """Where the namespace goes is said once, whatever number of overlays have it."""
    files = [each for each in Path("k8s").glob("*/**/*.yaml") if each.parts[1] in ("components", "overlays")]
    assert sum(file.read_text().count("- spec.dnsNames.1\n") for file in files) == 1


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlays_have_the_configuration_of_base(name):
    """What is new in base/config.yaml is in every overlay: it is theirs, or a test compares what differs."""
    own = {"authentication"} & components_of(Path("k8s/overlays", name))
    source = Path("k8s/components/authentication" if own else "k8s/base") / "config.yaml"
    assert config_map(overlay(name))["data"]["config.yaml"] == source.read_text("utf-8")


@pytest.mark.parametrize(
    ("component", "kinds"),
    [
        (None, ["PodMonitor"]),
        ("service-monitor", ["ServiceMonitor"]),
        ("prometheus-annotations", ["Deployment"]),
    ],
)
def test_ways_to_be_scraped(component, kinds, files):
    """Each takes the place of the PodMonitor, and is the only one."""
    rendered = compose(files, "overlays/prod", *([component] if component else []))
    [server] = servers(rendered)
    found = [scrape.manifest["kind"] for scrape in scrapes(rendered, server.pod)]
    assert found == kinds


def test_nothing_is_declared_external_for_nobody(files):
    """Each entry of external.yaml is named by an overlay or a component, and says why it is there."""
    external = read_external(EXTERNAL)
    rendered = [compose(files, "overlays/prod", name) for name in UNUSED]
    assert references.unused(external, [*map(overlay, RENDERED), *rendered]) == []
    assert all(each.why for each in external)


@pytest.mark.parametrize("name", ["gateway-api", "nginx-ingress", "traefik"])
def test_autoscaler_beside_a_small_database(name, files):
    """What production's PostgreSQL has, no other one is said to have: the component knows none."""
    rendered = compose(files, f"overlays/{name}", "hpa")
    [text] = texts(autoscaling.leave_connections_for_all_pods, rendered)
    assert "is 97, and 40 pods in a rollout" in text
    assert texts(autoscaling.leave_connections_for_all_pods, compose(files, "overlays/prod")) == []


def test_secret_of_a_store(files):
    """What the server reads of its Secret are keys that the ExternalSecret takes from the store."""
    rendered = compose(files, "overlays/prod", "external-secret")
    rendered.external = [each for each in rendered.external if each.name != "user-service-database"]
    assert texts(references.name_what_exists, rendered) == []
    [made] = rendered.of_kind("ExternalSecret")
    made["spec"]["data"].pop(0)
    found = texts(references.name_what_exists, rendered)
    assert len(found) == 2
    assert all("Secret user-service-database has no key url, only ca.crt, password" in text for text in found)
    made["spec"]["dataFrom"] = [{"extract": {"key": "user-service/database"}}]
    assert texts(references.name_what_exists, rendered) == [], "only the store knows its keys"


@pytest.mark.parametrize(("kind", "store"), [("ClusterSecretStore", "other"), (None, "user-service")])
def test_store_that_nobody_makes(kind, store, files):
    """A store is the namespace's own, if it is not said to be the cluster's."""
    rendered = compose(files, "overlays/prod", "external-secret")
    [made] = rendered.of_kind("ExternalSecret")
    made["spec"]["secretStoreRef"] = {"name": store} | ({"kind": kind} if kind else {})
    [text] = texts(references.name_what_exists, rendered)
    assert f"there is no {kind or 'SecretStore'} {store}" in text


def test_database_after_the_component_of_argo_cd(files):
    """The migration would wait in its wave for a database and a way to it that come in a later one."""
    components = ["postgres-trial", "smoke", "labels", "gitops-argocd"]
    assert texts(gitops.come_before_hooks, compose(files, "base", *components)) == []
    found = texts(gitops.come_before_hooks, compose(files, "base", "gitops-argocd", *components[:-1]))
    field = "metadata.annotations[argocd.argoproj.io/sync-wave]"
    what = f"{field}: comes after Job/user-service-migrate, which needs it"
    late = ["NetworkPolicy/user-service-to-postgres", "StatefulSet/user-service-postgres"]
    assert sorted(text.partition(";")[0] for text in found) == [f"{each}: {what}" for each in late]


def test_store_after_the_component_of_argo_cd(files):
    """The Secret of the migration comes from an object that comes too late."""
    rendered = compose(files, "overlays/prod", "gitops-argocd", "external-secret")
    [text] = texts(gitops.come_before_hooks, rendered)
    assert text.startswith("ExternalSecret/user-service-database: ")


@pytest.mark.parametrize("tool", ["argocd", "flux"])
def test_job_after_the_component_of_a_gitops_tool(tool, files):
    """A Job that the tool is not told to make anew is refused with the next version."""
    rendered = compose(files, "base", f"gitops-{tool}", "postgres-trial", "smoke")
    [text] = texts(gitops.make_every_job_anew, rendered)
    assert text.startswith("Job/user-service-smoke: ")
    assert texts(gitops.make_every_job_anew, compose(files, "overlays/prod", f"gitops-{tool}")) == []


@pytest.mark.parametrize("name", ["istio", "prod", "staging"])
def test_rules_of_an_overlay_in_another_namespace(name, files):
    """Without the transformer an overlay's rules go on to tell of the namespace that it had."""
    folder = files / "overlays" / "other"
    folder.mkdir()
    (folder / "kustomization.yaml").write_text(f"namespace: other\nresources: [../{name}]\n")
    found = texts(scraping.watch_their_own_namespace, build(files, "overlays/other"))
    assert len(found) == 3, "one for each PrometheusRule"
    assert all("and not of other" in text for text in found)
    assert texts(scraping.watch_their_own_namespace, overlay(name)) == []


@pytest.mark.parametrize("kind", ["CronJob", "DaemonSet", "Deployment", "Job", "StatefulSet"])
def test_labels_of_a_workload_of_your_own(kind, files):
    """Whatever makes pods in an overlay of yours, they say whom they belong to."""
    template = {"metadata": {"labels": {"app": "own"}}, "spec": {"containers": [INJECTED]}}
    spec = {"jobTemplate": {"spec": {"template": template}}} if kind == "CronJob" else {"template": template}
    folder = files / "overlays" / "own"
    folder.mkdir()
    own = {"apiVersion": "apps/v1" if "Job" not in kind else "batch/v1", "kind": kind, "spec": spec}
    (folder / "own.yaml").write_text(yaml.safe_dump(own | {"metadata": {"name": "own"}}))
    text = "resources: [own.yaml]\ncomponents: [../../components/labels]\n"
    (folder / "kustomization.yaml").write_text(text)
    [pod] = build(files, "overlays/own").pods
    assert pod.labels["app.kubernetes.io/part-of"] == "user-service"


@pytest.mark.parametrize(("name", "count"), [("istio", 1), ("traefik", 0)])
def test_smoke_beside_a_mesh(name, count, files):
    """The README says that smoke does not go with istio: the lint says it too, before a deployment fails."""
    found = texts(mesh.call_from_within, compose(files, f"overlays/{name}", "smoke"))
    what = "has no sidecar, and user-service:50051 takes mutual TLS of the mesh alone"
    assert [text.split(": ", 2)[2].partition(";")[0] for text in found] == count * [what]


README = Path("k8s/README.md").read_text("utf-8")

COMPONENT_ROWS = re.findall(r"^\| \[`([\w-]+)`\]\(components/[\w-]+\) \|.*\| (.*) \|$", README, re.MULTILINE)
"""Component and overlays, where a row has one component."""


def test_every_component_is_in_the_list():
    """Who looks for a component finds it in the README, with a README of its own."""
    missing = [name for name in names("components") if f"(components/{name})" not in README]
    assert missing == []
    assert [
        name for name in names("components") if not Path("k8s/components", name, "README.md").exists()
    ] == []


@pytest.mark.parametrize(("component", "said"), COMPONENT_ROWS)
def test_overlays_that_a_component_is_said_to_be_in(component, said):
    """The README's table names each overlay that has it, and no other."""
    has = {name for name in OVERLAYS if component in components_of(Path("k8s/overlays", name))}
    named = {*OVERLAYS} if said == "all" else {*OVERLAYS} & {*re.findall(r"[\w-]+", said)}
    assert named == has


def test_number_of_objects_that_an_overlay_is_said_to_have():
    """The README's table counts right."""
    said = re.findall(r"^\| `([\w-]+)` \|.*\| (\d+) \|$", README, re.MULTILINE)
    assert said == [(name, str(len(overlay(name).objects))) for name, _ in said]
    assert {name for name, _ in said} == {*OVERLAYS}
