"""Checks Kubernetes manifests against each other: `python -m k8s.checks.lint FILE...`.

Exit codes: 0 nothing is wrong, 1 problems found, 2 wrong usage.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

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
    images,
    jobs,
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
    selection,
    timeouts,
    timing,
)
from k8s.checks.manifests import External, Manifests, Problem

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
    network.let_programs_out,
    network.let_servers_out_to_issuers,
    network.let_scrapers_in,
    network.let_proxies_in,
    certificates.have_the_names_that_are_dialled,
    certificates.are_of_a_kind_that_grpc_takes,
    certificates.replace_their_keys,
    certificates.may_be_used_as_they_are,
    encryption.speak_as_servers_listen,
    encryption.expect_a_name,
    authentication.ask_who_calls_from_outside,
    authentication.start_with_the_callers_that_they_name,
    rate_limits.limit_calls_from_outside,
    edge_tls.take_calls_over_tls,
    images.have_a_version,
    autoscaling.scale_on_produced_metrics,
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
    configuration.load_configurations,
    configuration.set_only_what_is_read,
    configuration.share_no_sqlite,
    configuration.mount_what_is_read,
    configuration.hold_no_secret,
    probes.ask_for_what_follows,
    probes.wait_for_an_answer,
    timing.take_calls_until_all_have_heard,
    timing.end_before_killed,
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


def read_external(file: Path) -> list[External]:
    """Return what a file declares external; external.yaml shows its form."""
    return [External(**each) for each in yaml.safe_load(file.read_text("utf-8")) or []]


@click.command()
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
)
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

    A FILE is what `kustomize build` printed: all that is applied together. Objects of unknown
    kinds are fine. Each problem is a line: what is wrong, where, and what would be right.
    """
    rules = [*RULES, images.have_a_digest] if released else RULES
    found = False
    for file in files:
        for problem in _check(file, read_external(external), rules):
            click.echo(f"{file}: {problem}")
            found = True
    raise SystemExit(1 if found else 0)


def _check(file: Path, external: Sequence[External], rules: Iterable[Rule]) -> Iterator[Problem]:
    manifests = Manifests(_read(file), external)
    for rule in rules:
        try:
            yield from rule(manifests)
        except (AttributeError, LookupError, TypeError, ValueError, re.PatternError) as error:
            raise click.UsageError(
                f"{file}: a field has a form that {rule.__name__} can't read ({error!r}); "
                "`kubectl apply --dry-run=server` says which"
            ) from error


def _read(file: Path) -> list[dict[str, object]]:
    try:
        documents = [each for each in yaml.safe_load_all(file.read_text("utf-8")) if each is not None]
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise click.UsageError(f"{file}: not YAML: {' '.join(str(error).split())}") from None
    # What `kubectl get` prints holds the objects in one.
    objects = [inner for each in documents for inner in _items(each)]
    if not all(isinstance(each, dict) and isinstance(each.get("kind"), str) for each in objects):
        raise click.UsageError(f"{file}: has a document without kind; name what `kustomize build` printed")
    return objects


def _items(document: Any) -> list[Any]:
    is_list = isinstance(document, dict) and document.get("kind") == "List"
    return document.get("items") or [] if is_list else [document]


def main() -> None:
    """Run the command where the user is: `bazel run` starts programs in a folder of its own."""
    os.chdir(os.environ.get("BUILD_WORKING_DIRECTORY", "."))
    command()


if __name__ == "__main__":
    main()
