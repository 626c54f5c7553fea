"""State files after power cuts, kills and faults: what was acknowledged is there, whole."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from dgents.backends import file_commit, file_upkeep, files
from dgents.backends.file_format import Format
from dgents.backends.file_log import decode_head
from dgents.backends.file_log_reader import LogReader
from dgents.backends.file_reader import log_path
from dgents.backends.file_upkeep import Settings
from dgents.runtime.errors import StateCorruptionError, StateError, StorageError
from tests.disk import FaultyLayer, KillingLayer, RecordingLayer, StutteringLayer, in_child
from tests.file_states import CODEC, Owner, check, live, settings, state_of

# How a state is stored, and how many bytes of versions the first commit takes without a log.
STORIES: dict[str, tuple[Settings, int]] = {
    "json": (settings(), 0),
    "json, a log later": (settings(), 10**6),
    "json without history": (settings(max_history=0), 0),
    "msgpack": (settings("msgpack"), 0),
    "msgpack, a log later": (settings("msgpack"), 10**6),
    "msgpack without history": (settings("msgpack", max_history=0), 0),
    "gzip": (settings("msgpack", "gzip"), 0),
}
SIZES = (3, 2, 1, 1, 3, 1, 4)
STEPS = (
    "refreshed",
    "temp-written",
    "temp-synced",
    "log-appended",
    "log-synced",
    "log-renamed",
    "renamed",
    "directory-synced",
)


@pytest.fixture(autouse=True)
def _upkeep(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Let every story go through what is seldom due."""
    callspec = getattr(request.node, "callspec", None)
    story = callspec.params.get("story") if callspec else None
    monkeypatch.setattr(file_upkeep, "TAIL_COUNT", 4)
    monkeypatch.setattr(file_commit, "UNLOGGED_BYTES", STORIES[story][1] if story else 0)


@pytest.fixture
def folders(tmp_path: Path) -> Iterator[Path]:
    number = iter(range(10**9))

    class Fresh:
        def __next__(self) -> Path:
            return tmp_path / f"image-{next(number)}"

    return Fresh()  # type: ignore[return-value]


def cut(root: Path, story: str, images: Iterator[Path], *, deaf: str = "", limit: int, seed: int) -> int:
    """Cut the power at every moment of a story, and check every image of it; return how many there were."""
    chosen = STORIES[story][0]
    root.mkdir()
    disk = RecordingLayer(root, deaf=deaf, limit=limit, seed=seed)
    found = disk.power_cuts(lambda: live(root / "s", chosen, SIZES, disk.acknowledge))
    chance = random.Random(seed)
    chosen_images = found if limit > 8 else chance.sample(found, min(len(found), 150))
    for image in chosen_images:
        check(image.materialise(next(images)) / "s", chosen, max(image.acknowledged, default=0), SIZES)
    return len(chosen_images)


@pytest.mark.parametrize("story", STORIES)
def test_what_was_acknowledged_survives_a_power_cut_at_any_moment(
    story: str, tmp_path: Path, folders: Iterator[Path]
) -> None:
    assert cut(tmp_path / "disk", story, folders, limit=4, seed=7) > 50


@pytest.mark.torture
@pytest.mark.parametrize("story", STORIES)
def test_what_was_acknowledged_survives_every_power_cut(story: str, tmp_path: Path, folders: Iterator[Path]) -> None:
    seed = int(os.environ.get("DGENTS_SEED") or random.randrange(2**32))
    print(f"DGENTS_SEED={seed}")
    assert cut(tmp_path / "disk", story, folders, limit=300, seed=seed) > 250


@pytest.mark.parametrize(
    ("story", "deaf"),
    [
        ("json without history", "fsync"),
        ("json", "fsync_directory"),
        ("json", "fdatasync"),
        ("json, a log later", "fsync"),
        ("msgpack", "fdatasync"),
        ("msgpack", "fsync_directory"),
    ],
)
def test_the_power_cuts_find_a_sync_that_was_left_out(
    story: str, deaf: str, tmp_path: Path, folders: Iterator[Path]
) -> None:
    with pytest.raises((AssertionError, StateError)):
        cut(tmp_path / "disk", story, folders, deaf=deaf, limit=12, seed=7)


def killed_at(path: Path, story: str, step: str, at: int) -> tuple[int, int]:
    """Run a story in a child that is killed at a step; return its exit code and what it acknowledged."""
    chosen = STORIES[story][0]
    acknowledged = os.open(path.with_suffix(".acks"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)

    def work() -> None:
        with files.use(KillingLayer(step, at=at)):
            live(path, chosen, SIZES, lambda version: void(os.write(acknowledged, b"%d\n" % version)))

    code = in_child(work)
    os.close(acknowledged)
    return code, max(map(int, path.with_suffix(".acks").read_text().split()), default=0)


@pytest.mark.torture
@pytest.mark.parametrize("story", STORIES)
def test_what_was_acknowledged_survives_kills_at_random_moments(story: str, tmp_path: Path) -> None:
    seed = int(os.environ.get("DGENTS_SEED") or random.randrange(2**32))
    print(f"DGENTS_SEED={seed}")
    chance, chosen, sizes = random.Random(seed), STORIES[story][0], SIZES * 40
    for number in range(50):
        path = tmp_path / str(number) / "s"
        path.parent.mkdir()
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            live(path, chosen, sizes, lambda version: void(os.write(writing, b"%d\n" % version)))  # noqa: B023
            os._exit(0)
        os.close(writing)
        acknowledged = b""
        for _ in range(chance.randrange(1, 60)):
            acknowledged += os.read(reading, 4096)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while more := os.read(reading, 4096):
            acknowledged += more
        os.close(reading)
        check(path, chosen, int(acknowledged.split()[-1]), sizes)


def void(_: object) -> None:
    return None


@pytest.mark.parametrize("story", ["json", "msgpack", "json without history"])
@pytest.mark.parametrize("step", STEPS)
def test_what_was_acknowledged_survives_a_kill_at_each_step(story: str, step: str, tmp_path: Path) -> None:
    chosen = STORIES[story][0]
    for at in (1, 2, 5):
        path = tmp_path / str(at) / "s"
        path.parent.mkdir()
        _, acknowledged = killed_at(path, story, step, at)
        check(path, chosen, acknowledged, SIZES)


@pytest.mark.parametrize(
    ("story", "step"),
    [
        ("json without history", "renamed"),
        ("json", "refreshed"),
        ("json", "log-synced"),
        ("msgpack", "log-appended"),
        ("json", "temp-synced"),
        ("json, a log later", "log-renamed"),
    ],
)
def test_the_steps_at_which_owners_are_killed_do_come(story: str, step: str, tmp_path: Path) -> None:
    assert killed_at(tmp_path / "s", story, step, 1)[0] == -9


@pytest.mark.parametrize("operation", ["write_some", "fsync", "fdatasync", "replace", "fsync_directory"])
@pytest.mark.parametrize("story", ["json", "json, a log later", "msgpack", "gzip"])
def test_a_disk_that_fails_once_costs_no_acknowledged_version(story: str, operation: str, tmp_path: Path) -> None:
    chosen = STORIES[story][0]
    for at in (1, 2, 3):
        path = tmp_path / str(at) / "s"
        owner = Owner(path, chosen)
        owner.open()
        assert [owner.commit(size) for size in (1, 2, 1)] == [None] * 3
        with files.use(FaultyLayer(operation, errno.EIO, at=at)), contextlib.suppress(StorageError):
            owner.commit(2)
            owner.commit(2)
        acknowledged = owner.version
        owner.close()
        check(path, chosen, acknowledged, (1, 2, 1, 2, 2))


def test_a_state_whose_commit_failed_takes_no_more_before_it_was_read_again(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "s", settings())
    owner.open()
    with files.use(FaultyLayer("fsync", errno.EIO)), pytest.raises(StorageError, match="disk failed"):
        owner.commit()
    assert isinstance(owner.commit(), StorageError)
    owner.open()
    assert owner.commit() is None
    owner.close()


def test_a_full_disk_is_no_obstacle_once_there_is_room(tmp_path: Path) -> None:
    owner = Owner(tmp_path / "s", settings())
    owner.open()
    assert owner.commit() is None
    with files.use(FaultyLayer("write_some", errno.ENOSPC)), pytest.raises(StorageError, match="disk is full"):
        owner.commit()
    assert owner.open().record is not None
    assert owner.commit() is None
    assert owner.version == 2
    owner.close()


@pytest.mark.parametrize(
    ("story", "operation"),
    [("json", "fdatasync"), ("json without history", "fsync_directory"), ("msgpack", "fdatasync")],
)
def test_after_a_failed_fsync_what_is_read_is_written_anew(story: str, operation: str, tmp_path: Path) -> None:
    owner = Owner(tmp_path / "s", STORIES[story][0])
    owner.open()
    assert [owner.commit() for _ in range(3)] == [None] * 3
    with files.use(FaultyLayer(operation, errno.EIO)), pytest.raises(StorageError):
        owner.commit()
    before = {path.name: path.stat().st_ino for path in tmp_path.iterdir() if path.suffix != ".lock"}
    owner.open()
    assert owner.version == 4
    assert all((tmp_path / name).stat().st_ino != inode for name, inode in before.items())
    owner.close()


def test_short_and_interrupted_writes_are_completed(tmp_path: Path) -> None:
    with files.use(StutteringLayer()):
        live(tmp_path / "s", settings("msgpack"), SIZES, void)
    check(tmp_path / "s", settings("msgpack"), sum(SIZES), SIZES)


def test_one_failing_file_does_not_hide_what_became_of_the_others(tmp_path: Path) -> None:
    owners = [Owner(tmp_path / name, settings("msgpack")) for name in "abc"]
    for owner in owners:
        owner.open()
        assert [owner.commit() for _ in range(3)] == [None] * 3
    with files.use(FaultyLayer("fdatasync", errno.EIO)), pytest.raises(StorageError):
        owners[0].store._commit([owner.write() for owner in owners])
    for owner in owners:
        owner.open()
        assert owner.version in (3, 4)
        assert owner.states()[-1] == state_of(owner.version)
        assert owner.commit() is None
        owner.close()


def test_a_stale_temp_file_is_removed_and_never_read(tmp_path: Path) -> None:
    live(tmp_path / "s", settings(), (1,), void)
    files.temp_path(tmp_path / "s").write_bytes(b"half a state")
    check(tmp_path / "s", settings(), 1, (1,))
    assert not files.temp_path(tmp_path / "s").exists()


def test_a_torn_end_of_the_log_is_cut_at_every_byte(tmp_path: Path) -> None:
    chosen = settings("msgpack", max_history=9)
    live(tmp_path / "s", chosen, (1,) * 4, void)
    log = tmp_path / "s.history"
    before = log.stat().st_size
    live_on = Owner(tmp_path / "s", chosen)
    live_on.open()
    live_on.commit()
    live_on.close()
    whole = log.read_bytes()
    for size in range(before, len(whole)):
        log.write_bytes(whole[:size])
        owner = Owner(tmp_path / "s", chosen)
        opened = owner.open()
        assert opened.record is not None
        assert CODEC.decode(opened.record.data or b"") == state_of(4)
        owner.close()


@pytest.mark.parametrize("garbage", [b"\0" * 300, b"garbage " * 40, os.urandom(200)], ids=["zeros", "text", "random"])
def test_garbage_at_the_end_of_the_log_is_cut(garbage: bytes, tmp_path: Path) -> None:
    chosen = settings("msgpack", max_history=9)
    live(tmp_path / "s", chosen, (1,) * 4, void)
    with open(tmp_path / "s.history", "ab") as log:
        log.write(garbage)
    check(tmp_path / "s", chosen, 4, (1,) * 4)


def ends_of(log: Path) -> list[int]:
    """Return where each entry of a log begins, and where the last one ends."""
    content = log.read_bytes()
    head = decode_head(content, str(log))
    return [head.size, *(end for end, _ in LogReader(content, head, str(log)).entries(head.size))]


def test_a_log_cut_at_any_entry_that_the_readable_file_knows_of_is_noticed(tmp_path: Path) -> None:
    path, chosen = tmp_path / "s", settings(max_history=100)
    live(path, chosen, [1] * 12, void, pad=1000)
    log = log_path(path)
    content = log.read_bytes()
    *before, end = ends_of(log)
    assert (len(before), end) == (12, len(content))
    for place in before:
        log.write_bytes(content[:place])
        with pytest.raises(StateCorruptionError, match="was acknowledged"):
            Owner(path, chosen).open()
        assert log.read_bytes() == content[:place]
    log.write_bytes(content)
    check(path, chosen, 12, [1] * 12, pad=1000)


@pytest.mark.parametrize("format", ["json", "msgpack"])
@pytest.mark.parametrize("is_open", [True, False])
def test_a_log_cut_at_any_entry_is_noticed_by_its_owner(format: Format, is_open: bool, tmp_path: Path) -> None:
    path, chosen = tmp_path / "s", settings(format, max_history=100)
    owner = Owner(path, chosen, pad=1000)
    owner.open()
    for _ in range(6):
        assert owner.commit() is None
    log = log_path(path)
    if not is_open:
        owner.state.close()
    content = log.read_bytes()
    for place in ends_of(log)[:-1]:
        log.write_bytes(content[:place])
        if is_open:
            assert isinstance(owner.commit(), StateCorruptionError)
        owner.state.close()
        with pytest.raises(StateCorruptionError):
            owner.open()
        log.write_bytes(content)
        owner.open()
        if not is_open:
            owner.state.close()
    assert owner.version == 6
    owner.close()
