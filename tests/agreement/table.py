"""``make agreement``: rows are functions, columns are guises, cells the worst relative deviation from NumPy.

Exits with 1, the cell marked, where a tolerance is broken or a function fails.
"""

import sys
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
from variants import ACROSS

from agreement.functions import FUNCTIONS
from agreement.guises import GUISES
from agreement.harness import DisagreementError, agree

EXAMPLES = 25
COSTLY = 15
"""Examples for a guise that compiles."""


@dataclass
class Cell:
    """One function in one guise and one precision."""

    worst: float = 0.0
    failures: list[str] = field(default_factory=list)
    note: str = ""
    """Why there is no number, if there is none."""

    def __str__(self):
        if self.failures:
            return f"{self.worst:.0e}!" if np.isfinite(self.worst) and self.worst else "FAILS!"
        return self.note or (f"{self.worst:.0e}" if self.worst else "0")


def measure(function, guise, dtype, examples):
    """The cell: the same checks as in test_functions.py, over the first ``examples`` of the table's own."""
    if guise.missing:
        return Cell(note="-")
    if guise.whole and function.on_host:
        return Cell(note="(host)")
    cell = Cell()
    for seed in range(min(examples, COSTLY) if guise.costly else examples):
        case = function.drawn(seed, guise).astype(dtype)
        try:
            cell.worst = max(cell.worst, agree(function, guise, case))
        except DisagreementError as error:
            cell.worst = max(cell.worst, error.deviation)
            cell.failures.append(f"example {seed}: {error}")
        except Exception as error:
            cell.failures.append(f"example {seed}: {type(error).__name__}: {error}")
    return cell


def table(functions=FUNCTIONS, guises=GUISES, dtypes=tuple(ACROSS), examples=EXAMPLES):
    """Cells by (dtype name, function name, guise name)."""
    return {
        (np.dtype(dtype).name, str(function), str(guise)): measure(function, guise, np.dtype(dtype).type, examples)
        for dtype in dtypes
        for guise in guises
        if np.dtype(dtype).type in guise.dtypes
        for function in functions
    }


def disagreements(cells):
    """A line for each red cell."""
    return [f"{' / '.join(place)}: {cell.failures[0]}" for place, cell in cells.items() if cell.failures]


def lines(cells, guises=GUISES):
    """The table as text."""
    functions = list(dict.fromkeys(function for _, function, _ in cells))
    width = max(map(len, functions))
    for dtype in dict.fromkeys(dtype for dtype, _, _ in cells):
        columns = [str(guise) for guise in guises if (dtype, functions[0], str(guise)) in cells]
        allowed = f"{dtype}, allowed {ACROSS[np.dtype(dtype)]:g}"
        yield ""
        for line in zip_longest(*(name.split() for name in columns), fillvalue=""):
            yield (f"{allowed:<{width}}" + "".join(f" {word:>9}" for word in line)).rstrip()
            allowed = ""
        for function in functions:
            row = [cells[dtype, function, name] for name in columns]
            yield f"{function:<{width}}" + "".join(f" {cell!s:>9}" for cell in row)


def notes(functions=FUNCTIONS, guises=GUISES):
    """What is not in the table, and why."""
    for function in functions:
        if function.on_host:
            yield f"(host)  {function} is not compiled as a whole, only its kernels: {function.on_host}"
    for guise in guises:
        if guise.missing:
            yield f"-       {guise} was skipped: {guise.missing}"


def main(functions=FUNCTIONS, guises=GUISES, examples=EXAMPLES):
    print("Worst relative deviation from NumPy in the same precision, over all examples; 0 is the same to the bit.")
    cells = table(functions, guises, examples=examples)
    print("\n".join(lines(cells, guises)), end="\n\n")
    print("\n".join(notes(functions, guises)))
    red = disagreements(cells)
    for line in red:
        print(f"\nDISAGREEMENT  {line}", file=sys.stderr)
    return 1 if red else 0


if __name__ == "__main__":
    sys.exit(main())
