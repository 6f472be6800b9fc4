from tools.kubernetes.deploy.rights import told_once

_REFUSED = (
    'Error (Forbidden): {resource} "x" is forbidden: User "ada" cannot {verb} resource "{resource}"'
    ' in API group "{group}" in the namespace "app"'
)


def test_missing_rights_are_told_once() -> None:
    """Thirty lines of the API server are one, with each verb and kind, and with what gives the rights."""
    wanted = [("get", "configmaps", ""), ("patch", "deployments", "apps"), ("get", "configmaps", "")]
    lines = [_REFUSED.format(verb=verb, resource=resource, group=group) for verb, resource, group in wanted]
    told = told_once("\n".join([lines[0], "Warning: something else", *lines[1:]]))
    first, second = told.splitlines()
    assert first.startswith(
        "ada may not get configmaps in the namespace app; patch deployments.apps in the namespace"
    )
    assert first.count("configmaps") == 1
    assert "k8s/deployer" in first
    assert second == "Warning: something else"


def test_what_the_whole_cluster_has_is_told_as_such() -> None:
    """A right outside of the namespace is a ClusterRole's."""
    error = (
        'customresourcedefinitions.apiextensions.k8s.io is forbidden: User "ada" cannot list resource'
        ' "customresourcedefinitions" in API group "apiextensions.k8s.io" at the cluster scope'
    )
    assert "list customresourcedefinitions.apiextensions.k8s.io at the cluster scope." in told_once(error)


def test_another_error_stays_as_it_is() -> None:
    """A webhook, or a policy, refuses in its own words."""
    error = 'admission webhook "a.example.com" denied the request: deployments "x" is forbidden: no\n\nreally'
    assert told_once(error) == error
