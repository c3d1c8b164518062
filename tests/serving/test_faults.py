"""A disk that is full, a kill at any moment, packed bombs: what was served goes on, and nothing is left half done."""

import gzip
import io
import json
import os
import resource
import shutil
import sys
import tarfile
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from test_store import unwritable

from attentune import store
from attentune.backbones import load_backbone
from attentune.errors import StoreError
from attentune.serving import Bank
from attentune.serving.folder import Folder, copy_of, version_id
from attentune.serving.launch import application
from attentune.serving.limits import Limits
from attentune.serving.registry import Registry
from attentune.store import CARD, CONFIG, METRICS, WEIGHTS
from serving.kit import adapter
from serving.process import tar_of, until

ASK = {"items": [{"task": "tone", "input": "good film"}]}


@pytest.fixture(scope="module")
def made(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    where, base = tmp_path_factory.mktemp("adapters"), load_backbone(str(tiny_bert))
    return {name: adapter(base, where / name, "kernel_mix", i) for i, name in enumerate(("old", "new", "third"))}


@pytest.fixture
def folder(made: dict[str, Path], tmp_path: Path) -> Path:
    shutil.copytree(made["old"], tmp_path / "served" / "tone")
    return tmp_path / "served"


@pytest.fixture
def client(tiny_bert: Path, folder: Path) -> Iterator[TestClient]:
    with TestClient(application(folder, str(tiny_bert)), raise_server_exceptions=False) as client:
        yield client


@contextmanager
def full_after(size: int) -> Generator[None]:
    """Every file of this process ends at `size` bytes: the write that crosses it is cut off, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def tree(folder: Path) -> dict[str, bytes]:
    """Every file but the marks by which servers that share a folder know of each other."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: content for name, content in files.items() if name not in (".lock", ".revision")}


@pytest.mark.parametrize("size", [0, 1000, 6000])
@pytest.mark.parametrize("packed", [True, False])
def test_a_full_disk_leaves_what_is_served(
    client: TestClient, folder: Path, made: dict[str, Path], size: int, packed: bool
) -> None:
    assert (made["new"] / WEIGHTS).stat().st_size > 6000
    before, answer = tree(folder), client.post("/v1/predict", json=ASK).json()
    body: dict[str, Any] = {"content": tar_of(made["new"])} if packed else {"json": {"folder": str(made["new"])}}
    for name in ("tone", "fresh"):
        with full_after(size):
            refused = client.put(f"/v1/tasks/{name}", **body)
        assert (refused.status_code, refused.headers["content-type"]) == (503, "application/problem+json")
        assert "File too large" in refused.json()["detail"]
        assert "retry-after" in refused.headers
    assert tree(folder) == before
    assert client.post("/v1/predict", json=ASK).json() == answer
    assert [task["name"] for task in client.get("/v1/tasks").json()] == ["tone"]
    assert client.put("/v1/tasks/tone", **body).status_code == 200
    assert client.post("/v1/predict", json=ASK).json() != answer


def test_versions_that_cannot_be_kept_stop_the_change(client: TestClient, folder: Path, made: dict[str, Path]) -> None:
    answer = client.post("/v1/predict", json=ASK).json()
    (folder / ".versions").write_text("no folder can be made here")
    refused = client.put("/v1/tasks/tone", content=tar_of(made["new"]))
    assert refused.status_code == 503
    assert client.post("/v1/predict", json=ASK).json() == answer
    assert version_id(folder / "tone") == version_id(made["old"])
    (folder / ".versions").unlink()
    assert client.put("/v1/tasks/tone", content=tar_of(made["new"])).status_code == 200


def edited(file: str, **changes: Any) -> Callable[[Path], object]:
    def edit(folder: Path) -> None:
        (folder / file).write_text(json.dumps({**json.loads((folder / file).read_text()), **changes}))

    return edit


DAMAGES: dict[str, Callable[[Path], object]] = {
    "no number": edited(CARD, max_length="abc"),
    "no object": edited(CARD, task=["classification"]),
    "unknown peft": edited(CONFIG, peft_type="FOO"),
    "unknown head": edited(CONFIG, head={"colour": "red"}),
    "no text": lambda folder: (folder / CARD).write_bytes(b"\xff\xfe"),
    "deep": lambda folder: (folder / METRICS).write_text("[" * 100_000),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_stands_alone(
    tiny_bert: Path, folder: Path, made: dict[str, Path], tmp_path: Path, damage: str
) -> None:
    DAMAGES[damage](shutil.copytree(made["new"], folder / "bad"))
    told: list[str] = []
    app = application(folder, str(tiny_bert), report=told.append)
    with TestClient(app, raise_server_exceptions=False) as client:
        assert [line.split(":")[0] for line in told] == ["bad"]
        assert "\n" not in told[0]
        refused = client.put("/v1/tasks/tone", content=tar_of(folder / "bad"))
        assert (refused.status_code, refused.headers["content-type"]) == (422, "application/problem+json")
        assert str(folder) not in refused.json()["detail"]
        # Another server has changed something: every request reads the folder again.
        Folder(folder).changed()
        assert "answer" in client.post("/v1/predict", json=ASK).json()["answers"][0]
        registry = app.state.service.registry
        registry.scan(told.append)
        assert len(told) == 1
        shutil.rmtree(folder / "bad")
        shutil.copytree(made["new"], folder / "bad")
        registry.scan(told.append)
        assert (registry.names, len(told)) == (["bad", "tone"], 1)


def test_a_folder_whose_rights_change_is_read_again(folder: Path) -> None:
    stamp = Folder(folder).stamp("tone")
    (folder / "tone" / WEIGHTS).chmod(0o600)  # An owner may read again what was copied by another.
    assert Folder(folder).stamp("tone") != stamp


def test_the_follower_lives_on(tiny_bert: Path, folder: Path, made: dict[str, Path]) -> None:
    told: list[str] = []
    with TestClient(application(folder, str(tiny_bert), watch=True, report=told.append)) as client:
        time.sleep(0.5)  # Until it watches.
        (folder / ".lock").unlink()
        (folder / ".lock").mkdir()
        shutil.copytree(made["new"], folder / "topic")
        until(lambda: told, 20)
        assert "cannot be read again" in told[0]
        (folder / ".lock").rmdir()
        shutil.copytree(made["third"], folder / "third")
        until(lambda: {task["name"] for task in client.get("/v1/tasks").json()} == {"tone", "topic", "third"}, 20)


def test_a_change_that_fails_at_its_end_is_taken_back(client: TestClient, folder: Path, made: dict[str, Path]) -> None:
    before, answer = tree(folder), client.post("/v1/predict", json=ASK).json()
    earlier = folder / ".versions" / "tone" / version_id(made["old"])
    earlier.parent.mkdir(parents=True)
    earlier.write_text("no folder can lie here")
    refused = client.put("/v1/tasks/tone", content=tar_of(made["new"]))
    assert (refused.status_code, "nothing has changed" in refused.json()["detail"]) == (503, True)
    earlier.unlink()
    assert tree(folder) == before
    assert not (folder / ".tone.aside").exists()
    assert client.post("/v1/predict", json=ASK).json() == answer
    assert client.put("/v1/tasks/tone", content=tar_of(made["new"])).status_code == 200
    assert client.post("/v1/predict", json=ASK).json() != answer


class Killed:
    """Copies of a folder as a kill would leave it, before each step that a change of it makes on the disk."""

    STEPS = ("os.rename", "os.mkdir", "os.rmdir", "os.remove", "open", "shutil.copyfile")
    watching: "Killed | None" = None

    def __init__(self, folder: Path, copies: Path) -> None:
        self.folder, self.copies, self.count = folder, copies, 0

    def __enter__(self) -> "Killed":
        Killed.watching = self
        return self

    def __exit__(self, *error: object) -> None:
        Killed.watching = None

    @staticmethod
    def hook(event: str, args: tuple[Any, ...]) -> None:
        one = Killed.watching
        if one is None or event not in Killed.STEPS or not str(args[0]).startswith(str(one.folder)):
            return
        Killed.watching = None
        one.step()
        one.count += 1
        Killed.watching = one

    def step(self) -> None:
        """What is done before each step."""
        shutil.copytree(self.folder, self.copies / str(self.count))


class Read(Killed):
    """Somebody who reads the task before each step of a change."""

    def step(self) -> None:
        """Read it, if it is there."""
        with suppress(StoreError):
            store.read(self.folder / "tone")


# There is no way to take an audit hook off again; without a `Killed` at work it does nothing.
sys.addaudithook(Killed.hook)

CHANGES: dict[str, tuple[Callable[[Registry, dict[str, Path]], object], set[str]]] = {
    "replaced": (lambda registry, made: registry.put("tone", copy_of(made["third"])), {"new", "third"}),
    "back": (lambda registry, made: registry.roll_back("tone"), {"new", "old"}),
    "tried": (lambda registry, made: registry.put("tone", copy_of(made["third"]), 0.5), {"new"}),
    "tried and put": (
        lambda registry, made: [registry.put("tone", copy_of(made["third"]), share) for share in (0.5, None)],
        {"new", "third"},
    ),
    "removed": (lambda registry, made: registry.remove("tone"), {"new", ""}),
}


@pytest.fixture
def registry(tiny_bert: Path, folder: Path, made: dict[str, Path]) -> Registry:
    """With two versions of `tone`: the new one answers."""
    found = Registry(Bank(str(tiny_bert)), folder)
    found.scan()
    found.put("tone", copy_of(made["new"]))
    return found


def check_trial(tiny_bert: Path, registry: Registry, made: dict[str, Path]) -> None:
    """What is on trial is so after a next change too, for another server as well, and nothing else is."""
    trial = registry.task("tone").trial
    registry.put("tone", copy_of(made["old"]))
    another = Registry(Bank(load_backbone(str(tiny_bert))), registry.folder.path)
    another.scan(pytest.fail)
    for one in (registry, another):
        now = one.task("tone").trial
        assert (now and now.version.id) == (trial and trial.version.id)


@pytest.mark.parametrize("change", CHANGES)
def test_a_kill_at_any_step_leaves_one_version_whole(
    tiny_bert: Path, folder: Path, made: dict[str, Path], registry: Registry, tmp_path: Path, change: str
) -> None:
    work, allowed = CHANGES[change]
    (tmp_path / "copies").mkdir()
    with Killed(folder, tmp_path / "copies") as killed:
        work(registry, made)
    names = {version_id(place): name for name, place in made.items()}
    found: set[str] = set()
    assert killed.count >= 3
    for copy in (tmp_path / "copies").iterdir():
        after = Registry(Bank(load_backbone(str(tiny_bert))), copy)
        after.scan(pytest.fail)
        found.add(names[after.task("tone").active.id] if after.names else "")
        if "" not in allowed:
            assert {names[version.id] for version in after.task("tone").versions} >= {"old", "new"}
            check_trial(tiny_bert, after, made)
    assert found <= allowed
    assert "new" in found


@pytest.mark.parametrize("change", sorted(CHANGES.keys() - {"removed"}))
def test_who_reads_at_any_step_changes_nothing(
    tiny_bert: Path, folder: Path, made: dict[str, Path], registry: Registry, tmp_path: Path, change: str
) -> None:
    work, allowed = CHANGES[change]
    with Read(folder, tmp_path) as reader:
        work(registry, made)
    assert reader.count >= 3
    names = {version_id(place): name for name, place in made.items()}
    assert {names[registry.task("tone").active.id]} == (allowed - {"new"} or allowed)
    after = Registry(Bank(load_backbone(str(tiny_bert))), folder)
    after.scan(pytest.fail)
    assert [v.id for v in after.task("tone").versions] == [v.id for v in registry.task("tone").versions]


def test_what_an_upload_left_goes_after_a_day(registry: Registry, folder: Path) -> None:
    old, new = folder / ".incoming" / "old", folder / ".incoming" / "new"
    marks = [folder / ".revision.old", folder / ".revision.new"]
    for place in (old, new):
        (place / "part").mkdir(parents=True)
    for place in (old, marks[0]):
        place.touch()
        os.utime(place, (1, 1))
    marks[1].touch()
    registry.scan()
    assert [place.exists() for place in (old, new, *marks)] == [False, True, False, True]


def test_a_folder_that_nobody_may_write_is_served_as_it_lies(tiny_bert: Path, made: dict[str, Path]) -> None:
    bank = Bank(str(tiny_bert))
    with unwritable(dict.fromkeys(("tone", ".topic.old", ".third.aside"), made["old"])) as home:
        registry = Registry(bank, home)
        registry.scan(pytest.fail)
        assert registry.names == ["tone"]
        assert registry.route("tone").held.row.numel()
        assert sorted(place.name for place in home.iterdir()) == [".third.aside", ".topic.old", "tone"]


def bombs() -> Iterator[tuple[str, bytes, str]]:
    def tar(*members: tuple[tarfile.TarInfo, bytes]) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            for info, content in members:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return buffer.getvalue()

    def named(name: str, kind: bytes = tarfile.REGTYPE) -> tarfile.TarInfo:
        info = tarfile.TarInfo(name)
        info.type = kind
        return info

    zeros = bytes(4_000_000)
    yield "file", gzip.compress(tar((named("task.json"), zeros))), "unpacks to more than"
    yield "long name", gzip.compress(tar((named("././@LongLink", tarfile.GNUTYPE_LONGNAME), zeros))), "unpacks to more"
    yield "heads", gzip.compress(tar((named("x", tarfile.XHDTYPE), zeros))), "unpacks to more than"
    yield "chain", tar(*[(named("x", tarfile.GNUTYPE_LONGNAME), b"y")] * 900), "no readable tar"
    yield "sparse", tar((named("task.json", tarfile.GNUTYPE_SPARSE), b"x")), "no plain file"
    yield "cut", gzip.compress(tar((named("task.json"), b"x" * 5000)))[:-40], "no readable tar"
    # The head of a member may say any length, also one below nothing.
    yield "negative", tar((named("task.json"), b"x")).replace(b"00000000001\0", b"\xff" * 12, 1), "no readable tar"


@pytest.mark.parametrize(("name", "content", "detail"), [pytest.param(*bomb, id=bomb[0]) for bomb in bombs()])
def test_packed_bombs_are_refused(tiny_bert: Path, folder: Path, name: str, content: bytes, detail: str) -> None:
    before = tree(folder)
    with TestClient(application(folder, str(tiny_bert), limits=Limits(upload_limit=2_000_000))) as client:
        refused = client.put("/v1/tasks/tone", content=content)
    assert refused.status_code == 422
    assert detail in refused.json()["detail"]
    assert tree(folder) == before
