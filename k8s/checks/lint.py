"""Checks Kubernetes manifests against each other: `python -m k8s.checks.lint FILE...`.

It is for services on grpc_common: of others, only what holds for every object is checked.
Exit codes: 0 nothing is wrong, 1 problems found, 2 something was not checked, whatever else was found.
"""

import os
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import yaml

from k8s.checks import (
    authentication,
    autoscaling,
    backends,
    certificates,
    configuration,
    edge_tls,
    encryption,
    gitops,
    images,
    jobs,
    mesh,
    network,
    pod_security,
    ports,
    probes,
    rate_limits,
    references,
    resources,
    retries,
    routes,
    scheduling,
    scraping,
    selection,
    shapes,
    timeouts,
    timing,
    unchecked,
)
from k8s.checks.limits import TooSlowError, limited
from k8s.checks.manifests import External, Manifest, Manifests, Problem
from k8s.checks.reading import UnreadableError, read_objects
from k8s.checks.schemas import UnknownKindError
from k8s.checks.traefik import NoRuleError

type Rule = Callable[[Manifests], Iterator[Problem]]

EXTERNAL = Path(__file__).with_name("external.yaml")
"""What is external to the overlays of this repository."""

RULES: Sequence[Rule] = (
    selection.select_pods,
    selection.select_services,
    selection.select_own_pods,
    selection.keep_to_pods,
    selection.select_by_what_stays,
    selection.tell_the_version_that_runs,
    selection.send_no_calls_to_jobs,
    references.name_what_exists,
    references.name_sections_that_exist,
    backends.lead_to_services,
    backends.take_subsets_that_exist,
    ports.target_container_ports,
    ports.allow_container_ports,
    ports.scrape_ports,
    ports.probe_container_ports,
    ports.declare_what_is_listened_on,
    ports.probe_in_plaintext,
    network.deny_by_default,
    network.lead_somewhere,
    network.let_programs_out,
    network.let_servers_out_to_issuers,
    network.let_sidecars_out,
    network.let_scrapers_in,
    network.let_proxies_in,
    scraping.scrape_once,
    scraping.annotate_container_ports,
    scraping.watch_their_own_namespace,
    certificates.have_the_names_that_are_dialled,
    certificates.are_of_a_kind_that_grpc_takes,
    certificates.replace_their_keys,
    certificates.may_be_used_as_they_are,
    encryption.speak_as_servers_listen,
    encryption.expect_a_name,
    mesh.name_grpc_as_such,
    mesh.name_callers,
    mesh.call_from_within,
    mesh.allow_what_there_is,
    mesh.outlive_what_they_serve,
    authentication.ask_who_calls_from_outside,
    authentication.start_with_the_callers_that_they_name,
    rate_limits.limit_calls_from_outside,
    edge_tls.take_calls_over_tls,
    images.have_a_version,
    autoscaling.scale_on_produced_metrics,
    autoscaling.scale_on_one_container,
    autoscaling.leave_replicas_to_the_autoscaler,
    autoscaling.keep_a_pod_in_a_drain,
    autoscaling.keep_all_pods_in_a_rollout,
    autoscaling.leave_connections_for_all_pods,
    retries.repeat_nothing_unsafe_in_a_mesh,
    retries.route_every_name_in_a_mesh,
    retries.repeat_nothing_unsafe_behind_nginx,
    retries.repeat_nothing_unsafe_behind_traefik,
    retries.repeat_nothing_unsafe_behind_a_gateway,
    routes.let_every_method_through,
    scheduling.run_where_the_image_does,
    jobs.count_no_drained_node,
    jobs.repeat_no_wrong_usage,
    gitops.make_every_job_anew,
    gitops.come_before_hooks,
    configuration.load_configurations,
    configuration.set_only_what_is_read,
    configuration.share_no_sqlite,
    configuration.mount_what_is_read,
    configuration.hold_no_secret,
    probes.ask_for_what_follows,
    probes.wait_for_an_answer,
    timing.take_calls_until_all_have_heard,
    timing.end_before_killed,
    timing.roll_out_before_the_deadline,
    timing.drain_every_connection,
    timing.drain_every_stream,
    timing.stop_at_pods_that_fail,
    timing.leave_broken_servers_in_time,
    timing.start_before_killed,
    timing.take_clients_pings,
    timing.take_proxies_pings,
    timing.let_streams_end,
    timeouts.outlast_calls_in_a_mesh,
    timeouts.leave_time_for_each_try,
    timeouts.outlast_calls_behind_nginx,
    timeouts.outlast_calls_behind_traefik,
    timeouts.outlast_calls_behind_a_gateway,
    timeouts.leave_draining_servers_in_time,
    pod_security.have_the_api_server_restrict_pods,
    pod_security.restrict_pods,
    pod_security.restrict_containers,
    pod_security.read_no_service_links,
    pod_security.hold_no_needless_token,
    resources.bound_resources,
    resources.keep_the_memory_that_is_promised,
    resources.have_memory_for_what_clients_may_send,
    resources.leave_servers_their_cpu,
    resources.store_no_more_than_is_allowed,
)
"""What holds for every overlay."""


UNCHECKED: Sequence[Rule] = (
    unchecked.unrecognised_servers,
    unchecked.pods_of_other_kinds,
    unchecked.other_controllers,
)
"""What the rules can't judge."""


READING = 60
"""How many seconds the reading of a file may take."""

ASKING = 20
"""How many seconds a rule may take."""


@dataclass(frozen=True)
class Finding:
    """What the lint says of a file: a problem, or what was not checked in it."""

    text: str
    is_unchecked: bool = False

    def __str__(self) -> str:
        return f"not checked: {self.text}" if self.is_unchecked else self.text


def read_external(file: Path) -> list[External]:
    """Return what a file declares external; external.yaml shows its form.

    Raises:
        ValueError: it has another form.

    """
    try:
        declared = yaml.load(file.read_text("utf-8"), yaml.CSafeLoader)
        return [External(**each) for each in declared or []]
    except (LookupError, OSError, RecursionError, TypeError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"{file}: {' '.join(str(error).split())}; see k8s/checks/external.yaml") from None


@click.command()
@click.argument("files", nargs=-1, required=True, metavar="FILE...", type=click.Path(path_type=Path))
@click.option(
    "--external",
    default=EXTERNAL,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="What others make: a YAML list of kind, name, keys and why.  [default: the overlays' own]",
)
@click.option(
    "--released",
    is_flag=True,
    help="Each image needs a digest; zeros stand for one that is still to be built.",
)
def command(files: Sequence[Path], *, external: Path, released: bool) -> None:
    """Check manifests against each other, and against what the server does with its settings.

    A FILE is what `kustomize build` printed: all that is applied together. Each problem is a line:
    what is wrong, where, and what would be right. The rules are for services on grpc_common;
    what they can't judge is a line too, with the words "not checked": a server, a kind or a form
    that is not known.

    Exit code 0: nothing is wrong. 1: there are problems. 2: something was not checked, whatever
    else was found.
    """
    rules = [*RULES, images.have_a_digest] if released else RULES
    try:
        declared = read_external(external)
    except ValueError as error:
        raise click.BadParameter(_escaped(str(error)), param_hint="--external") from None
    findings = []
    for file in files:
        for finding in check(file, declared, rules):
            click.echo(_escaped(f"{file}: {finding}"))
            findings.append(finding)
    raise SystemExit(2 if any(each.is_unchecked for each in findings) else 1 if findings else 0)


def check(file: Path, external: Sequence[External], rules: Sequence[Rule]) -> Iterator[Finding]:
    """Yield what is wrong in a file, and what was not checked."""
    try:
        with limited(READING):
            objects = read_objects(file)
    except TooSlowError:
        yield Finding(f"not read: takes more than {READING} s", is_unchecked=True)
        return
    except UnreadableError as error:
        yield Finding(str(error), is_unchecked=True)
        return
    wrong, unknown = _sort(objects)
    wrong = wrong or list(unchecked.twice(Manifests(objects)))
    yield from (Finding(str(each), is_unchecked=True) for each in [*wrong, *unknown])
    if wrong:
        yield Finding("no rule was asked, as they see all objects together", is_unchecked=True)
        return
    others = [each.manifest for each in unknown]
    declared = [External(each["kind"], each["metadata"]["name"], "the file itself") for each in others]
    manifests = Manifests([each for each in objects if each not in others], [*external, *declared])
    failed: dict[str, list[str]] = {}
    for rule in (*rules, *UNCHECKED):
        found: list[Finding] = []
        try:
            with limited(ASKING):
                found.extend(Finding(str(each), rule in UNCHECKED) for each in rule(manifests))
        except TooSlowError:
            failed.setdefault(f"take more than {ASKING} s for", []).append(rule.__name__)
        except Exception as error:  # noqa: BLE001 (of whichever form a value has)
            failed.setdefault(f"can't read ({_place(error)})", []).append(rule.__name__)
        yield from found
    for why, names in failed.items():
        yield Finding(f"a value has a form that {', '.join(names)} {why}", is_unchecked=True)


def _sort(objects: Sequence[Manifest]) -> tuple[list[Problem], list[Problem]]:
    """Return what has another form than its kind, and what is of no kind that is known."""
    wrong, unknown = [], []
    for manifest in objects:
        try:
            wrong += shapes.find_wrong(manifest)
        except UnknownKindError as error:
            unknown.append(Problem(manifest, "kind", f"{error}, and no rule knows it", "see to it yourself"))
    return wrong, unknown


def _place(error: Exception) -> str:
    """Return where an error comes from, for the person who mends the rule; its message may quote a secret."""
    if isinstance(error, NoRuleError):
        return str(error)
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{type(error).__name__} in {Path(last.filename).name}, line {last.lineno}"


def _escaped(text: str) -> str:
    """Return one line that a terminal shows as it is, whatever manifests have in their names."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in text)


def main() -> None:
    """Run the command where the user is: `bazel run` starts programs in a folder of its own."""
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    try:
        command()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for Python, which tries once more at its end
        click.echo(f"error: what was found could not be written: {error.strerror}", err=True)
        raise SystemExit(2) from None


if __name__ == "__main__":
    main()
