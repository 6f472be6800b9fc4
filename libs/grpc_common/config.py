"""Configuration of a server: typed, immutable, from environment variables."""

from typing import Annotated

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ConfigError(Exception):
    """The configuration can't be used; the text names every mistake, one a line."""


class ServerConfig(BaseSettings):
    """The settings of every server; a service adds its own in a subclass.

    A field `grpc_port` is set by the environment variable GRPC_PORT.
    """

    model_config = SettingsConfigDict(frozen=True)

    grpc_port: Port = 50051
    """Where gRPC is served; 0 takes a free port."""

    metrics_port: Port = 9090
    """Where /metrics is served over HTTP; 0 takes a free port."""

    drain_delay: Seconds = 0
    """Seconds between NOT_SERVING and the end of new calls, for load balancers to notice."""

    drain_grace: Seconds = 10
    """Seconds that calls in flight get to finish before they are cancelled."""


def load[Config: ServerConfig](config_class: type[Config]) -> Config:
    """Read `config_class` from the environment.

    Raises:
        ConfigError: a variable has a value that can't be used.

    """
    try:
        return config_class()
    except ValidationError as error:
        mistakes = (
            f"{'_'.join(map(str, mistake['loc'])).upper()}={mistake['input']!r}: {mistake['msg']}"
            for mistake in error.errors()
        )
        raise ConfigError("\n".join(mistakes)) from None
