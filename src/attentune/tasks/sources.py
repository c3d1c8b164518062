"""Files, folders, hub data sets and Python rows -> raw splits of plain rows. Knows no task.

Tables and hub data are read by the `datasets` library, imported when something is read, as a server reads nothing; JSON
is not, since that library makes dates of texts. Class numbers become class names here, so that nothing later sees a
number for a class.
"""

import csv
import glob
import gzip
import re
import tempfile
import zlib
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal, Union, cast

from attentune import demo
from attentune.errors import DataError
from attentune.tasks.json_rows import rows_in

if TYPE_CHECKING:
    import datasets

Row = dict[str, Any]
Source = Union[str, Path, Sequence[Row], Mapping[str, Any], "datasets.Dataset", "datasets.DatasetDict"]

SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval", "validation_matched"),
    "test": ("test", "testing"),
}
SPLIT_OF = {alias: split for split, aliases in SPLITS.items() for alias in aliases}
HUB_NAME = re.compile(r"\w[\w.-]*(/[\w.-]+)?(:[\w.-]+)?")
FORMATS = {".csv": "csv", ".tsv": "csv", ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet"}
UNREADABLE = (UnicodeDecodeError, OSError, EOFError, zlib.error)
"""What opening and reading a text file raises, packed or not."""


@dataclass(frozen=True)
class Raw:
    """One split as it was read: rows of plain values, and the class names of columns that carry their own."""

    rows: list[Row]
    classes: dict[str, tuple[str, ...]] = field(default_factory=dict[str, tuple[str, ...]])

    @property
    def columns(self) -> list[str]:
        """The names of the columns, in the order of the first row."""
        return list(self.rows[0]) if self.rows else []


def read(source: Source) -> dict[str, Raw]:
    """A file, a folder of split files, a hub id (`owner/name` or `owner/name:config`), rows or data sets -> raw splits.

    `demo:<task>` is a task of the demo. The keys are among train, validation and test; rows of one file or one list
    are `train`.
    """
    if isinstance(source, str | Path):
        raw = _read_name(source)
    elif isinstance(source, Mapping):
        given = {str(name): split for name, split in cast("Mapping[str, Any]", source).items()}
        raw = {split: _raw(given[name]) for split, name in _by_split({n: _split_name(n) for n in given}).items()}
    else:
        raw = {"train": _raw(source)}
    for name, split in raw.items():
        if not split.rows:
            raise DataError(f"the {name} split of {_shown(source)} has no rows; at least one is needed")
    return raw


def sets_of(folder: str | Path) -> dict[str, Path]:
    """The data sets of a folder, by name: each sub-folder, and each data file, is one.

    Raises:
        DataError: no such folder; it is a data set itself, or holds none; or two have one name.
    """
    place = Path(folder).expanduser()
    if not place.is_dir():
        raise DataError(f"no folder of data sets at {folder}; wanted a folder in which each file or folder is one")
    inside = sorted(path for path in place.iterdir() if not path.name.startswith("."))
    found: dict[str, Path] = {}
    for path in inside:
        if not path.is_dir() and not _format(path):
            continue
        name = path.name if path.is_dir() else path.name.split(".")[0]
        if path.is_file() and name.lower() in SPLIT_OF:
            raise DataError(f"{folder} is one data set, for it holds {path.name}; wanted a folder of data sets")
        if name in found:
            raise DataError(f"{folder} holds {found[name].name} and {path.name}; give each data set its own name")
        found[name] = path
    if not found:
        raise DataError(f"{folder} holds no data set: no folder and no file ({', '.join(FORMATS)}, also .gz)")
    return found


def _read_name(source: str | Path) -> dict[str, Raw]:
    start, of_demo, task = str(source).partition("demo:")
    path = demo.path(task, "train").parent if of_demo and not start else Path(source).expanduser()
    if path.is_dir():
        return {split: _read_file(file) for split, file in _split_files(path).items()}
    if path.is_file():
        return {"train": _read_file(path)}
    if _format(path) or isinstance(source, Path) or not HUB_NAME.fullmatch(source):
        raise DataError(f"no data at {source}: wanted a file ({', '.join(FORMATS)}, also .gz), a folder or a hub id")
    return _read_hub(source)


def _split_files(folder: Path) -> dict[str, Path]:
    files = sorted(f for f in folder.iterdir() if f.is_file() and _format(f))
    stems = {f.name: f.name.split(".")[0].lower() for f in files}
    found = _by_split({name: SPLIT_OF[stem] for name, stem in stems.items() if stem in SPLIT_OF})
    if found:
        return {split: folder / name for split, name in found.items()}
    if len(files) == 1:
        return {"train": files[0]}
    names = ", ".join(f.name for f in files) or "no data file"
    raise DataError(f"{folder} has {names}; wanted train, validation and test files ({', '.join(FORMATS)}, also .gz)")


def _by_split(names: Mapping[str, str]) -> dict[str, str]:
    """Name -> split, turned round, in the order of the splits."""
    found: dict[str, str] = {}
    for name, split in names.items():
        if split in found:
            raise DataError(f"{found[split]} and {name} are both the {split} split; keep one of them")
        found[split] = name
    return {split: found[split] for split in SPLITS if split in found}


def _format(path: Path) -> str | None:
    suffixes = [s.lower() for s in path.suffixes]
    if suffixes and suffixes[-1] == ".gz":
        suffixes.pop()
    return FORMATS.get(suffixes[-1]) if suffixes else None


def _read_file(path: Path) -> Raw:
    kind = _format(path)
    if kind is None:
        raise DataError(f"cannot tell the format of {path.name}; wanted one of {', '.join(FORMATS)} (also with .gz)")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty; at least one row is needed")
    if kind == "json":
        return _read_json(path)
    import datasets

    options = _table_options(path) if kind == "csv" else {}
    with tempfile.TemporaryDirectory(prefix="attentune-data-") as cache, _quiet():
        try:
            loaded = datasets.load_dataset(
                kind,
                data_files={"train": glob.escape(str(path))},
                split="train",
                cache_dir=cache,
                download_config=datasets.DownloadConfig(cache_dir=cache),
                keep_in_memory=True,
                **options,
            )
        except Exception as error:  # the library raises many unrelated types for one bad file
            raise DataError(f"cannot read {path} as {kind}: {_reason(error)}") from error
        return _raw(loaded)


def _read_json(path: Path) -> Raw:
    try:
        with _open_text(path) as file:
            text = file.read()
    except UNREADABLE as error:
        raise DataError(f"cannot read {path}: {_reason(error)}") from error
    return Raw(rows_in(text, str(path)))


def _table_options(path: Path) -> dict[str, Any]:
    """Every cell is read as text: 'NA' is a word, '007' keeps its zeros."""
    import datasets

    tabs = ".tsv" in [s.lower() for s in path.suffixes]
    delimiter, quoting = "\t" if tabs else ",", csv.QUOTE_MINIMAL
    try:
        if tabs and not _quotes_close(path):
            # A row of a TSV is one line: quotes that would join two lines are part of the text.
            quoting = csv.QUOTE_NONE
        with _open_text(path) as lines:
            names = _names(path, filter(None, _cells(lines, delimiter, quoting)))
    except (*UNREADABLE, csv.Error) as error:
        raise DataError(f"cannot read {path}: {_reason(error)}") from error
    text = datasets.Features({name: datasets.Value("string") for name in names})
    return {"delimiter": delimiter, "quoting": quoting, "keep_default_na": False, "features": text}


def _names(path: Path, rows: Iterator[list[str]]) -> list[str]:
    """The names of the columns. One without a name, as of the index of a data frame, is left out.

    Raises:
        DataError: there are no rows, or one has more cells than there are columns.
    """
    header, count = next(rows, []), 0
    for count, row in enumerate(rows, 1):
        if len(row) > len(header):
            # pandas would take the first column for an index, and shift the others.
            raise DataError(
                f"{path}, row {count} has {len(row)} cells, wanted {len(header)} ({', '.join(header)}); "
                "quote texts that hold the delimiter"
            )
    if len(header) == 1 and ";" in header[0]:
        raise DataError(
            f"{path} has one column, {header[0]!r}; cells are wanted with commas between them, not semicolons"
        )
    names = [name for name in header if name]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{path} has two columns {twice!r}; give each its own name")
    if not names or not count:
        raise DataError(f"{path} has no rows; wanted a line of column names and at least one row")
    return names


def _quotes_close(path: Path) -> bool:
    with _open_text(path) as lines:
        return all(cell.count("\n") == 0 for row in _cells(lines, "\t", csv.QUOTE_MINIMAL) for cell in row)


def _cells(lines: Iterator[str], delimiter: str, quoting: Literal[0, 3]) -> Iterator[list[str]]:
    """The rows of a table; a cell may be a whole document."""
    csv.field_size_limit(2**31 - 1)
    return csv.reader(lines, delimiter=delimiter, quoting=quoting)


@contextmanager
def _open_text(path: Path) -> Generator[IO[str]]:
    opener = gzip.open if path.suffix.lower() == ".gz" else open
    with opener(path, "rt", encoding="utf-8-sig", newline="") as file:
        yield cast("IO[str]", file)


def _read_hub(name: str) -> dict[str, Raw]:
    import datasets

    hub_id, _, config = name.partition(":")
    with _quiet():
        try:
            loaded = datasets.load_dataset(hub_id, config or None)
        except Exception as error:  # offline, unknown and gated data sets raise unrelated types
            raise DataError(f"{name!r} is no file or folder, and no hub data set: {_reason(error)}") from error
    splits = {str(key): split for key, split in loaded.items()}
    raw = {SPLIT_OF[key]: _raw(split) for key, split in splits.items() if key in SPLIT_OF}
    if "train" not in raw:
        raise DataError(f"hub data set {name!r} has no train split; it has {', '.join(splits)}")
    return raw


def _split_name(name: str) -> str:
    if name.lower() not in SPLIT_OF:
        raise DataError(f"no split {name!r}; the splits are {', '.join(SPLITS)}")
    return SPLIT_OF[name.lower()]


def _raw(split: Any) -> Raw:
    if isinstance(split, Sequence) and all(isinstance(row, Mapping) for row in cast("Sequence[Any]", split)):
        return Raw([dict(row) for row in cast("Sequence[Mapping[str, Any]]", split)])

    import datasets

    if not isinstance(split, datasets.Dataset):
        raise DataError(f"wanted a list of rows (dicts) or a datasets.Dataset, found {type(split).__name__}")
    classes = {
        name: tuple(feature.names)
        for name, column in split.features.items()
        if isinstance(feature := getattr(column, "feature", column), datasets.ClassLabel)
    }
    rows = cast("list[Row]", split.to_list())
    for row in rows:
        for name, names in classes.items():
            row[name] = _named(row[name], names)
    return Raw(rows, classes)


def _named(value: Any, names: tuple[str, ...]) -> Any:
    """Class number(s) -> class name(s); -1, the hub's sign for a hidden label, becomes None."""
    if isinstance(value, list):
        return [_named(v, names) for v in cast("list[Any]", value)]
    return names[value] if value is not None and value >= 0 else None


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, UnicodeDecodeError):
        return "it is not UTF-8; save it as UTF-8"
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


def _shown(source: Source) -> str:
    return str(source) if isinstance(source, str | Path) else "the data"


@contextmanager
def _quiet() -> Generator[None]:
    import datasets

    shown, level = not datasets.utils.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    datasets.utils.disable_progress_bars()
    # What it has against a file is in what it raises; its log would say it twice.
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    try:
        yield
    finally:
        datasets.logging.set_verbosity(level)
        if shown:
            datasets.utils.enable_progress_bars()
