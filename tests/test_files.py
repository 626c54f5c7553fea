"""Files: what is safe to name them, to open, to replace, and what is said when the system refuses."""

from __future__ import annotations

import errno
import os
import resource
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from dgents.backends import files
from dgents.runtime.errors import StorageError
from tests.disk import FaultyLayer, Image, KillingLayer, RecordingLayer, StutteringLayer, in_child

OLD = b"the old content"
NEW = b"the new content, which is longer"
STEPS = ["temp-written", "temp-synced", "renamed", "directory-synced"]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A file that holds OLD, in a folder of its own."""
    path = tmp_path / "place" / "state"
    files.layer.make_directories(path.parent)
    files.write_atomically(path, OLD)
    return path


@pytest.mark.parametrize("step", STEPS)
def test_a_kill_at_each_step_leaves_the_old_or_the_new_content(state: Path, step: str) -> None:
    def work() -> None:
        with files.use(KillingLayer(step)):
            files.write_atomically(state, NEW)

    assert in_child(work) == -9
    assert files.layer.read(state) == (NEW if step in {"renamed", "directory-synced"} else OLD)


@pytest.mark.parametrize("step", STEPS[:2])
def test_the_temp_file_of_a_dead_process_is_replaced_and_can_be_removed(state: Path, step: str) -> None:
    def work() -> None:
        with files.use(KillingLayer(step)):
            files.write_atomically(state, NEW)

    in_child(work)
    assert files.temp_path(state).exists()
    files.write_atomically(state, NEW)
    assert os.listdir(state.parent) == ["state"]
    files.temp_path(state).touch()
    files.remove_stale_temp(state)
    files.remove_stale_temp(state)
    assert os.listdir(state.parent) == ["state"]


def survives_power_cuts(state: Path, fresh: Path, deaf: str) -> bool:
    """Tell whether every power cut leaves the old or new content, the new one once it was acknowledged."""
    disk = RecordingLayer(state.parent, deaf=deaf)

    def work() -> None:
        files.write_atomically(state, NEW)
        disk.acknowledge(NEW)

    contents = [
        (image.acknowledged, (image.materialise(fresh / str(n)) / "state").read_bytes())
        for n, image in enumerate(disk.power_cuts(work))
    ]
    assert len(contents) > 5
    return all(found == NEW or (found == OLD and not acknowledged) for acknowledged, found in contents)


def test_a_power_cut_at_any_moment_leaves_the_old_or_the_new_content(state: Path, tmp_path: Path) -> None:
    assert survives_power_cuts(state, tmp_path, deaf="")


@pytest.mark.parametrize("deaf", ["fsync", "fsync_directory"])
def test_the_power_cut_test_fails_with_a_sync_taken_out(state: Path, tmp_path: Path, deaf: str) -> None:
    assert not survives_power_cuts(state, tmp_path, deaf=deaf)


def test_a_new_folder_survives_a_power_cut(tmp_path: Path) -> None:
    disk = RecordingLayer(tmp_path)

    def work() -> None:
        files.layer.make_directories(tmp_path / "a" / "b")
        disk.acknowledge("made")

    images = disk.power_cuts(work)
    assert any(not image.files for image in images)
    assert all(("a/b", None) in image.files for image in images if image.acknowledged)


class SlowDisk(RecordingLayer):
    """Takes its time to draw the images, and says when the record changed meanwhile."""

    def images(self) -> Iterator[Image]:
        before = dict(self._names)
        time.sleep(0.002)
        assert self._names == before
        yield from super().images()


def test_one_thread_may_write_while_another_tells_what_was_acknowledged(tmp_path: Path) -> None:
    disk = SlowDisk(tmp_path, limit=2)

    def write() -> None:
        for number in range(10):
            files.write_atomically(tmp_path / str(number), NEW)

    def work() -> None:
        with ThreadPoolExecutor(1) as writers:
            writer = writers.submit(write)
            while not writer.done():
                disk.acknowledge("more")
                time.sleep(0.001)  # The record is free for the writer.
            writer.result()

    assert len(disk.power_cuts(work)) > 5


@pytest.mark.parametrize("operation", ["open", "write_some", "fsync", "replace"])
def test_a_failure_leaves_the_old_content_and_no_temp_file(state: Path, operation: str) -> None:
    with files.use(FaultyLayer(operation, errno.EIO)), pytest.raises(OSError, match="Input/output"):
        files.write_atomically(state, NEW)
    assert files.layer.read(state) == OLD
    assert os.listdir(state.parent) == ["state"]


def test_a_failed_sync_of_the_folder_is_an_error(state: Path) -> None:
    with files.use(FaultyLayer("fsync_directory", errno.EIO)), pytest.raises(OSError, match="Input/output"):
        files.write_atomically(state, NEW)
    assert files.layer.read(state) == NEW


def test_short_and_interrupted_writes_are_completed(state: Path) -> None:
    with files.use(StutteringLayer()) as disk:
        files.write_atomically(state, NEW)
        fd = disk.open(state, os.O_RDWR)
        disk.write(fd, b"NEWER", 4)
        disk.close(fd)
    assert files.layer.read(state) == b"the NEWERontent, which is longer"


def test_a_write_beyond_the_file_size_limit_changes_nothing(state: Path) -> None:
    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with pytest.raises(StorageError, match="EFBIG"), files.storage_errors(state, "save"):
            files.write_atomically(state, bytes(5000))
        assert files.layer.read(state) == OLD
        assert os.listdir(state.parent) == ["state"]

    assert in_child(work) == 0


def test_files_and_folders_are_for_their_user_alone(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "state"
    files.layer.make_directories(path.parent)
    files.write_atomically(path, NEW)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700
    assert path.parent.parent.stat().st_mode & 0o777 == 0o700


def test_a_file_that_others_may_read_is_not_reused_as_temp_file(state: Path) -> None:
    files.temp_path(state).touch(mode=0o666)
    files.write_atomically(state, NEW)
    assert state.stat().st_mode & 0o777 == 0o600


def test_a_symlink_is_refused_and_what_it_leads_to_untouched(state: Path) -> None:
    link = state.with_name("link")
    link.symlink_to(state)
    with pytest.raises(StorageError, match="link is a symlink") as caught:
        files.layer.open(link, os.O_WRONLY | os.O_TRUNC)
    assert not caught.value.retryable
    assert files.layer.read(state) == OLD


def test_a_symlink_in_place_of_the_temp_file_is_not_followed(state: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(OLD)
    files.temp_path(state).symlink_to(victim)
    files.write_atomically(state, NEW)
    assert victim.read_bytes() == OLD
    assert not state.is_symlink()


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_WRONLY, os.O_RDWR])
def test_a_pipe_in_the_files_place_is_refused_without_waiting(tmp_path: Path, flags: int) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(StorageError, match="not a file"):
        files.layer.open(tmp_path / "pipe", flags)


def test_a_folder_in_the_files_place_is_refused(tmp_path: Path) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR):
        with pytest.raises(StorageError, match="is a folder"), files.storage_errors(tmp_path, "open"):
            files.layer.open(tmp_path, flags)


def test_a_file_in_the_folders_place_is_refused(state: Path) -> None:
    with pytest.raises(NotADirectoryError):
        files.layer.make_directories(state)
    with pytest.raises(NotADirectoryError):
        files.layer.make_directories(state / "below")


def test_refusals_leave_no_descriptor_open(tmp_path: Path, state: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = len(os.listdir("/dev/fd"))
    for _ in range(20):
        for path in (tmp_path, tmp_path / "pipe", state / "x"):
            with pytest.raises(OSError):  # noqa: PT011 -- which one it is, the tests above say
                files.layer.open(path, os.O_RDONLY)
        files.write_atomically(state, NEW)
    assert len(os.listdir("/dev/fd")) == before


def test_a_large_file_is_read_whole(tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    files.write_atomically(tmp_path / "large", data)
    assert files.layer.read(tmp_path / "large") == data
    files.write_atomically(tmp_path / "empty", b"")
    assert files.layer.read(tmp_path / "empty") == b""


RETRYABLE = {errno.ENOSPC: True, errno.EDQUOT: True, errno.EFBIG: True, errno.EIO: True, errno.EACCES: False}
RETRYABLE |= {errno.EPERM: False, errno.EROFS: False, errno.EISDIR: False, errno.ENOTDIR: False}
RETRYABLE |= {errno.ENAMETOOLONG: False, errno.ENOENT: False, errno.EMFILE: True, errno.EXDEV: True}


@pytest.mark.parametrize("code", RETRYABLE, ids=errno.errorcode.get)
def test_each_error_names_operation_path_code_and_remedy(code: int) -> None:
    with pytest.raises(StorageError) as caught, files.storage_errors("/data/x", "save", actor="user/7"):
        raise OSError(code, os.strerror(code))
    error = caught.value
    assert str(error).startswith("save of /data/x failed: ")
    assert errno.errorcode[code] in str(error)
    assert error.hint
    assert error.actor == "user/7"
    assert error.retryable is RETRYABLE[code]
    assert isinstance(error.__cause__, OSError)


def test_a_storage_error_is_passed_on_as_it_is() -> None:
    inner = StorageError("inner")
    assert files.storage_error(inner, "x", "save") is inner
    with pytest.raises(StorageError) as caught, files.storage_errors("x", "save"):
        raise inner
    assert caught.value is inner


def test_a_path_that_is_too_long_is_named_as_such(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="too long"), files.storage_errors(tmp_path, "save"):
        files.write_atomically(tmp_path / ("x" * 300), NEW)


def as_nobody(work: Callable[[], None]) -> int:
    """Run ``work`` in a child as the user nobody: root is refused nothing."""

    def child() -> None:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        work()

    return in_child(child)


def test_a_folder_without_permission_is_an_error_that_says_so(tmp_path: Path) -> None:
    for folder in (tmp_path, *tmp_path.parents[:2]):
        folder.chmod(0o755)
    place = tmp_path / "place"
    place.mkdir(mode=0o500)

    def work() -> None:
        with pytest.raises(StorageError, match="EACCES"), files.storage_errors(place, "save"):
            files.write_atomically(place / "state", NEW)

    assert as_nobody(work) == 0


NAMES = [
    "",
    ".",
    "..",
    "/",
    "a/b",
    "a%2fb",
    "a\0b",
    "Ann",
    "ann",
    "ANN",
    "a.lock",
    "a",
    "-",
    "~",
    "%",
    " ",
    "\n",
]
NAMES += ["é", "e\u0301", "\u202eabc", "abc", "\ud800", "con", "ß", "ss", "ﬀ", "ff", "İ", "i", "ı", "K", "k"]
NAMES += ["x" * n for n in (199, 200, 201, 202, 5000)] + ["X" * n for n in (66, 67, 68, 200, 5000)]
NAMES += ["é" * 2000, "é" * 2001, "x" * 200 + "/", "x" * 159 + "~" + "0" * 40]


def test_distinct_names_become_distinct_file_names_also_without_case() -> None:
    assert len({files.safe_name(name).casefold() for name in NAMES}) == len(NAMES)


@pytest.mark.parametrize("name", NAMES, ids=lambda name: ascii(name)[:20])
def test_a_safe_name_is_short_plain_and_stays_in_its_folder(name: str, tmp_path: Path) -> None:
    safe = files.safe_name(name)
    assert safe.isascii()
    assert len(safe) <= 200
    assert not set(safe) & set("./\\\0 ")
    files.write_atomically(tmp_path / f"{safe}.state", NEW)
    assert os.listdir(tmp_path) == [f"{safe}.state"]


def test_plain_names_stay_readable() -> None:
    assert files.safe_name("user_7-eu") == "user_7-eu"
    assert files.safe_name("user/7") == "user%2f7"
    assert files.safe_name("a" * 500).startswith("a" * 150)


def test_another_layer_is_used_only_inside_the_block() -> None:
    before = files.layer
    with files.use(StutteringLayer()) as other:
        assert files.layer is other
    assert files.layer is before
