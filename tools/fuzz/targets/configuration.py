"""Configuration files."""

import yaml

from grpc_common.config.document import ConfigError
from grpc_common.config.loading import changed, load, to_yaml
from grpc_common.config.yaml_file import read_document
from services.user.config import UserServiceConfig
from tools.fuzz.input_file import input_file
from tools.fuzz.properties import check_shown


def fuzz(data: bytes) -> None:
    """A file is a configuration, which printed and read again is the same, or an error of short lines."""
    try:
        config = read(data)
    except ConfigError as error:
        check_shown(str(error), 101 * 1000)
        return
    printed = to_yaml(config)
    if not config.database.url:  # what is masked is no URL that could be read again
        assert changed(config, read(printed.encode())) == [], printed
    assert yaml.safe_load(data) in (None, {}) or read_document(input_file(data)).values is not None


def read(data: bytes) -> UserServiceConfig:
    """Return the configuration in a file with this content."""
    return load(UserServiceConfig, input_file(data), {})
