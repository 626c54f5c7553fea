"""The command line. An error is one line on stderr and exit status 2; see the README for the commands.

What a command needs is imported by the command: `dgents --help` answers before rich or a database driver is loaded.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from dgents.places import Place
    from dgents.stores import Stored

_ERROR = 2
_DAMAGED = 1
_INTERRUPTED = 130  # what a shell says of a program that SIGINT ended
_NO_READER = 141  # and of one that SIGPIPE ended
_SECRETS = re.compile(r"(?<=://)[^\s'\"]*@|(?<=password=)[^&\s'\"]+")

_WHAT = "a SQLite database, a state file or folder, sqlite:///, postgresql:// or redis://"
_COPY = f"""
Copy every state with its history and its request ids. SRC and DST are each {_WHAT}.
What is not there yet is a database if it ends in .db, .sqlite or .sqlite3, a folder if it ends in /, else the file of
one state.

A state is written whole or not at all, so after an interruption run the same command again: what is there already is
compared and passed over. Another state under the same key is never overwritten: that is an error.

Versions keep their numbers: a history of which the newest 100 versions are left starts above 1 there, too. Only where
some in the middle are missing, those before them get the numbers next to the ones after them. Times and schema versions
are kept; epochs begin anew, and times to live are not copied. Programs may go on using SRC: what they write after a
state was read is not copied.

Only states are copied. Reminders, the events of streams and the entries of vector stores are not, and what is left out
is named at the end: streams and vector stores in folders are copied with their folder, while nobody owns them.
"""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong with the arguments in one line."""

    def error(self, message: str) -> NoReturn:
        _complain(f"{message}; see {self.prog} --help")
        raise SystemExit(_ERROR)


class _Version(argparse.Action):
    """Prints the version, which takes longer to find out than everything else here."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> NoReturn:
        from importlib.metadata import version

        print(f"dgents {version('dgents')}")
        parser.exit()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return the exit status."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")  # a key may hold what the terminal can't say
    try:
        chosen = _parser().parse_args(arguments)
        status: int = chosen.command(chosen)
        sys.stdout.flush()
    except BrokenPipeError:
        # Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _NO_READER
    except KeyboardInterrupt:
        _complain("interrupted")
        return _INTERRUPTED
    except Exception as error:
        _complain(_one_line(error))
        return _ERROR
    return status


def bench(chosen: argparse.Namespace) -> int:
    """Run benchmarks."""
    from dgents.benchmarks.run import run

    return run(chosen.suite, chosen.quick, chosen.plot, chosen.json, chosen.compare)


def top(options: argparse.Namespace) -> int:
    """Run `dgents top`."""
    from dgents.top import top as show

    show(options.path, rounds=1 if options.once else None)
    return 0


def demo(chosen: argparse.Namespace) -> int:
    """Show the main job on embedded backends."""
    from dgents.demo import run

    return run()


def inspect(chosen: argparse.Namespace) -> int:
    """List what a place holds, each part of it as itself; or show one state as JSON."""
    from dgents.listing import escaped, print_states, to_json
    from dgents.places import open_place

    if chosen.key is not None:
        print(to_json(_find(chosen)))
        return 0
    places = _places(chosen)
    said = False
    for number, place in enumerate(places):
        with open_place(place, chosen.table) as store:
            if said:
                print()
            if number:
                print(f"{escaped(place.safe)}:")
            said |= print_states(store, place.safe, alone=number > 0 or len(places) == 1)
    return 0


def history(chosen: argparse.Namespace) -> int:
    """Show the versions of a state and what changed between them, or the events of a stream."""
    from dgents.listing import print_history

    print_history(_find(chosen), chosen.limit)
    return 0


def verify(chosen: argparse.Namespace) -> int:
    """Check every record of each part of a place."""
    places = _places(chosen)
    return max(_verify(place, alone=len(places) == 1) for place in places)


def _verify(place: Place, *, alone: bool) -> int:
    from dgents.listing import escaped
    from dgents.places import open_place
    from dgents.runtime.errors import StateCorruptionError
    from dgents.stores import Counts, NotOurs, Other, counted
    from dgents.stores import verify as findings

    faults = 0
    counts = Counts()
    others: list[Other] = []
    try:
        with open_place(place) as store:
            for finding in findings(store):
                if isinstance(finding, StateCorruptionError):
                    faults += 1
                    print(f"damaged: {escaped(str(finding))}")
                else:
                    counts.add(finding)
            others = store.others()
    except NotOurs as error:
        print(escaped(str(error)))
        return _DAMAGED
    except StateCorruptionError as error:  # there is no opening it
        faults += 1
        print(f"damaged: {escaped(str(error))}")
    name = escaped(place.safe)
    if faults:
        print(f"{name}: {counted(faults, 'fault')} found; {counts.text()} could be read whole")
        return _DAMAGED
    checked = [*([counts.text()] if counts else []), *(other.what for other in others if other.is_checked)]
    if checked:
        print(f"{name}: {', '.join(checked)}, all whole")
    elif alone:
        print(f"there are no states in {name}")
    if not all(other.is_checked for other in others):
        print(f"not checked: {', '.join(other.what for other in others if not other.is_checked)}")
    return 0


def copy(chosen: argparse.Namespace) -> int:
    """Copy states and their histories."""
    from dgents.copying import copy as copy_states
    from dgents.listing import progress
    from dgents.places import locate
    from dgents.stores import counted

    source, destination = locate(chosen.source), locate(chosen.destination)
    with progress("copying") as on_progress:
        done = copy_states(source, destination, table=chosen.table, on_progress=on_progress, on_warning=_complain)
    text = f"copied {counted(done.states, 'state')} with {counted(done.versions, 'version')} to {destination.safe}"
    print(f"{text}; {counted(done.present, 'state')} had been copied before" if done.present else text)
    if done.left_out:
        print(f"not copied: {', '.join(done.left_out)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("dgents", description="State for systems of many agents: one owner per state.", allow_abbrev=False)
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(metavar="COMMAND", required=True, title="commands")
    _add_bench(commands)
    _add(commands, "demo", demo, "the main job in a minute, on embedded backends; exit 1 if an update was lost")
    one = _add(commands, "top", top, "the live supervision tree of a running runtime")
    one.add_argument("path", metavar="PATH", type=Path, help="what the program gave as Runtime(inspect=PATH)")
    one.add_argument("--once", action="store_true", help="look once, and end")
    one = _add(commands, "inspect", inspect, "what a file, database or server holds; one state as JSON", table=True)
    one.add_argument("uri", metavar="URI", help=_WHAT)
    one.add_argument("key", metavar="KEY", nargs="?", help="show this state, as JSON")
    one = _add(
        commands,
        "history",
        history,
        "the versions of a state, and what changed between them; the events of a stream",
        table=True,
    )
    one.add_argument("uri", metavar="URI", help=_WHAT)
    one.add_argument("key", metavar="KEY")
    one.add_argument("--limit", metavar="N", type=_positive, help="only the newest N versions")
    one = _add(commands, "verify", verify, "check every record; exit 1 and the place where it breaks")
    one.add_argument("uri", metavar="URI", help=_WHAT)
    one = _add(
        commands, "copy", copy, "every key and its history, from any backend to any other; resumable", table=True
    )
    one.description, one.formatter_class = _COPY.strip(), argparse.RawDescriptionHelpFormatter
    one.add_argument("source", metavar="SRC")
    one.add_argument("destination", metavar="DST")
    return parser


def _add_bench(commands: Any) -> None:
    one = _add(commands, "bench", bench, "concurrency benchmarks: progress bars, tables, plots")
    one.add_argument("suite", metavar="SUITE", nargs="*", help="its name; all of them if none is given")
    one.add_argument("--quick", action="store_true", help="be done in seconds; the figures are not to be quoted")
    one.add_argument("--plot", metavar="DIR", type=Path, help="write PNG and SVG pictures there")
    one.add_argument("--json", metavar="FILE", type=Path, help="write the results there")
    one.add_argument("--compare", metavar="OLD", type=Path, help="show what changed since the --json of an earlier run")


def _add(
    commands: Any, name: str, command: Callable[[argparse.Namespace], int], text: str, *, table: bool = False
) -> argparse.ArgumentParser:
    added: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    added.set_defaults(command=command)
    if table:
        added.add_argument(
            "--table", metavar="NAME", help="of a SQL database only this table (to copy: of SRC, else of DST)"
        )
    return added


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")
    return int(text)


def _places(chosen: argparse.Namespace) -> list[Place]:
    """Return what a URI names, and behind it whatever is in it, of folders in folders as well."""
    from dgents.parts import parts_of
    from dgents.places import locate

    places = [locate(chosen.uri)]
    for place in places:
        places += [part.place for part in parts_of(place)]
    if getattr(chosen, "table", None) is not None and len(places) > 1:
        return [place for place in places if place.has_tables] or places[:1]
    return places


def _find(chosen: argparse.Namespace) -> Stored:
    """Return the only state of a key."""
    from dgents.places import open_place

    found: list[tuple[Place, Stored]] = []
    places = _places(chosen)
    for place in places:
        with open_place(place, chosen.table) as store:
            found += [(place, stored) for stored in store.find(chosen.key)]
    key, where = chosen.key, places[0].safe
    if not found:
        raise LookupError(f"there is no state {key!r} in {where}; dgents inspect lists those that there are")
    if len({place.uri for place, _ in found}) > 1:
        raise LookupError(f"the state {key!r} is in {', '.join(place.safe for place, _ in found)}; name one of them")
    if len(found) > 1:
        tables = ", ".join(str(stored.table) for _, stored in found)
        raise LookupError(f"the state {key!r} is in the tables {tables} of {where}; choose one with --table")
    return found[0][1]


def _one_line(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    expected = isinstance(error, OSError | ValueError | LookupError | ImportError | NotImplementedError)
    if hasattr(error, "outcome") or (expected and not isinstance(error, KeyError)):
        return str(error) or type(error).__name__
    return f"this should not have happened: {type(error).__name__}: {error}"


def _complain(text: str) -> None:
    """Print one line on stderr, without the secrets of URLs that are in it."""
    line = _SECRETS.sub(lambda found: "***@" if found[0].endswith("@") else "***", " ".join(text.split()))
    print(f"dgents: {line}", file=sys.stderr)
