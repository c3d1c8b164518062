"""`attentune env`."""

from collections.abc import Iterator, Mapping
from typing import Any

from attentune.cli import show


def env_command(json: show.Json = False) -> None:
    """Show versions, machine and extras: what a bug report should begin with. No user, host or path is in it.

    Example: attentune env --json
    """
    from attentune.environment import environment

    found = environment()
    if json:
        show.as_json(found)
    else:
        show.table(["what", "found"], list(_lines(found)))


def _lines(found: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield from ((name, str(found[name])) for name in ("attentune", "python", "system", "processor"))
    cores, torch = found["cores"], found["torch"]
    yield "cores", f"{cores['usable']} of {cores['all']}, {torch['threads']} thread(s) of torch"
    yield "memory", f"{found['memory_gib']} GiB"
    yield from ((name, version or "missing") for name, version in found["libraries"].items())
    yield "instructions", torch["instructions"]
    yield "CUDA", torch["cuda"] or "torch was built without it"
    for device in torch["devices"]:
        yield "device", f"{device['name']}, {device['memory_gib']} GiB, capability {device['capability']}"
    if torch["mps"]:
        yield "device", "Apple GPU (mps)"
    for extra, missing in found["extras"].items():
        yield f"extra {extra}", f"missing: {', '.join(missing)}" if missing else "present"
    yield "minilm", found["minilm"]
