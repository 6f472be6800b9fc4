import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tools.kubernetes.deploy.guards import (
    RefusedError,
    Settings,
    change_cause,
    check_cluster,
    check_context,
    check_images,
    check_objects,
    check_shapes,
)
from tools.kubernetes.deploy.kubectl import Kubectl
from tools.kubernetes.deploy.manifests import Manifests

RELEASE = Settings(contexts=("prod",), release=True)
ANYWHERE = Settings()


def of_image(image: str) -> Manifests:
    """Return a Deployment with one container."""
    pod = {"spec": {"containers": [{"image": image}]}}
    return Manifests([{"kind": "Deployment", "metadata": {"name": "s"}, "spec": {"template": pod}}])


@pytest.fixture
def work_tree(tmp_path: Path) -> Path:
    """Return a git work tree with one commit."""
    (tmp_path / "file").write_text("committed")
    for command in (["init"], ["add", "."], ["commit", "--message=first"]):
        git(tmp_path, "-c", "user.name=test", "-c", "user.email=test@example.com", *command)
    return tmp_path


def git(work_tree: Path, *arguments: str) -> str:
    """Run git and return what it prints."""
    command = ["git", *arguments]
    return subprocess.run(command, cwd=work_tree, check=True, capture_output=True, text=True).stdout


def test_a_release_is_not_deployed_to_the_current_context() -> None:
    """Whoever forgets --context is told which there are."""
    with pytest.raises(RefusedError, match=r"prod is not deployed.*--context NAME \(prod\)"):
        check_context(RELEASE, "prod", None)


def test_a_context_that_is_not_on_the_list_is_refused() -> None:
    """The name of another cluster is a mistake, and the error has the right ones."""
    with pytest.raises(RefusedError, match="prod may not be deployed to context 'staging', only to prod"):
        check_context(RELEASE, "prod", "staging")


def test_a_context_on_the_list_is_taken() -> None:
    """So is any where there is no list."""
    check_context(RELEASE, "prod", "prod")
    check_context(ANYWHERE, "dev", None)
    check_context(ANYWHERE, "dev", "whatever")


def test_a_release_without_a_list_has_a_context() -> None:
    """Any is taken, but somebody has to name it."""
    release = Settings(release=True)
    with pytest.raises(RefusedError, match=r"--context NAME \(any\)"):
        check_context(release, "prod", None)
    check_context(release, "prod", "whatever")


def test_objects_that_would_not_be_found_again_are_refused() -> None:
    """The Deployment has the name and the namespace by which all are found."""
    with pytest.raises(RefusedError, match="has no Deployment"):
        check_objects(Manifests([{"kind": "Service", "metadata": {"name": "s"}}]))
    with pytest.raises(RefusedError, match=r"Deployment/s has no namespace: set it in kustomization\.yaml"):
        check_objects(of_image("s"))


@pytest.mark.parametrize("spec", [{}, {"spec": "replicas: 1"}])
@pytest.mark.parametrize("kind", ["Deployment", "Job", "Service", "HorizontalPodAutoscaler"])
def test_an_object_with_nothing_in_it_is_refused(kind: str, spec: dict[str, str]) -> None:
    """It is named, rather than the key that a program missed."""
    with pytest.raises(RefusedError, match=f"{kind}/s has no spec"):
        check_shapes(Manifests([{"kind": kind, "metadata": {"name": "s"}, **spec}]))


def test_an_image_that_was_never_built_is_refused() -> None:
    """The digest in the repository's files is of no image."""
    image = f"registry.example.com/s@sha256:{64 * '0'}"
    with pytest.raises(RefusedError, match=r"Deployment/s: no image was built for registry\.example\.com/s"):
        check_images(ANYWHERE, of_image(image))


@pytest.mark.parametrize("image", ["postgres:18", "postgres", "r.example.com:5000/s:v1", "s@sha256:abc"])
def test_a_release_has_no_mutable_image(image: str) -> None:
    """A tag may be another image tomorrow; trials may use one all the same."""
    with pytest.raises(RefusedError, match="has no digest"):
        check_images(RELEASE, of_image(image))
    check_images(ANYWHERE, of_image(image))


def test_a_container_without_an_image_is_refused() -> None:
    """A patch with the name of no container adds one; a custom kind may merge its own into others."""
    spec = {"template": {"spec": {"containers": [{"name": "s", "image": "s:v1"}, {"name": "typo"}]}}}
    item = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "s"}, "spec": spec}
    with pytest.raises(RefusedError, match="Deployment/s: container typo has no image"):
        check_images(ANYWHERE, Manifests([item]))
    check_images(ANYWHERE, Manifests([item | {"apiVersion": "monitoring.coreos.com/v1"}]))


def test_containers_of_every_kind_are_looked_at() -> None:
    """A CronJob, or a kind that nobody here knows, has no mutable image either."""
    pod = {"spec": {"containers": [], "initContainers": [{"image": "s:v1"}]}}
    spec = {"jobTemplate": {"spec": {"template": pod}}}
    cron_job = {"kind": "CronJob", "metadata": {"name": "s"}, "spec": spec}
    with pytest.raises(RefusedError, match="CronJob/s: image s:v1 has no digest"):
        check_images(RELEASE, Manifests([cron_job]))


def test_an_image_with_a_digest_is_taken() -> None:
    """It is the same image for ever."""
    check_images(RELEASE, of_image(f"r.example.com/s@sha256:{64 * 'a'}"))


def test_a_clean_work_tree_is_named_by_its_commit(work_tree: Path) -> None:
    """The Deployment's history says which commit runs."""
    cause = change_cause(RELEASE, "prod", work_tree, allow_dirty=False)
    assert cause == f"deploy_prod of {git(work_tree, 'rev-parse', 'HEAD')[:12]}"


def test_a_release_has_no_uncommitted_change(work_tree: Path) -> None:
    """The changed files are named, and the override is written down."""
    (work_tree / "file").write_text("changed")
    with pytest.raises(RefusedError, match=r"(?s)--allow-dirty.*file"):
        change_cause(RELEASE, "prod", work_tree, allow_dirty=False)
    assert "with uncommitted changes" in change_cause(RELEASE, "prod", work_tree, allow_dirty=True)
    assert "with uncommitted changes" in change_cause(ANYWHERE, "dev", work_tree, allow_dirty=False)


def test_a_release_comes_from_a_commit(tmp_path: Path) -> None:
    """A folder that git does not know is no source of a release."""
    with pytest.raises(RefusedError, match="not a git repository"):
        change_cause(RELEASE, "prod", tmp_path, allow_dirty=False)
    cause = change_cause(RELEASE, "prod", tmp_path, allow_dirty=True)
    assert cause == "deploy_prod of no commit with uncommitted changes"


def test_a_new_file_is_a_change(work_tree: Path) -> None:
    """Also for who has git not show them."""
    git(work_tree, "config", "status.showUntrackedFiles", "no")
    (work_tree / "new").touch()
    with pytest.raises(RefusedError, match=r"\?\? new"):
        change_cause(RELEASE, "prod", work_tree, allow_dirty=False)


def test_what_git_refuses_is_told(work_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another user's folder, as in many containers, or an index that can't be read are not clean."""
    (work_tree / ".git/index").write_text("no index")
    with pytest.raises(RefusedError, match="index file"):
        change_cause(RELEASE, "prod", work_tree, allow_dirty=False)
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "true")
    with pytest.raises(RefusedError, match="dubious ownership"):
        change_cause(RELEASE, "prod", work_tree, allow_dirty=False)


def test_a_machine_without_git_deploys_no_release(work_tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It can't say what it deploys."""
    monkeypatch.setenv("PATH", str(work_tree))
    with pytest.raises(RefusedError, match="git is not on PATH"):
        change_cause(RELEASE, "prod", work_tree, allow_dirty=False)


def test_a_mistake_in_the_settings_is_told(tmp_path: Path) -> None:
    """A key that nobody reads is an error with the file's name."""
    file = tmp_path / "deploy.yaml"
    file.write_text("context: prod\n")
    with pytest.raises(RefusedError, match=r"(?s)deploy.yaml.*context.*Extra inputs"):
        Settings.read(file)


@pytest.mark.parametrize(
    "content", [b"\xff", 5000 * b"[", b"contexts: 2026-13-45", b"a: \x1b", b'"\\e[31m": 1']
)
def test_settings_that_are_no_yaml_are_told(tmp_path: Path, content: bytes) -> None:
    """Whatever is in the file, the error names it and steers no terminal."""
    file = tmp_path / "deploy.yaml"
    file.write_bytes(content)
    with pytest.raises(RefusedError, match=re.escape(str(file))) as caught:
        Settings.read(file)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("opening", ["[", "{", "- "])
def test_settings_nested_without_end_are_refused_at_once(tmp_path: Path, opening: str) -> None:
    """They cost no more CPU time than others of their size: a tenth of a second is fifty times that."""
    file = tmp_path / "deploy.yaml"
    file.write_text(3000 * opening)
    before = time.process_time()
    with pytest.raises(RefusedError, match="nesting"):
        Settings.read(file)
    assert time.process_time() - before < 0.1


def test_a_cluster_that_is_no_uid_is_told(tmp_path: Path) -> None:
    """Whoever writes the name of a cluster, or its URL, is told what would be right."""
    file = tmp_path / "deploy.yaml"
    file.write_text("clusters: [https://prod.example.com]\n")
    with pytest.raises(RefusedError, match=r"(?s)deploy.yaml.*clusters.*valid UUID"):
        Settings.read(file)


def test_a_cluster_that_does_not_answer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is pushed for a cluster that can't be reached; kubectl's own reason is shown."""
    config = tmp_path / "config"
    config.write_text(
        "{apiVersion: v1, kind: Config, current-context: c, contexts: [{name: c, context: {cluster: c}}],"
        " clusters: [{name: c, cluster: {server: 'http://127.0.0.1:1'}}]}"
    )
    monkeypatch.setenv("KUBECONFIG", str(config))
    kubectl = Kubectl(Path(os.environ["KUBECTL"]).absolute(), "c")
    with pytest.raises(RefusedError, match=r"(?s)context 'c' can't be used:.*refused"):
        check_cluster(kubectl)
