"""What is compared, under which conditions, and which run is due next.

A cell is one contender on one task. Its learning rates are all tried with seed 0; the other seeds repeat the rate whose
validation score is best. The test has no say in it.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from attentune.comparison.sets import Reading
from attentune.errors import ConfigError


@dataclass(frozen=True)
class Conditions:
    """What all contenders have in common; None leaves it to the recipe of the kind of task."""

    backbone: str = "minilm"
    rows: int = 1000
    """Training rows, at most."""
    test_rows: int = 1000
    """Test rows, at most; of validation half as many."""
    epochs: float = 4.0
    batch_size: int | None = None
    max_length: int | None = None
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of matrix products while training."""
    frozen: Literal["float32", "bfloat16", "float16"] = "float32"
    """What the frozen weights are carried in; what is trained is float32."""
    attention_dropout: float | None = None
    """Of the backbone's attention weights while training; None: the backbone's own."""

    def __post_init__(self) -> None:
        for name in ("rows", "test_rows", "epochs"):
            if getattr(self, name) <= 0:
                raise ConfigError(f"{name} is above 0, found {getattr(self, name)}")
        for name, known in (("precision", ("auto", "float32", "bfloat16")), ("frozen", DTYPES)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} is one of {', '.join(known)}, found {getattr(self, name)!r}")


DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Run:
    """One training: all that decides its result, and where its files are."""

    task: str
    """The task's name, for people."""
    source: str
    """Where its rows are read from."""
    rows: str
    """The fingerprint of those rows."""
    contender: str
    options: Mapping[str, Any]
    """What the contender is made of, beside the learning rate."""
    rate: float | None
    """None: this contender has no learning rate."""
    seed: int
    fold: int
    folds: int
    conditions: Conditions
    reading: Reading = field(default_factory=Reading)
    """How the rows are read from their source."""
    backbone_at: str | None = None
    """Where the backbone lies, if its name says so in one working folder only."""

    @property
    def key(self) -> dict[str, Any]:
        """What the result depends on, as plain JSON values; the places of files are not among it.

        Nor is how they were read: what came of it is, as the fingerprint of the rows.
        """
        key = asdict(self)
        for name in ("source", "reading", "backbone_at"):
            del key[name]
        # Where it is set it stands among the options; runs without it keep their names.
        del key["conditions"]["attention_dropout"]
        return json.loads(json.dumps(key))

    @property
    def hash(self) -> str:
        """The key in short."""
        return hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """For people, and in front of the hash in the file's name."""
        rate = "" if self.rate is None else f"-{self.rate:g}"
        fold = f"-fold{self.fold}" if self.folds > 1 else ""
        return f"{self.task}-{self.contender}{rate}-seed{self.seed}{fold}"


@dataclass(frozen=True)
class Cell:
    """One contender on one task."""

    first: Run
    """Its run with the most likely rate, seed 0, fold 0."""
    rates: tuple[float | None, ...]
    seeds: int
    weights: str | None = None
    """The fingerprint that the backbone had when this was asked for, where there were runs to be compared with it."""

    def runs(self, rate: float | None, seed: int) -> list[Run]:
        """One run a fold."""
        return [replace(self.first, rate=rate, seed=seed, fold=fold) for fold in range(self.first.folds)]

    def trials(self) -> list[Run]:
        """Every rate with seed 0."""
        return [run for rate in self.rates for run in self.runs(rate, 0)]

    def chosen(self, validation: Mapping[str, float | None]) -> float | None:
        """The rate with the best mean validation score over folds; `validation` is by hash, None of failed runs.

        Raises:
            LookupError: a trial is not finished, or all have failed.
        """
        found = {rate: [validation[run.hash] for run in self.runs(rate, 0)] for rate in self.rates}
        whole = {rate: sum(s for s in scores if s is not None) for rate, scores in found.items() if None not in scores}
        if not whole:
            raise LookupError
        return max(whole, key=lambda rate: whole[rate])

    def counted(self, validation: Mapping[str, float | None]) -> list[list[Run]]:
        """The runs that count, a list of folds a seed; empty while trials are not finished or when all have failed."""
        try:
            rate = self.chosen(validation)
        except LookupError:
            return []
        return [self.runs(rate, seed) for seed in range(1 if rate is None else self.seeds)]

    def needed(self, validation: Mapping[str, float | None]) -> list[Run]:
        """Every run that is known to be needed, finished or not: the trials, and what counts."""
        return [*self.trials(), *(run for folds in self.counted(validation) for run in folds)]


@dataclass
class Schedule:
    """Which run is due; it grows as results come in."""

    cells: Sequence[Cell]
    validation: dict[str, float | None] = field(default_factory=dict[str, "float | None"])
    """Hash -> validation score of every finished run, None where it failed."""
    until: float = float("inf")
    """No run begins after this `clock`."""
    clock: Callable[[], float] = time.monotonic
    failed: list[Run] = field(default_factory=list[Run])
    """Those that were told of."""
    _begun: set[str] = field(default_factory=set[str])

    def ask(self) -> Run | None:
        """The next run; None when there is none now, or no time."""
        if self.clock() >= self.until:
            return None
        run = next((run for run in self.due() if run.hash not in self._begun), None)
        if run is not None:
            self._begun.add(run.hash)
        return run

    def tell(self, run: Run, validation: float | None) -> None:
        """A run is finished; without a score it has failed."""
        self.validation[run.hash] = validation
        if validation is None:
            self.failed.append(run)

    def due(self) -> Iterator[Run]:
        """The runs that are known to be needed and not finished, in order."""
        for cell in self.cells:
            yield from (run for run in cell.needed(self.validation) if run.hash not in self.validation)
