"""The suite ``scale``: what one operation costs as there is more of everything around it.

Each panel is a set of curves over what grows: actors, events in a log, vectors, messages in a mailbox, versions kept.
Where nothing should grow, the exponent beside the curve is about 0.

The more there is, the fewer rounds: five as a rule, three from some 100,000 on, one from a million on, which has no
warm-up either. What is measured in memory is measured in a process of its own in each round.
"""

from __future__ import annotations

from dgents.benchmarks import scale_actors, scale_events, scale_history, scale_mailbox, scale_vectors
from dgents.benchmarks.bench import Bench
from dgents.benchmarks.measure import Contender
from dgents.benchmarks.scale_place import Place

NAME = "scale"
TITLE = "What one operation costs as there is more of everything"
PANELS = (scale_actors, scale_events, scale_vectors, scale_mailbox, scale_history)


def run(bench: Bench) -> None:
    """Measure every curve."""
    places = [place for panel in PANELS for place in panel.places(bench)]
    most = bench.rounds
    for place in places:
        bench.rounds = min(most, place.rounds)
        bench.expect(1)
    try:
        for place in places:
            bench.rounds = min(most, place.rounds)
            measure(bench, place)
    finally:
        bench.rounds = most


def measure(bench: Bench, place: Place) -> None:
    """Add a row for each figure that was found at a place.

    Raises:
        VerificationError: the work was not done as it should have been; there is no row then.
        OutOfTime: the suite's seconds are up.
    """
    contender = Contender(f"{place.x:,} {place.panel}", place.round)
    (samples,) = bench.measure(contender, warm_up=place.warm_up)
    for curve, unit in place.curves.items():
        figures = [sample.details[curve] for sample in samples if curve in sample.details]
        if figures:
            bench.row(curve, figures, unit, "lower", panel=place.panel, x=place.x)
