"""What sites leave for later sites of the same block: kept by hooks, read whole or for some rows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from attentune.anatomy import Place
from attentune.method import Group, Site

if TYPE_CHECKING:
    from attentune.sites.stack import Stack


class SeenByRows(Mapping[Site, Tensor]):
    """What taps have seen, for the rows of one group."""

    def __init__(self, seen: Mapping[Site, Tensor], group: Group) -> None:
        self.seen, self.group = seen, group

    def __getitem__(self, site: Site) -> Tensor:
        return self.group.take(self.seen[site])

    def __iter__(self) -> Iterator[Site]:
        return iter(self.seen)

    def __len__(self) -> int:
        return len(self.seen)


@dataclass(eq=False)
class Tap:
    """Keeps what entered or left a place of the block now running; a bound method, which deepcopy rebinds."""

    stack: Stack
    site: Site
    index: int
    place: Place = field(init=False)
    again: bool = field(init=False)
    """The block calls the place more than once."""

    def __post_init__(self) -> None:
        self.place, self.again = self.stack.anatomy.places[self.site], self.stack.repeats(self.site)

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep what enters."""
        self._keep(args[0] if args else kwargs["hidden_states"])

    def fresh(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forget what an earlier block left."""
        if self.stack.frame is not None:
            self.stack.frame.seen.pop(self.site, None)

    def after(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        """Keep what leaves."""
        self._keep(out[0] if isinstance(out, tuple) else out)

    def _keep(self, value: Tensor) -> None:
        frame, place = self.stack.frame, self.place
        if frame is None or (self.again and self.site in frame.seen):
            return
        i, n = place.part
        value = value.chunk(n, -1)[i] if n > 1 else value
        if place.time_first:
            # Cloned: Longformer scales its queries in place right after the projection.
            value = value.transpose(0, 1).clone()
        if place.residual:
            value = frame.seen[Site(place.residual)] + value
        frame.seen[self.site] = value
