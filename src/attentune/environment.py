"""What a bug report needs to know: versions, machine, which extras are there. Nothing in it names a person or a path.

Host names, users and folders are left out on purpose, so that what is printed can be pasted anywhere.
"""

import os
import platform
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
import torch
from packaging.requirements import Requirement

from attentune.backbones import MINILM, MINILM_ID, MINILM_PACKAGE, resolve
from attentune.errors import StoreError

LIBRARIES = ("torch", "transformers", "peft", "accelerate", "datasets", "tokenizers", "safetensors", "numpy")
GIB = 2**30


def environment() -> dict[str, Any]:
    """All of it, as values that JSON knows."""
    return {
        "attentune": version_of("attentune"),
        "python": f"{platform.python_version()} ({platform.python_implementation()})",
        "system": f"{platform.system()} {platform.machine()}",
        "processor": processor(),
        "cores": {"usable": usable_cores(), "all": os.cpu_count() or 1},
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "libraries": {name: version_of(name) for name in LIBRARIES},
        "torch": accelerators(),
        "extras": missing_of_extras(
            metadata.metadata("attentune").get_all("Provides-Extra") or (), metadata.requires("attentune") or ()
        ),
        "minilm": minilm(),
    }


def version_of(package: str) -> str | None:
    """The installed version of a package; None where there is none."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def processor() -> str:
    """The model of the processor, where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.is_file() else []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor()) or "unknown"


def usable_cores() -> int:
    """How many cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def accelerators() -> dict[str, Any]:
    """What torch computes with."""
    cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "cuda": torch.version.cuda,
        "devices": [
            {
                "name": card.name,
                "memory_gib": round(card.total_memory / GIB, 1),
                "capability": f"{card.major}.{card.minor}",
            }
            for card in cards
        ],
        "mps": torch.backends.mps.is_available(),
    }


def missing_of_extras(extras: Iterable[str], requirements: Iterable[str]) -> dict[str, list[str]]:
    """Extra -> what it adds and is not installed here, or in another version; the lines are those of the metadata."""
    wanted = [Requirement(line) for line in requirements]
    return {extra: [str(one) for one in _added_by(extra, wanted) if not _is_met(one)] for extra in extras}


def minilm() -> str:
    """Where the default backbone comes from, and whether its weights are those of the original."""
    try:
        found = resolve(MINILM)
    except StoreError as error:
        return str(error)
    if found == MINILM_ID:
        return f"from the hub ({MINILM_ID}); the extra 'demo' brings it as a package"
    return f"from the package {MINILM_PACKAGE} {version_of(MINILM_PACKAGE)}, sha256 as it should be"


def _added_by(extra: str, wanted: Sequence[Requirement]) -> Iterator[Requirement]:
    """The requirements of an extra, and of those extras of attentune that it names; without their markers."""
    for one in wanted:
        if one.marker is None or one.marker.evaluate({"extra": ""}) or not one.marker.evaluate({"extra": extra}):
            continue
        if one.name == "attentune":
            for other in sorted(one.extras):
                yield from _added_by(other, wanted)
        else:
            plain = Requirement(str(one))
            plain.marker = None
            yield plain


def _is_met(requirement: Requirement) -> bool:
    found = version_of(requirement.name)
    return found is not None and requirement.specifier.contains(found, prereleases=True)
