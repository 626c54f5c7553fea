"""The one place that calls the operating system for files, so that tests can record it, break it and kill it.

Backends call the module's current `layer`, in worker threads. Its methods let `OSError` pass; a backend wraps
what it does in `storage_errors`, which says what failed, on which path, and what to do about it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from dgents.runtime.errors import StorageError

FILE_MODE = 0o600
FOLDER_MODE = 0o700
_MAX_NAME_BYTES = 200
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789_-")
# On macOS fsync leaves the data in the drive's cache; this one does not.
_FULL_FSYNC: int | None = getattr(fcntl, "F_FULLFSYNC", None)


class FileLayer:
    """The operating system's files, each call a method that a test can override."""

    def open(self, path: Path, flags: int, mode: int = FILE_MODE) -> int:
        """Open a regular file; never follow a symlink in its place, never pass it on to another program.

        Raises:
            StorageError: a symlink, a device or a pipe is in the file's place.
            OSError: the system refuses.
        """
        # O_NONBLOCK: to open a pipe that has no writer would wait for one, without end. Files do not know it.
        try:
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, mode)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _not_a_file(path, "a symlink") from error
            if error.errno == errno.ENXIO:
                raise _not_a_file(path, "a pipe or a socket") from error
            raise
        kind = os.fstat(fd).st_mode
        if stat.S_ISREG(kind):
            return fd
        os.close(fd)
        if stat.S_ISDIR(kind):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        raise _not_a_file(path, "a device or a pipe")

    def read(self, path: Path) -> bytes:
        """Return the whole file."""
        fd = self.open(path, os.O_RDONLY)
        try:
            parts: list[bytes] = []
            offset = 0
            while part := self.pread(fd, max(self.status(fd).st_size - offset, 4096), offset):
                parts.append(part)
                offset += len(part)
            return parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self.close(fd)

    def pread(self, fd: int, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes from ``offset``: fewer at the file's end, none behind it."""
        return os.pread(fd, size, offset)

    def write(self, fd: int, data: bytes | memoryview, offset: int | None = None) -> None:
        """Write all of ``data``, at ``offset`` or where the file stands, however many calls it takes."""
        while True:
            try:
                written = self.write_some(fd, data, offset)
            except InterruptedError:
                continue
            if written == len(data):
                return
            data = memoryview(data)[written:]
            offset = None if offset is None else offset + written

    def write_some(self, fd: int, data: bytes | memoryview, offset: int | None) -> int:
        """Write what the system takes in one call and return how much that was."""
        return os.write(fd, data) if offset is None else os.pwrite(fd, data, offset)

    def fsync(self, fd: int) -> None:
        """Make the file's data and metadata durable."""
        if _FULL_FSYNC is None:
            os.fsync(fd)
        else:
            fcntl.fcntl(fd, _FULL_FSYNC)

    def fdatasync(self, fd: int) -> None:
        """Make the file's data durable, and its size."""
        if _FULL_FSYNC is None:
            os.fdatasync(fd)
        else:
            fcntl.fcntl(fd, _FULL_FSYNC)

    def status(self, fd: int) -> os.stat_result:
        """Return the file's size, its number of names and the like."""
        return os.fstat(fd)

    def truncate(self, fd: int, size: int) -> None:
        """Cut the file, or lengthen it with zeros."""
        os.ftruncate(fd, size)

    def close(self, fd: int) -> None:
        """Close the descriptor."""
        os.close(fd)

    def replace(self, source: Path, target: Path) -> None:
        """Rename atomically, over what is there; durable only after `fsync_directory`."""
        os.replace(source, target)

    def unlink(self, path: Path) -> None:
        """Remove a name; durable only after `fsync_directory`."""
        os.unlink(path)

    def make_directory(self, path: Path) -> None:
        """Make one folder, for this user alone; durable only after `fsync_directory` of its parent."""
        os.mkdir(path, FOLDER_MODE)

    def fsync_directory(self, path: Path) -> None:
        """Make the names in a folder durable."""
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)

    def make_directories(self, path: Path) -> None:
        """Make a folder and those above it, where they are missing, and make each new one's name durable."""
        missing = []
        folder = path
        while not folder.is_dir():
            missing.append(folder)
            if folder == folder.parent:
                break
            folder = folder.parent
        for folder in reversed(missing):
            try:
                self.make_directory(folder)
            except FileExistsError:
                if not folder.is_dir():
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)) from None
            # Also where another process was quicker: it may die before its own fsync.
            self.fsync_directory(folder.parent)

    def entries(self, path: Path) -> dict[str, int]:
        """Return the names in a folder, each with its size in bytes."""
        with os.scandir(path) as found:
            return {entry.name: entry.stat(follow_symlinks=False).st_size for entry in found}

    def step(self, name: str) -> None:
        """Mark a named point in a commit. Does nothing here; tests fail or die at it."""


layer = FileLayer()


@contextlib.contextmanager
def use(other: FileLayer) -> Iterator[FileLayer]:
    """Make ``other`` the current layer of this process for the length of a ``with`` block."""
    global layer
    before, layer = layer, other
    try:
        yield other
    finally:
        layer = before


def write_atomically(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace a file's content as a whole: after whatever crash, the old or the new one is there.

    The caller is the only one who writes this path (it holds its lock): there is one temp file, `temp_path`,
    and a stale one is removed here. ``sync=False`` leaves it to the system when the content becomes durable.

    Durability: the new content is durable when this returns. After an error it may be the old or the new one.

    Raises:
        OSError: the system refused; the temp file is gone.
    """
    temp = temp_path(path)
    try:
        _write_temp(temp, data, sync)
        layer.replace(temp, path)
    except BaseException:
        with contextlib.suppress(OSError):
            layer.unlink(temp)
        raise
    layer.step("renamed")
    if sync:
        layer.fsync_directory(path.parent)
        layer.step("directory-synced")


def _write_temp(temp: Path, data: bytes, sync: bool) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    try:
        fd = layer.open(temp, flags)
    except FileExistsError:
        # Made anew, not reused: whatever it is, its mode, its owner and its links are not ours.
        layer.unlink(temp)
        fd = layer.open(temp, flags)
    try:
        layer.write(fd, data)
        layer.step("temp-written")
        if sync:
            layer.fsync(fd)
            layer.step("temp-synced")
    finally:
        layer.close(fd)


def leads_to(path: Path, fd: int) -> bool:
    """Say whether a name still leads to the open file: it may have been removed, replaced or moved away."""
    try:
        named = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(named, os.fstat(fd))


def check_only_name(found: os.stat_result, path: Path | str, *, actor: str | None = None) -> None:
    """Refuse a file that has several names: under each of them it would have a lock, and so an owner, of its own.

    Raises:
        StorageError: it has hard links.
    """
    if stat.S_ISREG(found.st_mode) and found.st_nlink > 1:  # of a directory they are something else
        raise StorageError(
            f"{path} has {found.st_nlink} names (hard links), under each of which somebody could own it",
            retryable=False,
            actor=actor,
            hint="nothing was touched; remove the other names, or put a copy in its place",
        )


def temp_path(path: Path) -> Path:
    """Return where `write_atomically` prepares the next content of ``path``."""
    return path.with_name(path.name + ".tmp")


def remove_stale_temp(path: Path) -> None:
    """Remove what a dead writer of ``path`` left behind. The caller holds the lock of ``path``."""
    with contextlib.suppress(FileNotFoundError):
        layer.unlink(temp_path(path))


def safe_name(name: str) -> str:
    """Return a file name for any actor's name; distinct names stay distinct, also where case is ignored.

    Letters a to z, digits, ``-`` and ``_`` stay; every other byte of the UTF-8 form becomes ``%`` and two hex
    digits. There is no dot in it, so a suffix such as ``.lock`` never meets another name. What is longer than
    200 bytes is cut and ends in ``~`` and a hash.

    Example:
        >>> safe_name("user/Ann")
        'user%2f%41nn'
    """
    data = name.encode("utf-8", "surrogatepass")
    pieces = [chr(byte) if byte in _PLAIN else f"%{byte:02x}" for byte in data]
    safe = "".join(pieces) or "%"
    if len(safe) <= _MAX_NAME_BYTES:
        return safe
    ending = "~" + hashlib.blake2b(data, digest_size=20).hexdigest()
    kept = safe[: _MAX_NAME_BYTES - len(ending)]
    # An escape that the cut went through is dropped whole.
    if "%" in kept[-2:]:
        kept = kept[: kept.rindex("%")]
    return kept + ending


# errno: (what happened, whether trying the same again can help, what to do)
_MEANINGS: dict[int, tuple[str, bool, str]] = {
    errno.ENOSPC: ("the disk is full", True, "free some space"),
    errno.EDQUOT: ("the disk quota is used up", True, "free some space or raise the quota"),
    errno.EFBIG: (
        "the file would exceed the largest size allowed",
        True,
        "raise the process's file-size limit",
    ),
    errno.EIO: ("the disk failed", True, "check the disk; what is on it is read again before the next write"),
    errno.EACCES: (
        "access was refused",
        False,
        "make the file and its folder readable and writable for this user",
    ),
    errno.EPERM: ("the operation is not permitted", False, "check the file's owner and its attributes"),
    errno.EROFS: ("the file system is read-only", False, "mount it writable or choose another path"),
    errno.EISDIR: ("it is a folder", False, "give the path of a file"),
    errno.ENOTDIR: ("a part of the path is a file, not a folder", False, "choose another path"),
    errno.ENAMETOOLONG: ("the path is too long", False, "choose a shorter path"),
    errno.ENOENT: ("it, or its folder, is not there", False, "was it removed while in use?"),
    errno.ESTALE: ("it was removed on the file server", False, "was it removed while in use?"),
    errno.EMFILE: ("too many files are open in this process", True, "raise its limit (ulimit -n)"),
    errno.ENFILE: ("too many files are open on this machine", True, "close some"),
    errno.ENOMEM: ("memory ran out", True, "free some memory"),
    errno.ENOLCK: ("the file system gives no locks", False, "choose a local file system"),
    errno.EOPNOTSUPP: ("the file system can't do this", False, "choose a local file system"),
    errno.EINVAL: ("the system can't do this with such a file or path", False, "choose another path"),
    errno.ETIMEDOUT: ("the file server did not answer", True, "check the network"),
}


def storage_error(error: OSError, path: Path | str, doing: str, *, actor: str | None = None) -> StorageError:
    """Return the typed error for ``error``, met in the ``doing`` ("save") of ``path``."""
    if isinstance(error, StorageError):
        return error
    fallback = (error.strerror or str(error), True, "look up the system's error code")
    what, retryable, hint = _MEANINGS.get(error.errno or 0, fallback)
    code = errno.errorcode.get(error.errno or 0, "unknown")
    return StorageError(f"{doing} of {path} failed: {what} ({code})", retryable=retryable, actor=actor, hint=hint)


@contextlib.contextmanager
def storage_errors(path: Path | str, doing: str, *, actor: str | None = None) -> Iterator[None]:
    """Turn every `OSError` that leaves the ``with`` block into a `StorageError`."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise storage_error(error, path, doing, actor=actor) from error


def _not_a_file(path: Path, what: str) -> StorageError:
    return StorageError(
        f"{path} is {what}, not a file; it was not touched",
        retryable=False,
        hint="give the path of a regular file",
    )
