import base64

import pytest

from k8s.checks import configuration
from k8s.checks.servers import servers
from k8s.checks.testing import changed, texts

DEPLOYMENT = "Deployment/user-service"
POD = "spec.template.spec"
PATH = f"{POD}.containers.0"
FIELD = f"{POD}.containers[user-service]"
[CONFIG] = [each["metadata"]["name"] for each in changed("dev").of_kind("ConfigMap")]


def with_file(text):
    """Return dev with another config.yaml."""
    return changed("dev", (f"ConfigMap/{CONFIG}", "data[config.yaml]", text))


def with_variables(**variables):
    """Return dev with these variables of the server."""
    variables |= {"CONFIG_FILE": "/etc/user-service/config.yaml"}
    env = [{"name": name, "value": value} for name, value in variables.items()]
    return changed("dev", (DEPLOYMENT, f"{PATH}.env", env))


def test_all_mistakes_of_a_file():
    """What the server would say when it starts is said here, with file and line, all at once."""
    mistakes = "server:\n  prot: 1\n  drain: {grace: soon}\n"
    found = texts(configuration.load_configurations, with_file(mistakes))
    assert len(found) == 2
    assert found[0].startswith(
        f"ConfigMap/{CONFIG}: data: config.yaml:3: server.drain.grace: 'soon': write a"
    )
    assert found[1].startswith(
        f"ConfigMap/{CONFIG}: data: config.yaml:2: server.prot: unknown key; did you mean"
    )


def test_file_that_is_no_yaml():
    """A file that can't be read at all is told too."""
    [text] = texts(configuration.load_configurations, with_file("server: ["))
    assert text.startswith(f"ConfigMap/{CONFIG}: data: config.yaml:1: not YAML: ")


def test_mistake_in_a_variable():
    """A variable is told where it is set."""
    [text] = texts(configuration.load_configurations, with_variables(DRAIN_GRACE="40"))
    assert text.startswith(f"{DEPLOYMENT}: {FIELD}.env: DRAIN_GRACE='40': write a duration with its unit")


@pytest.mark.parametrize("held", [{"stringData": {"k": "hunter2"}}, {"data": {"k": "aHVudGVyMg=="}}])
def test_mistake_in_a_variable_from_a_secret(held):
    """What a Secret holds is not quoted, of whichever setting it is the value."""
    source = {"secretKeyRef": {"name": "s", "key": "k"}}
    env = [{"name": "LOGGING_LEVEL", "valueFrom": source}]
    manifests = changed("dev", (DEPLOYMENT, f"{PATH}.env", env))
    [deployment] = [each for each in manifests.objects if each["kind"] == "Deployment"]
    metadata = {"name": "s", "namespace": deployment["metadata"].get("namespace", "")}
    manifests.objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, **held})
    [text] = texts(configuration.load_configurations, manifests)
    assert "LOGGING_LEVEL=***: " in text


@pytest.mark.parametrize(
    "change",
    [
        (DEPLOYMENT, f"{PATH}.env", [{"name": "CONFIG_FILE", "value": "/etc/user-service/config.yml"}]),
        (DEPLOYMENT, f"{PATH}.volumeMounts", []),
        (f"ConfigMap/{CONFIG}", "data", {"settings.yaml": ""}),
    ],
)
def test_file_that_is_not_mounted(change):
    """CONFIG_FILE names a key of a ConfigMap that is mounted in its folder."""
    [text] = texts(configuration.load_configurations, changed("dev", change))
    assert text.startswith(f"{DEPLOYMENT}: {FIELD}.env: CONFIG_FILE=/etc/user-service/config.y")
    assert "is in no ConfigMap that is mounted there" in text


def test_migration_reads_the_same_settings():
    """The Job's configuration is loaded as the server's is."""
    env = [
        {"name": "CONFIG_FILE", "value": "/etc/user-service/config.yaml"},
        {"name": "DATABASE_URL", "value": "mysql://"},
    ]
    [text] = texts(
        configuration.load_configurations, changed("prod", ("Job/user-service-migrate", f"{PATH}.env", env))
    )
    assert text.startswith(
        f"Job/user-service-migrate: {POD}.containers[migrate].env: DATABASE_URL=***: must be "
    )


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        ("DRAIN_GRACES", "did you mean DRAIN_GRACE?"),
        ("HEALTHPORT", "did you mean HEALTH_PORT?"),
        ("TRACING_EXPORTER", "the settings are in libs/grpc_common/README.md and services/user/README.md"),
    ],
)
def test_variable_that_the_server_does_not_read(name, fix):
    """A misspelt variable would be ignored without a word."""
    assert texts(configuration.set_only_what_is_read, with_variables(**{name: "1"})) == [
        f"{DEPLOYMENT}: {FIELD}.env[{name}]: is no setting of the server; {fix}"
    ]


@pytest.mark.parametrize("name", ["OTEL_SERVICE_NAME", "POD_IP", "PGPASSWORD", "GRPC_VERBOSITY"])
def test_variable_of_something_else(name):
    """Variables that are not about the server's settings are left alone."""
    assert texts(configuration.set_only_what_is_read, with_variables(**{name: "1"})) == []


def test_sqlite_of_several_replicas():
    """With two replicas each would have users of its own."""
    [text] = texts(configuration.share_no_sqlite, changed("dev", (DEPLOYMENT, "spec.replicas", 2)))
    assert text == (
        f"{DEPLOYMENT}: spec.replicas: 2 replicas have a SQLite file each; "
        "set DATABASE_URL to a postgresql:// URL, or have one replica and no autoscaler"
    )


def test_sqlite_by_default():
    """Without DATABASE_URL the server takes SQLite: the replicas of prod and its autoscaler may not."""
    env = [{"name": "CONFIG_FILE", "value": "/etc/user-service/config.yaml"}]
    [text] = texts(configuration.share_no_sqlite, changed("prod", (DEPLOYMENT, f"{PATH}.env", env)))
    assert text.startswith(
        "HorizontalPodAutoscaler/user-service: spec.maxReplicas: each replica has a SQLite"
    )
    other = ("HorizontalPodAutoscaler/user-service", "spec.scaleTargetRef.name", "other")
    assert (
        texts(configuration.share_no_sqlite, changed("prod", (DEPLOYMENT, f"{PATH}.env", env), other)) == []
    )


def with_secret(**fields):
    """Return prod with the Secret that its servers read."""
    manifests, metadata = changed("prod"), {"name": "user-service-database", "namespace": "user-service"}
    manifests.objects.append({"apiVersion": "v1", "kind": "Secret", "metadata": metadata} | fields)
    return manifests


def test_database_of_a_secret_in_the_overlay():
    """What a Secret of the overlay says is known; what one in the cluster says is not."""
    url = base64.b64encode(b"sqlite:////data/users.db").decode()
    problems = texts(configuration.load_configurations, with_secret(data={"url": url}))
    assert len(problems) == 2, "server and migration"
    assert all("password_file is for PostgreSQL, which url does not name" in problem for problem in problems)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DATABASE_URL", "postgresql://user:hunter2@host/name"),
        ("PGPASSWORD", "hunter2"),
        ("API_TOKEN", "abc"),
        ("ADMIN_PASSWORD", "x"),
    ],
)
def test_secret_in_a_variable(name, value):
    """A password belongs into a Secret, and is not repeated by the error."""
    [text] = texts(configuration.hold_no_secret, with_variables(**{name: value}))
    assert text == (
        f"{DEPLOYMENT}: {FIELD}.env[{name}]: is a secret in plain text; "
        "keep it in a Secret that is not in the repository, and name that in external.yaml"
    )


@pytest.mark.parametrize(
    "value", ["postgresql://user@host/name", "postgresql://user:$(PGPASSWORD)@host/name"]
)
def test_url_without_a_password(value):
    """A user's name is no secret, and neither is the name of a variable."""
    assert texts(configuration.hold_no_secret, with_variables(DATABASE_URL=value)) == []


def test_secret_in_a_config_map():
    """Neither config.yaml nor a Secret in the repository holds a password."""
    [text] = texts(
        configuration.hold_no_secret, with_file("database: {url: 'postgresql://u:hunter2@host/name'}")
    )
    assert text.startswith(f"ConfigMap/{CONFIG}: data[config.yaml]: holds a URL with a password")
    data = {"url": "postgresql://u:hunter2@host/name"}
    [text] = texts(configuration.hold_no_secret, with_secret(stringData=data))
    assert text.startswith("Secret/user-service-database: data[url]: holds a URL with a password")


def test_variables_of_maps():
    """`envFrom` and keys of ConfigMaps count, and later variables may use earlier ones."""
    data = {"DRAIN_GRACE": "40", "config.yaml": ""}
    manifests = changed(
        "dev",
        (f"ConfigMap/{CONFIG}", "data", data),
        (DEPLOYMENT, f"{PATH}.envFrom", [{"configMapRef": {"name": CONFIG}}]),
    )
    [text] = texts(configuration.load_configurations, manifests)
    assert "DRAIN_GRACE='40'" in text
    env = [
        {"name": "CONFIG_FILE", "value": "/etc/user-service/config.yaml"},
        {"name": "A", "valueFrom": {"configMapKeyRef": {"name": CONFIG, "key": "DRAIN_GRACE"}}},
        {"name": "DRAIN_DELAY", "value": "$(A)0"},
    ]
    manifests = changed("dev", (f"ConfigMap/{CONFIG}", "data", data), (DEPLOYMENT, f"{PATH}.env", env))
    [text] = texts(configuration.load_configurations, manifests)
    assert "DRAIN_DELAY='400'" in text


@pytest.mark.parametrize(
    ("name", "variable", "value", "folder"),
    [
        ("prod", "TLS_DIRECTORY", "/etc/cert", "/etc/cert"),
        ("dev", "DATABASE_URL", "sqlite:////date/users.db", "/date"),
    ],
)
def test_folder_that_is_not_mounted(name, variable, value, folder):
    """The root file system is read-only, and has no certificates."""
    env = [
        {"name": "CONFIG_FILE", "value": "/etc/user-service/config.yaml"},
        {"name": variable, "value": value},
    ]
    assert texts(configuration.mount_what_is_read, changed(name, (DEPLOYMENT, f"{PATH}.env", env))) == [
        (
            f"{DEPLOYMENT}: {FIELD}.env[{variable}]: {folder} is in no volume of the container; "
            "name the mountPath of one, or mount one there"
        )
    ]


VOLUMES = f"{POD}.volumes"
MOUNTS = f"{PATH}.volumeMounts"
AT = "/etc/user-service"


def names(items=None, key="configMap", **reference):
    """Return a volume with the ConfigMap, or with some of its keys."""
    return {"name": "config", key: reference | {"name": CONFIG} | ({"items": items} if items else {})}


@pytest.mark.parametrize(
    ("volume", "mount", "level"),
    [
        (names(), {}, "debug"),
        ({"name": "config", "projected": {"sources": [{"configMap": {"name": CONFIG}}]}}, {}, "debug"),
        (names(), {"mountPath": f"{AT}/config.yaml", "subPath": "config.yaml"}, "debug"),
        (names(), {"mountPath": f"{AT}/config.yaml", "subPath": "other.yaml"}, "error"),
        (names([{"key": "other.yaml", "path": "config.yaml"}]), {}, "error"),
    ],
)
def test_ways_to_mount_a_file(volume, mount, level):
    """The file that is read is the one that the container will have, whatever the ConfigMap calls it."""
    manifests = changed(
        "dev",
        (DEPLOYMENT, VOLUMES, [volume]),
        (DEPLOYMENT, MOUNTS, [{"name": "config", "mountPath": AT} | mount]),
        (DEPLOYMENT, f"{PATH}.env", [{"name": "CONFIG_FILE", "value": f"{AT}/config.yaml"}]),
        (f"ConfigMap/{CONFIG}", "data[config.yaml]", "logging: {level: debug}"),
        (f"ConfigMap/{CONFIG}", "data[other.yaml]", "logging: {level: error}"),
    )
    assert texts(configuration.load_configurations, manifests) == []
    assert [server.config.logging.level for server in servers(manifests)] == [level]


@pytest.mark.parametrize(
    ("container", "level"),
    [
        ({"args": ["--config", f"{AT}/config.yaml"]}, "debug"),
        ({"args": [f"--config={AT}/config.yaml"]}, "debug"),
        ({"command": ["/app/server", "--config", f"{AT}/config.yaml"]}, "debug"),
        ({}, "info"),
    ],
)
def test_server_without_the_variable(container, level):
    """A server is one without CONFIG_FILE as well: it has the file of --config, or the defaults."""
    manifests = changed(
        "dev",
        (DEPLOYMENT, f"{PATH}.env", []),
        (f"ConfigMap/{CONFIG}", "data[config.yaml]", "logging: {level: debug}"),
        *((DEPLOYMENT, f"{PATH}.{name}", value) for name, value in container.items()),
    )
    assert [server.config.logging.level for server in servers(manifests)] == [level]
