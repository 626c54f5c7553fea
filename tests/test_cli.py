"""The commands, as processes where exit statuses and streams matter, and in process where they don't."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import pytest

import dgents
from dgents import demo
from dgents.backends.journal import Journal
from dgents.changes import ABSENT, changes
from dgents.cli import main
from tests.sqlite_kit import change

USAGE = [
    [],
    ["frobnicate"],
    ["inspect"],
    ["inspect", "nothing.db"],
    ["inspect", "nothing/at/all"],
    ["inspect", "state.db", "no such key"],
    ["inspect", "state.db", "--table", "no_such_table"],
    ["inspect", "http://example.org"],
    ["inspect", "redis://127.0.0.1:1/0"],
    ["inspect", ""],
    ["history", "state.db", "ada", "--limit", "0"],
    ["verify", "nothing.db"],
    ["copy", "state.db", "one-file"],
    ["copy", "empty/", "state.db"],
    ["verify", "log"],
    ["copy", "state.db", "/proc/nowhere/"],
    ["bench", "no-such-suite"],
    ["bench", "--compare", "nothing.json"],
]
SECRETS = [
    ["inspect", "redis://ada:hunter2@127.0.0.1:1/0"],
    ["inspect", "redis://:hunter2@127.0.0.1:123456/0"],
    ["inspect", "redis://127.0.0.1:1/0?password=hunter2"],
    ["inspect", "postgresql://ada:hunter2@127.0.0.1:1/db"],
    ["inspect", "mysql://ada:hunter2@127.0.0.1/db"],
    ["verify", "state.db", "redis://ada:hunter2@127.0.0.1/0"],
    ["copy", "state.db", "redis://ada:hunter2@127.0.0.1:1/0"],
    ["copy", "redis://ada:hunter2@127.0.0.1:1/0", "state.db"],
]


def dgents_command(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "dgents", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)


def status_of(arguments: list[str]) -> object:
    """Return the exit status of a command, in process."""
    try:
        return main(arguments)
    except SystemExit as stop:
        return stop.code


def make_states(*agents: tuple[str, Any], states: tuple[Any, ...]) -> None:
    """Save ``states`` one after the other to each of the named agents; None deletes."""

    async def save_all() -> None:
        async with dgents.Runtime() as rt:
            for name, agent in agents:
                ref = await rt.spawn(name, agent)
                for state in states:
                    await (ref.delete() if state is None else ref.save(state))

    anyio.run(save_all)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with a database of two states and an empty folder."""
    monkeypatch.chdir(tmp_path)
    agent: Any = dgents.SQLAgent("state.db")
    make_states(("ada", agent), ("bob", agent), states=({"visits": 1}, {"visits": 2, "tags": {"b", "a"}}))
    (tmp_path / "empty").mkdir()
    Journal(tmp_path / "log").open()
    return tmp_path


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what a command that succeeds prints, in process."""
    assert main(arguments) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize("arguments", USAGE, ids=" ".join)
def test_an_error_is_one_line_on_stderr_and_status_2(
    folder: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    status = status_of(arguments)
    out, err = capfd.readouterr()
    assert (status, out) == (2, "")
    assert err.startswith("dgents: ")
    assert err.count("\n") == 1
    assert "should not have happened" not in err


@pytest.mark.parametrize("arguments", [[], ["inspect", "nothing.db"], ["history", "state.db", "nobody"]], ids=" ".join)
def test_the_process_ends_with_status_2_and_without_a_traceback(folder: Path, arguments: list[str]) -> None:
    done = dgents_command(*arguments, folder=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("dgents: ")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("arguments", SECRETS, ids=range(len(SECRETS)))
def test_no_output_has_the_password_of_a_url(
    folder: Path, arguments: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    status = status_of(arguments)
    out, err = capfd.readouterr()
    assert status == 2
    assert "hunter2" not in out + err


def test_a_fault_of_the_program_itself_is_one_line_too(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(uri: str) -> None:
        raise TypeError("two\nlines, redis://ada:hunter2@host")

    monkeypatch.setattr("dgents.places.locate", fail)
    assert main(["inspect", "state.db"]) == 2
    assert capsys.readouterr().err.endswith("TypeError: two lines, redis://***@host\n")


def test_help_needs_neither_rich_nor_a_driver_of_a_server(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom dgents.cli import main\ntry:\n    main(['--help'])\nexcept SystemExit as stop:\n"
        "    found = {'rich', 'redis', 'psycopg', 'matplotlib', 'faiss', 'trio'} & set(sys.modules)\n"
        "    sys.exit(f'loaded: {found}' if found else stop.code)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in ("bench", "demo", "inspect", "history", "verify", "copy"))


def test_version_is_that_of_the_package(folder: Path) -> None:
    from importlib.metadata import version

    assert dgents_command("--version", folder=folder).stdout == f"dgents {version('dgents')}\n"


def test_a_reader_that_went_away_is_no_error(folder: Path) -> None:
    command = [sys.executable, "-m", "dgents", "inspect", "state.db"]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_an_interrupt_is_one_line_and_status_130(folder: Path) -> None:
    os.mkfifo(folder / "fifo")  # whoever opens it waits
    command = [sys.executable, "-m", "dgents", "inspect", "fifo"]
    process = subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True)
    writer = os.open(folder / "fifo", os.O_WRONLY)  # returns when the command has opened it, too
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    os.close(writer)
    assert (process.returncode, err) == (130, "dgents: interrupted\n")


def test_inspect_lists_states_with_versions_and_sizes(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, ada, bob = printed(capsys, "inspect", "state.db").splitlines()
    assert head.split() == ["version", "kept", "bytes", "saved", "(UTC)", "table", "key"]
    assert [ada.split()[0], ada.split()[1], ada.split()[-1]] == ["2", "2", "ada"]
    assert bob.endswith("bob")


def test_inspect_shows_a_state_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shown = json.loads(printed(capsys, "inspect", "sqlite:///state.db", "ada"))
    assert (shown["key"], shown["table"], shown["version"], shown["versions"]) == ("ada", "states", 2, 2)
    assert shown["state"] == {"visits": 2, "tags": ["a", "b"]}


def test_inspect_reads_files_and_folders(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    agents: list[Any] = [dgents.PersistentAgent("files/"), dgents.PersistentAgent("one.json")]
    make_states(*((f"user/{number}", agent) for number, agent in enumerate(agents)), states=([1], [1, 2]))
    assert printed(capsys, "inspect", "files").endswith("user/0\n")
    assert json.loads(printed(capsys, "inspect", "files", "user/0"))["state"] == [1, 2]
    assert json.loads(printed(capsys, "inspect", "one.json", "user/1"))["state"] == [1, 2]


def test_a_deleted_state_is_shown_as_deleted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_states(("gone", dgents.SQLAgent("other.db")), states=("here", None))
    assert "deleted" in printed(capsys, "inspect", "other.db")
    shown = json.loads(printed(capsys, "inspect", "other.db", "gone"))
    assert shown["deleted"]
    assert "state" not in shown


def test_a_key_in_two_tables_needs_a_choice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_states(("ada", dgents.SQLAgent("state.db", table="others")), states=("another Ada",))
    assert main(["inspect", "state.db", "ada"]) == 2
    assert "others, states" in capsys.readouterr().err
    assert json.loads(printed(capsys, "inspect", "state.db", "ada", "--table", "others"))["state"] == "another Ada"


def test_what_could_steer_a_terminal_is_escaped(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    key, state = "red\x1b[31m\n", {"text": "\x1b[31m\x9b31m\u202e"}
    make_states((key, dgents.SQLAgent("other.db")), states=(state,))
    listed, shown = printed(capsys, "inspect", "other.db"), printed(capsys, "inspect", "other.db", key)
    told = printed(capsys, "history", "other.db", key)
    assert json.loads(shown)["state"] == state
    assert not {"\x1b", "\x9b", "\u202e"} & set(listed + shown + told)
    assert len(listed.splitlines()) == 2


def test_history_shows_what_changed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "history", "state.db", "ada").splitlines()
    assert lines[0].startswith("version 1  ")
    assert lines[1] == '  {"visits": 1}'
    assert lines[2].startswith("version 2  ")
    assert lines[3:] == ["  ~ visits: 1 -> 2", '  + tags: ["a", "b"]']


def test_history_is_limited_to_the_newest_versions(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = printed(capsys, "history", "state.db", "ada", "--limit", "1").splitlines()
    assert lines[0].startswith("version 2  ")
    assert lines[1] == "  ~ visits: 1 -> 2"


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"a": {"b": 1}}, {"a": {"b": 2}}, [("a.b", 1, 2)]),
        ({"a.b": 1}, {}, [("a\\.b", 1, ABSENT)]),
        ([1, 2, 3], [1, 9, 2, 3], [("1", ABSENT, 9)]),
        ([1, 2, 3], [1, 3], [("1", 2, ABSENT)]),
        ([{"n": 1}], [{"n": 2}], [("0.n", 1, 2)]),
        (1, True, [("", 1, True)]),
        ([1], [1.0], [("0", 1, 1.0)]),
        ({"a": []}, {"a": []}, []),
        ("text", {"a": 1}, [("", "text", {"a": 1})]),
    ],
)
def test_a_change_is_named_by_its_smallest_part(before: Any, after: Any, expected: list[Any]) -> None:
    assert [tuple(found) for found in changes(before, after)] == expected


def test_verify_counts_what_is_whole(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_states(("user/1", dgents.PersistentAgent("files/")), states=([1], [1, 2]))
    assert printed(capsys, "verify", "state.db") == "state.db: 2 states with 4 versions, all whole\n"
    assert printed(capsys, "verify", "files/") == "files/: 1 state with 2 versions, all whole\n"
    assert printed(capsys, "verify", "empty") == "there are no states in empty\n"


def test_verify_ends_with_1_and_names_the_damaged_row(folder: Path) -> None:
    change("state.db", "UPDATE states SET state = x'2a' WHERE key = 'ada' AND version = 1")
    done = dgents_command("verify", "state.db", folder=folder)
    damaged, end = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (1, "")
    assert damaged.startswith("damaged: ")
    assert "'ada'" in damaged
    assert "version 1" in damaged
    assert end == "state.db: 1 fault found; 1 state with 2 versions could be read whole"


def test_verify_names_each_damaged_file_and_the_byte(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_states(*((name, dgents.PersistentAgent("files/")) for name in ("a", "b", "c")), states=(["x"],))
    for name in ("a", "c"):
        path = folder / "files" / f"{name}.state"
        path.write_bytes(path.read_bytes().replace(b'"x"', b'"y"', 1))
    assert main(["verify", "files"]) == 1
    first, second, end = capsys.readouterr().out.splitlines()
    assert "a.state is damaged at byte" in first
    assert "c.state is damaged at byte" in second
    assert end.endswith("2 faults found; 1 state with 1 version could be read whole")


@pytest.mark.parametrize("name", ["other.db", "other.state"])
def test_verify_ends_with_1_for_a_file_that_is_nothing_of_the_kind(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_bytes(b"something else " * 100)
    assert main(["verify", name]) == 1
    assert name in capsys.readouterr().out.splitlines()[0]


@pytest.mark.parametrize("name", ["notes.txt", "app.json", "empty-file", "fake.db"])
def test_a_file_of_another_program_is_not_called_damaged(
    folder: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / name).write_text("" if name == "empty-file" else '{"theirs": 1}')
    assert (main(["verify", name]), main(["inspect", name])) == (1, 2)
    for text in capsys.readouterr():
        assert f"{name} is no" in text
        assert "damaged" not in text


def test_a_state_whose_file_was_overwritten_is_damaged(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_states(("a", dgents.PersistentAgent("a.json")), states=([1],))
    (folder / "a.json").write_text("no state any more")
    assert main(["verify", "a.json"]) == 1
    assert capsys.readouterr().out.startswith("damaged: a.json is damaged at byte 0")


def test_the_tables_that_there_are_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_states(("a", dgents.SQLAgent("state.db", "others")), states=([1],))
    assert main(["inspect", "state.db", "--table", "nope"]) == 2
    assert "there are 'others', 'states'" in capsys.readouterr().err


def make_others(states: Any, log: str) -> None:
    """Leave a stream and a reminder beside the states of a place, or nothing but them."""

    async def make() -> None:
        async with dgents.Runtime() as rt:
            orders = await rt.spawn("orders", dgents.StreamAgent(max, 0, event_log=log))
            await orders.append_all([1, 2, 3])
            if states is not None:
                ada = await rt.spawn("ada", states)
                await ada.remind("later", dgents.Save({"visits": 0}), every=3600)

    anyio.run(make)


def test_what_is_beside_the_states_of_a_database_is_verified_and_named(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_others(dgents.SQLAgent("state.db"), "sqlite:///state.db")
    others = "1 stream with 3 events, reminders"
    assert printed(capsys, "verify", "state.db") == f"state.db: 2 states with 4 versions, {others}, all whole\n"
    assert printed(capsys, "inspect", "state.db").endswith(f"beside these: {others}\n")
    assert printed(capsys, "copy", "state.db", "copies/").endswith(f"not copied: {others}\n")


def test_a_database_of_nothing_but_events_is_verified(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_others(None, "sqlite:///events.db")
    assert printed(capsys, "verify", "events.db") == "events.db: 1 stream with 3 events, all whole\n"
    assert printed(capsys, "inspect", "events.db") == "there are no states in events.db, but 1 stream with 3 events\n"
    assert main(["copy", "events.db", "copy.db"]) == 2
    assert "1 stream with 3 events, which can't be copied" in capsys.readouterr().err


def test_what_is_beside_the_states_of_a_folder_is_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_states(("ada", dgents.PersistentAgent("files/")), states=({"visits": 1},))
    make_others(dgents.PersistentAgent("files/"), "files/")
    lines = ["files/: 1 state with 1 version, all whole", "not checked: reminders"]
    assert printed(capsys, "verify", "files/").splitlines() == [*lines, "files/: 1 stream with 3 events, all whole"]
    assert printed(capsys, "copy", "files/", "copy.db").endswith("not copied: 1 stream, reminders\n")


@pytest.fixture
def mixed(folder: Path) -> Path:
    """A folder with two states, a journal, a database and a stream in it, a stream, a folder of one, and vectors."""

    async def make() -> None:
        async with dgents.Runtime() as rt:
            for name in ("a", "b"):
                await (await rt.spawn(name, dgents.PersistentAgent("all/"))).save({"n": name})
            behind: Any = dgents.CachedAgent(
                dgents.VolatileAgent(),
                dgents.SQLAgent("all/app.db"),
                policy="write-behind",
                flush=dgents.Flush(journal="all/journal"),
            )
            await (await rt.spawn("c", behind)).save({"n": "c"})
            for name, log in (("in a table", "sqlite:///all/app.db"), ("alone", "all/"), ("ledger/1", "all/ledger")):
                stream = await rt.spawn(name, dgents.StreamAgent(_total, 0, event_log=log, events=[Paid, Refunded]))
                await stream.append_all([Paid(5), Refunded(5), Refunded(5)])
            vectors: dgents.VectorRef[Any] = await rt.spawn("v", dgents.VectorAgent(2, path="all/vectors"))
            await vectors.save({"n": "v"}, id="sky", embedding=[0, 1])

    anyio.run(make)
    return folder / "all"


@dataclasses.dataclass
class Paid:
    amount: int


@dataclasses.dataclass
class Refunded:
    amount: int


def _total(total: int, event: Paid | Refunded) -> int:
    return total + event.amount


def test_each_part_of_a_folder_is_verified_as_itself(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = printed(capsys, "verify", "all").splitlines()
    assert whole == [
        "all: 2 states with 2 versions, 1 journal, all whole",
        "all: 1 stream with 3 events, all whole",
        "all/ledger: 1 stream with 3 events, all whole",
        "all/vectors: 1 state with 1 version, all whole",
        "all/app.db: 1 state with 1 version, 1 stream with 3 events, all whole",
    ]
    for part, pattern in (("ledger", "*/*.journal"), ("vectors", "*.snapshot"), ("journal", "*.journal")):
        (path,) = (mixed / part).glob(pattern)
        content = path.read_bytes()
        path.write_bytes(content[:12] + b"??" + content[14:])
        assert main(["verify", "all"]) == 1
        lines = capsys.readouterr().out.splitlines()
        assert [line for line in lines if line.startswith("damaged")] == [
            line for line in lines if line.startswith("damaged") and part in line
        ]
        assert len(set(whole) & set(lines)) == 4
        path.write_bytes(content)


def test_each_part_of_a_folder_is_listed_as_itself(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, "inspect", "all")
    own, *parts = text.split("\n\n")
    assert [line.split()[-1] for line in own.splitlines()] == ["key", "a", "b", "journal"]
    found = {part.splitlines()[0]: [line.split()[-1] for line in part.splitlines()[2:]] for part in parts}
    assert found == {
        "all:": ["alone"],
        "all/ledger:": ["ledger/1"],
        "all/vectors:": ["sky"],
        "all/app.db:": ["c", "events"],
    }
    assert json.loads(printed(capsys, "inspect", "all", "c"))["state"] == {"n": "c"}
    assert json.loads(printed(capsys, "inspect", "all", "sky"))["state"] == {"n": "v"}


@pytest.mark.parametrize(
    ("place", "key"), [("all", "ledger/1"), ("all/ledger", "ledger/1"), ("all/app.db", "in a table"), ("all", "alone")]
)
def test_the_history_of_a_stream_is_its_events_with_their_classes(
    place: str, key: str, mixed: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = printed(capsys, "history", place, key).splitlines()
    assert [(line.split()[1], line.split()[-1]) for line in lines[::2]] == [
        ("1", "Paid"),
        ("2", "Refunded"),
        ("3", "Refunded"),
    ]
    assert lines[1::2] == ['  {"amount": 5}'] * 3
    shown = json.loads(printed(capsys, "inspect", place, key))
    assert (shown["number"], shown["class"], shown["event"]) == (3, "Refunded", {"amount": 5})
    assert len(printed(capsys, "history", place, key, "--limit", "1").splitlines()) == 2


def test_a_key_in_two_parts_of_a_folder_needs_a_choice(mixed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_states(("a", dgents.SQLAgent("all/app.db")), states=({"n": 1},))
    assert main(["inspect", "all", "a"]) == 2
    assert "is in all, all/app.db; name one of them" in capsys.readouterr().err


def test_one_item_added_to_a_set_is_one_change_in_whatever_order_the_sets_are_stored(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    items = [f"tag {number}" for number in range(20)]
    pairs = [(number, frozenset({number, -number})) for number in range(5)]
    states = ({"tags": set(items[:19]), "n": (set(pairs),)}, {"tags": set(items) - {"tag 3"}, "n": (set(pairs[1:]),)})
    make_states(("ada", dgents.PersistentAgent("ada.json", format="msgpack")), states=states)
    assert printed(capsys, "history", "ada.json", "ada").splitlines()[3:] == [
        '  - tags: "tag 3"',
        '  + tags: "tag 19"',
        "  - n.0: [0, [0]]",
    ]


def test_verify_finds_a_state_that_is_no_messagepack(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from dgents.runtime.contract import Record
    from dgents.stores import Stored, verify

    class Odd:
        def entries(self) -> Any:
            from dgents.stores import entry

            return iter([entry(lambda: Stored(None, "ada", [Record(3, 1, 1.5, b"\xc1")], []))])

        def damage(self) -> Any:
            return iter(())

    fault, _ = verify(Odd())  # type: ignore[arg-type]  # `find` is not needed
    assert "version 3 of 'ada'" in str(fault)


def test_looking_changes_nothing_and_needs_no_lock(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def look() -> None:
        async with dgents.Runtime() as rt:
            await rt.spawn("ada", dgents.SQLAgent("state.db"))  # owned, by a program that runs
            await rt.spawn("file", dgents.PersistentAgent("one.json"))
            await rt.get("file").save([1])
            before = (folder / "one.json").read_bytes()
            for command in ("inspect", "verify"):
                for place in ("state.db", "one.json"):
                    assert await anyio.to_thread.run_sync(main, [command, place]) == 0
            assert (folder / "one.json").read_bytes() == before
            assert await rt.get("ada").update(lambda state: {**state, "visits": 3})

    anyio.run(look)


def test_bench_runs_a_suite_and_writes_its_results(folder: Path) -> None:
    done = dgents_command("bench", "lost-updates", "--quick", "--json", "run.json", folder=folder)
    assert done.returncode == 0, done.stderr
    assert json.loads((folder / "run.json").read_bytes())


def test_the_demo_runs_as_a_newcomer_runs_it(folder: Path) -> None:
    done = dgents_command("demo", folder=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("none lost") == 2
    assert "dgents lost nothing" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert sorted(path.name for path in folder.iterdir()) == ["empty", "log", "state.db"]


def test_the_demo_ends_with_1_if_an_acknowledged_write_is_gone(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kill = demo.kill_while_writing

    def one_too_many(kind: str, place: Path) -> dict[str, int]:
        counts = kill(kind, place)
        return {writer: count + 2 for writer, count in counts.items()}  # more than could be on their way

    monkeypatch.setattr(demo, "kill_while_writing", one_too_many)
    assert demo.run() == 1
    assert "updates were lost" in capsys.readouterr().out
