"""Servers that share a folder: each knows what another did before it answers, and reads no row of another version."""

import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from attentune.backbones import load_backbone
from attentune.errors import ConflictError, StoreError, UnknownTaskError
from attentune.serving import Bank
from attentune.serving.folder import NAME_RULE, Folder, copy_of
from attentune.serving.registry import Registry
from attentune.store import WEIGHTS
from serving.kit import adapter


@pytest.fixture(scope="module")
def made(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    base, folder = load_backbone(str(tiny_bert)), tmp_path_factory.mktemp("made")
    return {name: adapter(base, folder / name, "pasta", seed) for seed, name in enumerate(["one", "two", "three"])}


@pytest.fixture
def both(tiny_bert: Path, tmp_path: Path) -> tuple[Registry, Registry]:
    return Registry(Bank(str(tiny_bert)), tmp_path / "served"), Registry(Bank(str(tiny_bert)), tmp_path / "served")


def known(registry: Registry) -> dict[str, Any]:
    registry.catch_up()
    served = {name: registry.task(name) for name in registry.names}
    return {
        name: (task.active.id, [v.id for v in task.earlier], task.trial and (task.trial.version.id, task.trial.share))
        for name, task in served.items()
    }


def row(registry: Registry, name: str = "tone") -> list[float]:
    return registry.route(name).held.row.tolist()


def test_what_one_does_the_other_knows(both: tuple[Registry, Registry], made: dict[str, Path]) -> None:
    here, there = both
    one, two, three = (here.put("tone", copy_of(made[name])).id for name in ("one", "two", "three"))
    assert known(here) == known(there) == {"tone": (three, [one, two], None)}
    assert there.roll_back("tone").id == two
    assert known(here) == known(there) == {"tone": (two, [one, three], None)}
    assert row(here) == row(there)
    here.put("tone", copy_of(made["one"]), share=0.5)
    assert known(there) == known(here) == {"tone": (two, [three], (one, 0.5))}
    there.end_trial("tone", promote=True)
    assert known(here) == known(there) == {"tone": (one, [three, two], None)}
    there.put("topic", copy_of(made["two"]))
    here.put("topic", copy_of(made["three"]), shadow=True)
    there.end_trial("topic", promote=False)
    assert known(here)["topic"] == known(there)["topic"] == (two, [], None)
    here.remove("tone")
    assert known(there).keys() == {"topic"}


def test_a_version_that_is_put_again_lies_in_one_place(both: tuple[Registry, Registry], made: dict[str, Path]) -> None:
    here, there = both

    def others() -> list[str]:
        return sorted(place.name for place in here.folder.others("tone"))

    one = here.put("tone", copy_of(made["one"])).id
    two = here.put("tone", copy_of(made["two"]), share=0.5).id
    assert here.put("tone", copy_of(made["two"])).id == two
    assert known(here) == known(there) == {"tone": (two, [one], None)}
    assert others() == [one]
    assert row(here) == row(there)
    with pytest.raises(ConflictError, match="no version of 'tone' is on trial"):
        here.end_trial("tone", promote=True)
    here.put("tone", copy_of(made["one"]))
    assert known(here) == known(there) == {"tone": (one, [two], None)}
    assert others() == [two]


def test_a_third_one_begins_with_all_of_it(
    both: tuple[Registry, Registry], made: dict[str, Path], tiny_bert: Path
) -> None:
    here, _ = both
    for name in ("one", "two"):
        here.put("tone", copy_of(made[name]))
    here.put("tone", copy_of(made["three"]), share=0.25)
    third = Registry(Bank(str(tiny_bert)), here.folder.path)
    assert known(third) == known(here)
    assert known(third)["tone"][2][1] == 0.25


def test_a_row_that_another_has_replaced_is_not_read_for_the_old_one(
    both: tuple[Registry, Registry], made: dict[str, Path]
) -> None:
    here, there = both
    here.put("tone", copy_of(made["one"]))
    there.catch_up()
    old = there.task("tone").active.entry
    here.put("tone", copy_of(made["two"]))
    there.bank.tiers.drop(old)
    with pytest.raises(StoreError, match="are others than when it was checked"):
        there.bank.hold(old)
    assert row(there) == row(here)
    there.bank.tiers.drop(there.task("tone").active.entry)
    here.remove("tone")
    with pytest.raises(UnknownTaskError):
        there.route("tone")


def test_a_change_by_hand_is_told(both: tuple[Registry, Registry], made: dict[str, Path]) -> None:
    here, there = both
    here.put("tone", copy_of(made["one"]))
    shutil.copytree(made["two"], here.folder.path / "topic")
    assert known(there).keys() == {"tone", "topic"}
    shutil.copytree(made["two"], here.folder.path / "third")
    assert known(there).keys() == {"tone", "topic"}
    here.follow()
    assert known(there).keys() == {"tone", "topic", "third"}
    before = there.folder.revision()
    here.follow()
    assert there.folder.revision() == before


def test_an_adapter_whose_name_is_none_of_a_task_is_told_of_once(
    both: tuple[Registry, Registry], made: dict[str, Path]
) -> None:
    here, _ = both
    shutil.copytree(made["one"], here.folder.path / "bad name!")
    (here.folder.path / "notes (old)").mkdir()
    lines: list[str] = []
    here.scan(lines.append)
    here.scan(lines.append)
    assert here.names == []
    assert lines == [f"bad name! is not served: {NAME_RULE}"]


def test_one_changes_the_folder_at_a_time(tmp_path: Path) -> None:
    first, second = Folder(tmp_path), Folder(tmp_path)
    order: list[str] = []

    def later() -> None:
        with second.alone():
            order.append("second")

    with first.alone(), first.alone():
        thread = threading.Thread(target=later)
        thread.start()
        thread.join(0.3)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_a_task_that_comes_again_has_no_trial(both: tuple[Registry, Registry], made: dict[str, Path]) -> None:
    here, there = both
    here.put("tone", copy_of(made["one"]))
    two = here.put("tone", copy_of(made["two"]), share=1.0).id
    shutil.rmtree(here.folder.place("tone"))
    here.scan()
    three = here.put("tone", copy_of(made["three"])).id
    here.scan()
    assert known(here) == known(there) == {"tone": (three, [two], None)}


@pytest.mark.parametrize("relative", [True, False])
def test_links_to_adapters_move_and_go_alone(
    tiny_bert: Path, made: dict[str, Path], tmp_path: Path, relative: bool
) -> None:
    kept = shutil.copytree(made["one"], tmp_path / "kept")
    (tmp_path / "served").mkdir()
    link = tmp_path / "served" / "tone"
    link.symlink_to(Path("../kept") if relative else kept)
    registry = Registry(Bank(str(tiny_bert)), tmp_path / "served", keep=1)
    registry.scan(pytest.fail)
    one, two = registry.task("tone").active.id, registry.put("tone", copy_of(made["two"])).id
    assert known(registry) == {"tone": (two, [one], None)}
    assert registry.roll_back("tone").id == one
    registry.put("tone", copy_of(made["two"]))
    three = registry.put("tone", copy_of(made["three"])).id
    registry.scan(pytest.fail)
    assert known(registry) == {"tone": (three, [two], None)}
    assert (kept / "task.json").is_file()
    shutil.rmtree(link)
    link.symlink_to(Path("../kept") if relative else kept)
    registry.scan(pytest.fail)
    registry.remove("tone")
    assert (kept / "task.json").is_file()
    assert not list((tmp_path / "served" / ".incoming").iterdir())


def test_a_shadow_that_cannot_be_read_costs_no_answer(
    both: tuple[Registry, Registry], made: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    here, _ = both
    here.put("tone", copy_of(made["one"]))
    two = here.put("tone", copy_of(made["two"]), shadow=True)
    assert here.route("tone").unheard is not None
    here.bank.tiers.drop(two.entry)
    (two.entry.folder / WEIGHTS).write_bytes(b"no tensors")
    for _ in range(2):
        route = here.route("tone")
        assert (route.version, route.unheard) == (here.task("tone").active, None)
    (told,) = [record.getMessage() for record in caplog.records]
    assert f"shadow {two.id} of task 'tone' does not answer along: " in told
