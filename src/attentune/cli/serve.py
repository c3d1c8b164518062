"""`attentune serve` and `attentune keys`."""

from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from attentune.cli import precision, show
from attentune.errors import ConfigError


def serve_command(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder of adapter folders, one a task.")],
    backbone: Annotated[str, typer.Option(help="minilm, a folder, or a hub id.")] = "minilm",
    host: Annotated[str, typer.Option(help="Where to listen; without keys only on this machine.")] = "127.0.0.1",
    dtype: precision.Dtype = None,
    quantise: precision.Quantise = None,
    cuda_graphs: Annotated[
        bool, typer.Option("--cuda-graphs", help="On a GPU: record each size of a batch of one method, and replay it.")
    ] = False,
    port: Annotated[int, typer.Option(help="The port.")] = 8000,
    keys: Annotated[Path | None, typer.Option(help="A file of API keys, see `attentune keys`.")] = None,
    watch: Annotated[bool, typer.Option(help="Follow the folder: load what appears, drop what vanishes.")] = True,
    playground: Annotated[
        bool | None,
        typer.Option(help="A page at / to try the tasks; with --keys it wants an admin key. [default: if installed]"),
    ] = None,
    keep: Annotated[int, typer.Option(help="Earlier versions of a task that stay on disk.")] = 5,
    hot_bytes: Annotated[int | None, typer.Option(help="Bytes of adapters on the device.")] = None,
    warm_bytes: Annotated[int | None, typer.Option(help="Bytes of adapters in memory.")] = None,
    max_concurrent_requests: Annotated[
        int, typer.Option(envvar="MAX_CONCURRENT_REQUESTS", help="Requests in work; more get 503.")
    ] = 512,
    max_batch_tokens: Annotated[int, typer.Option(envvar="MAX_BATCH_TOKENS", help="Tokens of a batch.")] = 8192,
    max_batch_rows: Annotated[int, typer.Option(envvar="MAX_BATCH_ROWS", help="Sequences of a batch.")] = 64,
    max_wait_ms: Annotated[float, typer.Option(envvar="MAX_WAIT_MS", help="Wait for company.")] = 2.0,
    max_queue: Annotated[int, typer.Option(envvar="MAX_QUEUE", help="Sequences that wait; more get 503.")] = 4096,
    max_client_batch_size: Annotated[
        int, typer.Option(envvar="MAX_CLIENT_BATCH_SIZE", help="Answers that a request asks for.")
    ] = 1024,
    payload_limit: Annotated[int, typer.Option(envvar="PAYLOAD_LIMIT", help="Bytes of a request.")] = 2_000_000,
    upload_limit: Annotated[int, typer.Option(envvar="UPLOAD_LIMIT", help="Bytes of an adapter.")] = 64_000_000,
    request_timeout_s: Annotated[
        float, typer.Option(envvar="REQUEST_TIMEOUT_S", help="Seconds until a request is given up.")
    ] = 60.0,
    ray: Annotated[bool, typer.Option("--ray", help="Serve from replicas on a Ray cluster, by Ray Serve.")] = False,
    ray_address: Annotated[
        str | None,
        typer.Option(help="With --ray: auto (the cluster that runs here) or host:port. [default: local, one is made]"),
    ] = None,
    replicas: Annotated[
        str | None, typer.Option(help="With --ray: how many, or LEAST:MOST as the load demands. [default: 1]")
    ] = None,
    replica_cpus: Annotated[
        float | None, typer.Option(help="With --ray: CPUs, and threads, of a replica. [default: 1]")
    ] = None,
    replica_target: Annotated[
        float | None, typer.Option(help="With --ray: requests in work of a replica that are aimed at. [default: 16]")
    ] = None,
    json: show.Json = False,
) -> None:
    """Serve every adapter of a folder from one copy of the backbone, or from several on a Ray cluster.

    Example: attentune serve adapters --port 8000

    Example: attentune serve adapters --ray --replicas 1:4

    Then: curl localhost:8000/v1/predict -H 'Content-Type: application/json' -d
    '{"items": [{"task": ["intent", "sentiment"], "input": "Where is my order?"}]}'
    """
    try:
        from attentune.serving.keys import Keys
        from attentune.serving.launch import application, check_free, run
    except ImportError as error:
        raise ConfigError(f"serving needs more packages: pip install 'attentune[serve]' ({error})") from error
    from attentune.serving.limits import Limits

    if keys is None and host not in ("127.0.0.1", "localhost", "::1"):
        raise ConfigError(
            f"without --keys everyone who reaches {host} may change tasks; make some: attentune keys NAME --file FILE"
        )
    limits = Limits(
        max_concurrent_requests=max_concurrent_requests,
        max_batch_tokens=max_batch_tokens,
        max_batch_rows=max_batch_rows,
        max_wait_ms=max_wait_ms,
        max_queue=max_queue,
        max_client_batch_size=max_client_batch_size,
        payload_limit=payload_limit,
        upload_limit=upload_limit,
        request_timeout_s=request_timeout_s,
    )
    scale = _scale(ray, ray_address, replicas, replica_cpus, replica_target)
    guard = None if keys is None else Keys.read(keys)
    options: dict[str, Any] = {
        "keep": keep,
        "watch": watch,
        "dtype": precision.of(dtype),
        "quantise": quantise,
        "cuda_graphs": cuda_graphs,
        "hot_bytes": hot_bytes,
        "warm_bytes": warm_bytes,
    }
    page = _playground(playground, ray)
    if scale is None:
        check_free(host, port)
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file; wanted a folder of adapter folders, one a task")
    if not folder.exists():
        show.progress(f"{folder} is new: it is made, and holds no task yet")
    tell = partial(_tell, f"http://{host}:{port}", page, json)
    if scale is not None:
        from attentune.serving.scale import running

        with running(folder, scale, host, port, limits, backbone=backbone, keys=guard, **options) as names:
            tell(names)
            show.wait()
        return
    app = application(folder, backbone, guard, limits, report=show.progress, playground=page, **options)
    tell(app.state.service.registry.names)
    run(app, host, port)


def _scale(ray: bool, address: str | None, replicas: str | None, cpus: float | None, target: float | None) -> Any:
    from attentune.serving.scale import Scale

    given = {"address": address, "cpus": cpus, "target": target}
    if ray:
        return Scale.of(replicas or "1", **{name: value for name, value in given.items() if value is not None})
    if replicas is not None or any(value is not None for value in given.values()):
        raise ConfigError("--ray-address, --replicas, --replica-cpus and --replica-target want --ray beside them")
    return None


def _tell(url: str, page: bool, json: bool, names: Sequence[str]) -> None:
    if json:
        show.as_json({"url": url, "tasks": names})
    else:
        show.progress(
            f"{show.count(len(names), 'task')} on {url} (its paths: /docs{'; a page to try them: /' if page else ''})"
        )


def _playground(asked: bool | None, ray: bool) -> bool:
    """Whether the page is shown: as asked, else if it is installed."""
    there = find_spec("nicegui") is not None
    if asked and ray:
        raise ConfigError("the playground lives in the process that serves; leave out --playground or --ray")
    if asked and not there:
        raise ConfigError("the playground needs more packages: pip install 'attentune[ui]'")
    return there and not ray if asked is None else asked


def keys_command(
    name: Annotated[str, typer.Argument(help="What the key is called.")],
    file: Annotated[Path, typer.Option(help="The file of keys; made if it is not there.")],
    scope: Annotated[list[str] | None, typer.Option(help="predict or admin; repeatable. [default: predict]")] = None,
    task: Annotated[list[str] | None, typer.Option(help="A task that it sees; repeatable. [default: all]")] = None,
    json: show.Json = False,
) -> None:
    """Make an API key; it is shown this once, the file keeps its hash.

    Example: attentune keys shop --file keys.json --task intent --task sentiment
    """
    from attentune.serving.keys import add

    secret = add(file, name, scope or ["predict"], task)
    if json:
        show.as_json({"name": name, "key": secret})
    else:
        print(secret)
