"""The owner's lock: one owner, named to the others, let go by release, death and nothing else."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from dgents.backends import files
from dgents.backends.lock import OwnerLock
from dgents.runtime.errors import OwnershipLostError, StateLockedError, StorageError
from tests.disk import FaultyLayer, in_child

OWNER = """
import sys
from pathlib import Path
from dgents.backends.lock import OwnerLock
lock = OwnerLock(Path(sys.argv[1]))
lock.acquire()
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "state.lock"


def owner_process(path: Path) -> subprocess.Popen[str]:
    """Start another process that owns the lock until its input ends."""
    command = [sys.executable, "-c", OWNER, str(path)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_another_process_is_refused_at_once_and_told_the_owners_pid_and_host(path: Path) -> None:
    with owner_process(path) as process:
        with pytest.raises(StateLockedError) as caught:
            OwnerLock(path, actor="user/7").acquire()
        process.communicate()
    assert (caught.value.pid, caught.value.host) == (process.pid, socket.gethostname())
    assert caught.value.actor == "user/7"
    assert str(process.pid) in str(caught.value)
    assert str(path.with_suffix("")) in str(caught.value)


def test_sigkill_of_the_owner_releases_the_lock(path: Path) -> None:
    with owner_process(path) as process:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    lock = OwnerLock(path)
    lock.acquire()
    lock.check()
    lock.release()


def test_another_runtime_of_the_same_process_is_refused(path: Path) -> None:
    first, second = OwnerLock(path), OwnerLock(path)
    first.acquire()
    with pytest.raises(StateLockedError, match="another runtime of this process"):
        second.acquire()
    assert not second.held
    first.release()
    second.acquire()
    second.release()


def test_acquire_and_release_may_be_repeated(path: Path) -> None:
    lock = OwnerLock(path)
    for _ in range(2):
        lock.acquire()
        lock.acquire()
        assert lock.held
        lock.release()
        lock.release()
        assert not lock.held
    assert path.exists()


def test_the_file_tells_pid_host_and_start_and_is_for_its_user_alone(path: Path) -> None:
    lock = OwnerLock(path)
    lock.acquire()
    owner = json.loads(path.read_bytes())
    assert owner["pid"] == os.getpid()
    assert owner["host"] == socket.gethostname()
    assert owner["started"].endswith("Z")
    assert path.stat().st_mode & 0o777 == 0o600
    lock.release()
    assert path.read_bytes() == b""


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"pid": "x", "host": 3}', b"\xff" * 9000, b"[" * 9000])
def test_an_unreadable_owner_is_still_an_owner(path: Path, content: bytes) -> None:
    lock = OwnerLock(path)
    lock.acquire()
    path.write_bytes(content)
    with pytest.raises(StateLockedError, match="another process") as caught:
        OwnerLock(path).acquire()
    assert caught.value.pid is None
    lock.release()


def test_a_full_disk_does_not_keep_the_lock_from_its_owner(path: Path) -> None:
    path.write_text('{"pid": 1, "host": "elsewhere"}')
    lock = OwnerLock(path)
    with files.use(FaultyLayer("write_some", errno.ENOSPC)):
        lock.acquire()
    with pytest.raises(StateLockedError) as caught:
        OwnerLock(path).acquire()
    assert caught.value.pid is None
    lock.release()


def test_a_symlink_in_its_place_is_refused(path: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    path.symlink_to(victim)
    with pytest.raises(StorageError, match="symlink"):
        OwnerLock(path).acquire()
    assert victim.read_text() == "precious"


def test_a_missing_folder_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="ENOENT"):
        OwnerLock(tmp_path / "missing" / "state.lock").acquire()


class ReplacedLayer(files.FileLayer):
    """Removes the lock's file between its being opened and its being locked, the first ``times`` times."""

    def __init__(self, times: int) -> None:
        self.times = times

    def open(self, path: Path, flags: int, mode: int = 0o600) -> int:
        fd = super().open(path, flags, mode)
        if self.times:
            self.times -= 1
            path.unlink()
        return fd


def test_a_file_that_was_removed_between_open_and_lock_is_not_taken_for_the_lock(path: Path) -> None:
    lock = OwnerLock(path)
    with files.use(ReplacedLayer(3)):
        lock.acquire()
    lock.check()
    with pytest.raises(StateLockedError):
        OwnerLock(path).acquire()
    lock.release()


def test_a_file_that_is_always_removed_is_an_error_in_the_end(path: Path) -> None:
    before = len(os.listdir("/dev/fd"))
    with files.use(ReplacedLayer(10**6)), pytest.raises(StorageError, match="replaced all the time"):
        OwnerLock(path).acquire()
    assert len(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("replaced", [False, True])
def test_an_owner_whose_file_was_removed_or_replaced_finds_out(path: Path, replaced: bool) -> None:
    lock = OwnerLock(path)
    lock.acquire()
    path.unlink()
    if replaced:
        path.touch()
    with pytest.raises(OwnershipLostError, match="removed or replaced"):
        lock.check()
    lock.release()
    with pytest.raises(OwnershipLostError, match="not held"):
        lock.check()


def test_a_forked_child_neither_holds_nor_releases_its_parents_lock(path: Path) -> None:
    lock = OwnerLock(path)
    lock.acquire()

    def work() -> None:
        assert not lock.held
        with pytest.raises(OwnershipLostError):
            lock.check()
        lock.release()
        with pytest.raises(StateLockedError):
            OwnerLock(path).acquire()

    assert in_child(work) == 0
    lock.check()
    with pytest.raises(StateLockedError):
        OwnerLock(path).acquire()
    lock.release()


def test_the_lock_is_free_after_the_parents_death_though_a_forked_child_lives(path: Path) -> None:
    reader, writer = os.pipe()

    def parent() -> None:
        OwnerLock(path).acquire()
        lock = OwnerLock(path.with_name("other.lock"))
        lock.acquire()
        lives, says_so = os.pipe()
        if os.fork() == 0:
            os.close(writer)
            os.write(says_so, b"!")
            os.read(reader, 1)
            os._exit(0)
        os.read(lives, 1)
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_child(parent) == -9
    lock = OwnerLock(path.with_name("other.lock"))
    lock.acquire()
    lock.release()
    os.close(writer)
    os.close(reader)


def test_of_many_threads_one_gets_the_lock(path: Path) -> None:
    locks = [OwnerLock(path) for _ in range(16)]
    start = threading.Barrier(len(locks))
    refused: list[StateLockedError] = []

    def contend(lock: OwnerLock) -> None:
        start.wait()
        try:
            lock.acquire()
        except StateLockedError as error:
            refused.append(error)

    threads = [threading.Thread(target=contend, args=[lock]) for lock in locks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == len(locks) - 1
    for lock in locks:
        lock.release()
