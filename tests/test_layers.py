"""A file imports only from lower layers, or from its own package: walked over every import of src/attentune."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SRC = Path(__file__).parents[1] / "src"
FILES = sorted(SRC.rglob("*.py"))
LAYERS = {
    "attentune.allocator": 0,
    "attentune.dropout": 0,
    "attentune.errors": 0,
    "attentune.products": 0,
    "attentune.anatomy": 1,
    "attentune.cluster": 1,
    "attentune.demo": 1,
    "attentune.dropped_attention": 1,
    "attentune.evaluation": 1,
    "attentune.method": 1,
    "attentune.scalar_attention": 1,
    "attentune.backbones": 2,
    "attentune.methods": 2,
    "attentune.quantised": 2,
    "attentune.sites": 2,
    "attentune.tasks": 2,
    "attentune.batches": 3,
    "attentune.environment": 3,
    "attentune.vocabulary": 3,
    "attentune.confidence": 3,
    "attentune.heads": 3,
    "attentune.longformer": 3,
    "attentune.card": 4,
    "attentune.forward": 4,
    "attentune.tuner": 5,
    "attentune.writing": 5,
    "attentune.store": 5,
    "attentune.model": 6,
    "attentune.predict": 7,
    "attentune.adopt": 7,
    "attentune.serving": 8,
    "attentune.training": 8,
    "attentune.comparison": 9,
    "attentune.search": 10,
    "attentune.cli": 11,
    "attentune.demo.run": 11,
    "attentune": 12,  # the public names; no file inside may import them
    "attentune.__main__": 12,
}


def unit_of(name: str) -> str:
    """The longest entry of LAYERS that holds the dotted name; only the package's own names fall to "attentune"."""
    parts = name.split(".")
    found = next((unit for n in range(len(parts), 0, -1) if (unit := ".".join(parts[:n])) in LAYERS), "")
    is_module = (SRC.joinpath(*parts)).is_dir() or SRC.joinpath(*parts).with_suffix(".py").is_file()
    assert found != "attentune" or len(parts) == 1 or not is_module, f"{name} has no layer: add it to LAYERS"
    return found


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full dotted name of everything that a file imports, wherever in the file."""
    package = path.relative_to(SRC).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else ()
            base = ".".join([*parents, *([node.module] if node.module else [])])
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_downwards(path: Path) -> None:
    unit = unit_of(module_name(path))
    wrong = [
        f"line {line}: {name} (layer {LAYERS[other]})"
        for line, name in imports_of(path)
        if (other := unit_of(name)) not in ("", unit) and LAYERS[other] >= LAYERS[unit]
    ]
    assert not wrong, f"{module_name(path)} is of layer {LAYERS[unit]} and imports {', '.join(wrong)}"


def test_evaluation_sees_arrays_only() -> None:
    files = [path for path in FILES if unit_of(module_name(path)) == "attentune.evaluation"]
    names = {name.split(".")[0] for path in files for _, name in imports_of(path)}
    assert not names & {"torch", "transformers", "peft", "datasets"}
