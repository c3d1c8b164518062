"""Joining a Ray cluster, or starting one on this machine."""

from __future__ import annotations

import os
from typing import Any

from attentune.errors import ConfigError

PATIENT = {"RAY_worker_niceness": "0", "RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S": "20"}
"""Environment in which a cluster's processes start also on a busy machine, unless it is set otherwise.

By itself Ray starts workers at the lowest priority but four (nice 15), and replaces a proxy of Ray Serve that is not
there after three times 5 s: beside three busy processes on two cores there never was one.
"""


def join(address: str, **local: Any) -> tuple[Any, bool]:
    """The module `ray` in a cluster, and whether this call joined it (a cluster that the caller is in already is kept).

    "local" starts a cluster on this machine, `local` being options of `ray.init` for it; "auto" joins the one that runs
    here, "host:port" another.

    Raises:
        ConfigError: Ray is not installed, or there is no cluster at the address.
    """
    # Newer releases leave CUDA_VISIBLE_DEVICES alone for tasks without a GPU, and say so unless this is set.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray as installed
    except ImportError as error:
        raise ConfigError("working on several machines needs Ray: pip install 'attentune[ray]'") from error
    ray: Any = installed
    if ray.is_initialized():
        return ray, False
    options: dict[str, Any] = {}
    if address == "local":
        options = {"include_dashboard": False, **local}
        for name, value in PATIENT.items():
            os.environ.setdefault(name, value)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f'no Ray cluster at {address!r}; wanted "local", "auto" or host:port ({str(error).strip().splitlines()[0]})'
        ) from error
    return ray, True
