"""Build the sdist and a wheel from it, and use the wheel as a stranger would: in an empty environment, without sources.

python scripts/check_package.py    # minutes: it installs torch

The sdist holds the whole checkout without what was built or cached there, the wheel src/attentune and nothing else;
installed with the extra `demo` it trains, answers and writes its report, without a network.
"""

import os
import subprocess
import sys
import tarfile
import time
import venv
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).parents[1]
PINS = ROOT / "constraints.txt"
IN_THE_WHEEL = (
    "py.typed",
    "recipes/classification/pasta.toml",
    "demo/intent/train.jsonl",
    "demo/outcome/train.jsonl.gz",
    "demo/report.html.j2",
    "serving/playground/style.css",
)
"""Files that are no Python, one of each kind; that all others are there is told by comparing with the folder."""
FOLDERS = (".ci", "benchmarks", "docs", "scripts", "src", "tests")
TOP = ("CHANGELOG.md", "Dockerfile", "LICENSE", "Makefile", "README.md", "constraints.txt", "pyproject.toml")
CACHES = {"__pycache__", ".git", ".venv", "_build", ".pytest_cache", ".ruff_cache", ".hypothesis"}


class WrongPackageError(Exception):
    """What was built is not what should be."""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """What a command prints; it sees neither the sources nor a proxy that leads out."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    done = subprocess.run(
        [*map(str, command)], cwd=cwd, env={**clean, **environment}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise WrongPackageError(
            f"{' '.join(map(str, command))} ended with {done.returncode}\n{done.stdout}{done.stderr}"
        )
    return done.stdout


def files_of(folder: Path) -> set[str]:
    """Every file below a folder of the checkout but caches, relative to the checkout."""
    found = {file.relative_to(ROOT) for file in folder.rglob("*") if file.is_file()}
    return {file.as_posix() for file in found if not CACHES.intersection(file.parts)}


def build(output: Path) -> tuple[Path, Path]:
    """The sdist, and the wheel that is built from it, with all that belongs into them."""
    run(sys.executable, "-m", "build", "--outdir", output, ROOT, cwd=output, PIP_CONSTRAINT=str(PINS))
    (sdist,), (wheel,) = output.glob("*.tar.gz"), output.glob("*.whl")
    with tarfile.open(sdist) as archive:
        found = {name.partition("/")[2] for name in archive.getnames()}
    _hold("sdist", found, {*TOP, *(file for folder in FOLDERS for file in files_of(ROOT / folder))})
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {name.removeprefix("src/") for name in files_of(ROOT / "src")}
    _hold("wheel", found, wanted | {f"attentune/{name}" for name in IN_THE_WHEEL})
    _hold("folder src", wanted, found)
    return sdist, wheel


def install(wheel: Path, environment: Path) -> Path:
    """A new environment with the wheel and its demo in it; returns where its programs are.

    torch comes first and by itself, as in the Makefile.
    """
    venv.create(environment, with_pip=True)
    programs = environment / ("Scripts" if os.name == "nt" else "bin")
    pip = (programs / "python", "-m", "pip", "--quiet", "--disable-pip-version-check")
    run(*pip, "install", "--constraint", PINS, "torch", cwd=environment)
    run(*pip, "install", "--constraint", PINS, f"attentune[demo] @ {wheel.as_uri()}", cwd=environment)
    run(*pip, "check", cwd=environment)
    return programs


def use(programs: Path, work: Path) -> str:
    """The demo in one epoch, and an answer from a model of it; returns what `attentune env` says."""
    nowhere = {"HF_HUB_OFFLINE": "1", "HF_HOME": str(work / "hub"), "HTTPS_PROXY": "http://127.0.0.1:9"}
    report = run(programs / "attentune", "env", cwd=work, **nowhere)
    run(programs / "python", "-m", "attentune.demo.run", "--epochs", "1", "--output", "demo", cwd=work, **nowhere)
    if "<html" not in (work / "demo" / "report.html").read_text(encoding="utf-8"):
        raise WrongPackageError("the demo wrote no report.html")
    ask = (programs / "attentune", "predict", "demo/intent", "Where is my parcel?", "--json")
    if '"label"' not in run(*ask, cwd=work, **nowhere):
        raise WrongPackageError("attentune predict gave no label")
    return report


def _hold(what: str, found: set[str], wanted: set[str]) -> None:
    if lost := sorted(wanted - found):
        raise WrongPackageError(f"the {what} lacks {len(lost)} files: {', '.join(lost[:9])}")
    if litter := sorted(name for name in found if CACHES.intersection(name.split("/"))):
        raise WrongPackageError(f"the {what} holds caches: {', '.join(litter[:9])}")


def main() -> None:
    """All of it, with the seconds of each step."""
    with TemporaryDirectory() as folder:
        output, work = Path(folder) / "dist", Path(folder) / "work"
        output.mkdir()
        work.mkdir()
        begin = time.monotonic()
        sdist, wheel = build(output)
        print(f"{sdist.name}, {wheel.name}: complete, {time.monotonic() - begin:.0f} s", flush=True)
        begin = time.monotonic()
        programs = install(wheel, Path(folder) / "environment")
        print(f"installed with the extra demo, {time.monotonic() - begin:.0f} s", flush=True)
        begin = time.monotonic()
        print(use(programs, work), end="")
        print(f"demo and predict run from the wheel, {time.monotonic() - begin:.0f} s")


if __name__ == "__main__":
    try:
        main()
    except WrongPackageError as error:
        raise SystemExit(str(error)) from None
