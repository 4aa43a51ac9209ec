"""The planner's times beside measured ones: a search and a clustering on NumPy at three sizes. Nothing else running.

python benchmarks/plan.py       a minute or two; prints each prediction, what it took, and their ratio
"""

from __future__ import annotations

import argparse
import time

import la_core
from la_core import kernels
from la_core.planner import measured, plan

SIZES = ((50_000, 500), (200_000, 1000), (800_000, 1000))
"""N and m. Rows are isotropic, so that k-means has no use for tiles and makes every iteration in full."""
DIM, BATCH, ITERATIONS = 128, 128, 2


def main() -> None:
    """Measure the rates once, then predict and measure each size."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    rates = measured(dim=DIM, batch=BATCH)
    print(f"rates, {rates.source}: search {rates.search:.3g}, clustering {rates.assign:.3g} operations a second")
    print(f"{'':<14}{'rows':>9}{'predicted':>12}{'measured':>12}{'ratio':>8}")
    for n, m in SIZES:
        settings = la_core.Settings(n_clusters=m, n_clusterings=1, n_iter=ITERATIONS, tolerance=0.0, batch_size=BATCH)
        outlook = plan(n, DIM, settings=settings, devices=(1,), rates=rates)
        seconds = {line.name: line.amount for line in outlook.shares[0].seconds}
        bank, z = la_core.random_rows(n, DIM, seed=0), la_core.random_rows(BATCH, DIM, seed=1)
        k = outlook.settings.n_background
        assert k is not None  # resolved
        for what, told in (("step", "step of aggregation"), ("clustering", "clustering, at most")):
            began = time.perf_counter()
            if what == "step":
                kernels.nearest(z, bank, k)
            else:
                la_core.cluster(bank, n_clusters=m, seed=0, n_iter=ITERATIONS, tolerance=0.0)
            took = time.perf_counter() - began
            print(f"{what:<14}{n:>9}{seconds[told]:>10.3f} s{took:>10.3f} s{took / seconds[told]:>8.2f}")


if __name__ == "__main__":
    main()
