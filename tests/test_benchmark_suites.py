"""The suites ``writers`` and ``peers``: they count what others lose, and name what is not installed."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import pytest

from dgents.benchmarks import clients, side_by_side, writers
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.clients import Case
from dgents.benchmarks.clients import ours as our_cases
from dgents.benchmarks.measure import Contender, VerificationError, run_round
from dgents.benchmarks.peers.unlocked import Unlocked
from dgents.benchmarks.report import table
from dgents.benchmarks.side_by_side import ENTRIES, Entry, maker, peer_round
from dgents.benchmarks.writers import workloads, writers_round
from dgents.testing import MakeClient
from tests.writer_clients import Unlocked as UnlockedClient
from tests.writer_clients import opened

# What needs none of the libraries of `dgents[bench]`; the tests of all others are marked, and run by `make peers`.
HERE = {"actor on asyncio.Queue", "redis-py, WATCH", "asyncio.Lock + aiosqlite"}
PEERS = [
    pytest.param(entry, id=entry.name, marks=() if entry.make or entry.name in HERE else pytest.mark.peers)
    for entry in ENTRIES
]


def unlocked(directory: Path) -> MakeClient:
    return lambda: opened(UnlockedClient)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench("s", tmp_path, quick=True)


@pytest.mark.parametrize("case", our_cases.CASES, ids=lambda case: case.name)
def test_dgents_loses_nothing_in_any_workload(case: Case, tmp_path: Path) -> None:
    for workload in workloads(case):
        details = run_round(Contender(case.name, writers_round(case, workload)), tmp_path).details

        assert (details["lost"], details["twice"]) == (0, 0)
        assert details["kept"] + details["refused"] == details["asked"]


def test_a_writer_that_loses_is_shown_with_its_number(tmp_path: Path) -> None:
    case = Case("unlocked", "update", unlocked)
    details = run_round(Contender("unlocked", writers_round(case, "counter")), tmp_path).details

    assert details == {"asked": 20, "kept": 1, "refused": 0, "lost": 19, "twice": 0}


def test_a_library_that_promises_safety_and_loses_has_no_figure(tmp_path: Path) -> None:
    case = Case("unlocked", "update", unlocked, safe=True)

    with pytest.raises(VerificationError, match="'faults': 19"):
        run_round(Contender("unlocked", writers_round(case, "counter")), tmp_path)


@pytest.mark.peers
@pytest.mark.filterwarnings("ignore")  # what a library warns of is its own affair
@pytest.mark.parametrize("module", [name for name in writers.MODULES if name != "ours"])
def test_a_library_of_the_writers_keeps_what_it_promises(module: str, tmp_path: Path) -> None:
    cases = writers.load(f"dgents.benchmarks.clients.{module}")
    assert cases is not None, writers.MISSING
    for case in cases:
        details = run_round(Contender(case.name, writers_round(case, "counter")), tmp_path).details

        assert details["kept"] >= 1
        assert (details["lost"] > 0) is not case.safe


@pytest.mark.filterwarnings("ignore")  # Thespian and Ray leave sockets open; that is theirs
@pytest.mark.parametrize("entry", PEERS)
def test_an_entry_side_by_side_keeps_what_it_promises(entry: Entry, tmp_path: Path) -> None:
    make = maker(entry)
    assert make is not None, side_by_side.MISSING
    details = run_round(Contender(entry.name, peer_round(entry, make, 20, 1)), tmp_path).details

    assert details["kept"] + details["lost"] == 20
    assert (details["lost"] > 0) is not entry.safe


def test_a_peer_that_promises_safety_and_loses_has_no_figure(tmp_path: Path) -> None:
    with pytest.raises(VerificationError, match=r"found {'lost': 19}, expected {'lost': 0}"):
        run_round(Contender("unlocked", peer_round(Entry("unlocked"), Unlocked, 20, 1)), tmp_path)


def test_what_is_not_installed_says_how_to_install_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [ENTRIES[0], Entry("a peer", "no_such_peer", "Peer")]
    monkeypatch.setattr(side_by_side, "ENTRIES", entries)
    monkeypatch.setattr(side_by_side, "import_module", _not_installed)
    side_by_side.run(bench)

    present, absent = bench.results
    assert present.rounds == 1
    assert (absent.row, absent.rounds, absent.note) == ("a peer", 0, side_by_side.MISSING)
    assert list(table("t", bench.results).columns[1].cells)[1] == "-"


def test_a_writer_that_is_not_installed_says_how_to_install_it(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writers, "MODULES", {"other": "A library"})
    monkeypatch.setattr(writers, "import_module", _not_installed)
    writers.run(bench)

    assert [(result.row, result.rounds, result.note) for result in bench.results] == [("A library", 0, writers.MISSING)]


def test_a_module_of_ours_that_is_missing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"dgents\.benchmarks\.clients\.nothing"):
        writers.load(f"{clients.__name__}.nothing")
    with pytest.raises(ModuleNotFoundError, match=r"dgents\.benchmarks\.peers\.nothing"):
        maker(Entry("nothing", "nothing", "Nothing"))


def _not_installed(name: str) -> object:
    if name.startswith("dgents.benchmarks.clients.ours"):
        return import_module(name)
    raise ModuleNotFoundError("No module named 'a_library'", name="a_library")
