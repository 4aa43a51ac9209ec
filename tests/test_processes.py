"""Several processes make one run: that of one process, whatever their number is. Tier 1."""

from dataclasses import replace

import pytest
from killing import apart
from runs import KINDS
from teams import facts, go, same, team

TOLERANCE = {"float32": 2e-6, "float64": 1e-12}
SHORT = {"epochs": 3, "warmup_epochs": 1}
CASES = {
    "replicated": [
        ("plain", "float32", "replicated", [2, 3, 4], 20),
        ("lists", "float64", "replicated", [2], 20),
        ("two views", "float64", "replicated", [3], 20),
        ("plain", "float64", "replicated", [4], 5),  # the last batches leave a process without a row
    ],
    "sharded": [
        ("plain", "float32", "sharded", [2, 3, 4], 20),
        ("nce", "float64", "sharded", [3], 20),
        ("two views", "float64", "sharded", [3], 20),
    ],
}


def of(ends):
    """What each process told, once, at its end."""
    assert [end.status for end in ends] == [0] * len(ends)
    return [end.told[0] for end in ends]


def law_any_number_of_processes_makes_the_same_run(cases, short=True):
    kinds = {**KINDS, "nce": replace(KINDS["lists"], search="exact")}
    for kind, dtype, layout, sizes, batch in cases:
        settings = replace(kinds[kind], dtype=dtype, batch_size=batch, **(SHORT if short else {}))

        def work(rank, tell, settings=settings, layout=layout):
            tell(facts(*go(settings, bank_layout=layout)))

        (alone,) = of(team(1, work))
        for size in sizes:
            told = of(team(size, work))
            same(told[0], alone, TOLERANCE[dtype])
            for other in told[1:]:
                assert other["losses"] == told[0]["losses"]
                assert other["labels"] == told[0]["labels"]
                assert other["history"] == told[0]["history"]
                assert other["bank"] == (told[0]["bank"] if layout == "replicated" else None)


@pytest.mark.parametrize("layout", CASES)
def test_any_number_of_processes_makes_the_same_run(layout):
    apart("test_processes:law_any_number_of_processes_makes_the_same_run", CASES[layout])
