"""The server on a Ray cluster: replicas behind gateways, as one Ray Serve application."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attentune.cluster import join
from attentune.errors import ConfigError
from attentune.serving.folder import Folder
from attentune.serving.launch import check_free
from attentune.serving.limits import Limits

NAME = "attentune"
SPARE = 16
"""Requests beyond a replica's own limit that reach it: health, and those that it turns away itself."""
SECONDS = 1.0
"""How often a replica reports which tasks are cold."""


@dataclass(frozen=True)
class Scale:
    """How many replicas, each with what, and where."""

    address: str = "local"
    """"local", "auto" or host:port, see `cluster.join`."""
    least: int = 1
    most: int = 1
    target: float = 16.0
    """Requests in work of a replica that are aimed at: more replicas are started above it, some are stopped below."""
    cpus: float = 1.0
    """Of a replica: what Ray reserves, and how many threads it calculates with."""

    def __post_init__(self) -> None:
        if not 1 <= self.least <= self.most:
            raise ConfigError(f"replicas are N or LEAST:MOST with 1 <= LEAST <= MOST, found {self.least}:{self.most}")
        if self.target <= 0 or self.cpus <= 0:
            raise ConfigError(f"target and CPUs of a replica are above 0, found {self.target:g} and {self.cpus:g}")

    @classmethod
    def of(cls, replicas: str, **rest: Any) -> Scale:
        """From "2" or "1:4", or ConfigError."""
        first, _, last = replicas.partition(":")
        try:
            least, most = int(first), int(last or first)
        except ValueError as error:
            raise ConfigError(f"replicas are N or LEAST:MOST, such as 2 or 1:4; found {replicas!r}") from error
        return cls(least=least, most=most, **rest)


@contextmanager
def running(
    folder: Path, scale: Scale, host: str, port: int, limits: Limits | None = None, **options: Any
) -> Generator[list[str]]:
    """The application, ready on host:port of every node, as long as the context lasts; gives the names of its tasks.

    `options` are those of `launch.application`. The folder and the backbone must be the same on all nodes.

    Raises:
        ConfigError: Ray Serve is not installed or does not start, there is no such cluster, the port is taken, or the
            application cannot start.
    """
    shared = Folder(folder)
    shared.path.mkdir(parents=True, exist_ok=True)
    if not shared.revision() and os.access(shared.path, os.W_OK):
        shared.changed()  # By this replicas know that they see this very folder.
    try:
        from ray import serve
    except ImportError as error:
        raise ConfigError(f"serving on a cluster needs Ray Serve: pip install 'attentune[ray]' ({error})") from error
    if scale.address == "local":
        check_free(host, port)  # Ray Serve would try again and again.
    ray, fresh = join(scale.address, num_cpus=max(os.cpu_count() or 1, round(scale.most * scale.cpus)))
    gpus = 1 if ray.cluster_resources().get("GPU") else 0
    try:
        try:
            serve.start(proxy_location="EveryNode", http_options={"host": host, "port": port})
        except (TimeoutError, ray.exceptions.RayError) as error:
            raise ConfigError(
                f"the proxies of Ray Serve did not start; is the machine busy? ({_reason(error)})"
            ) from error
        built = _application(shared.path, scale, gpus, limits or Limits(), options)
        try:
            serve.run(built, name=NAME, route_prefix="/")
        except (RuntimeError, TimeoutError, ray.exceptions.RayError) as error:
            raise ConfigError(f"the application does not start: {_reason(error)}") from error
        handle: Any = serve.get_deployment_handle("Replica", NAME)
        yield handle.names.remote().result()
    finally:
        if fresh:
            serve.shutdown()
            ray.shutdown()
        else:
            serve.delete(NAME)


def _application(folder: Path, scale: Scale, gpus: int, limits: Limits, options: dict[str, Any]) -> Any:
    from ray import serve
    from ray.serve.config import AutoscalingConfig

    from attentune.serving.gateway import Gateway
    from attentune.serving.replica import Replica
    from attentune.serving.router import WarmFirst

    deployment: Any = serve.deployment
    work = limits.max_concurrent_requests + SPARE
    replicas = deployment(Replica).options(
        max_ongoing_requests=work,
        max_queued_requests=limits.max_concurrent_requests,
        autoscaling_config=AutoscalingConfig(
            min_replicas=scale.least, max_replicas=scale.most, target_ongoing_requests=scale.target
        ),
        request_router_config={"request_router_class": WarmFirst, "request_routing_stats_period_s": SECONDS},
        ray_actor_options={"num_cpus": scale.cpus, "num_gpus": gpus},
        health_check_period_s=5,
    )
    gateways = deployment(Gateway).options(
        num_replicas=min(2, scale.most),  # A second one, so that one may die.
        max_ongoing_requests=work * (scale.most + 1),
        ray_actor_options={"num_cpus": 0},
    )
    return gateways.bind(replicas.bind(folder, limits=limits, **options), limits)


def _reason(error: Exception) -> str:
    """The last line that says something: what a replica raised stands at the end of its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
