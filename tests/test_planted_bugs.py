"""The suite can fail: one planted bug at a time, and the law that is there to catch it must fail on it."""

# ruff: noqa: E501  (one line for each bug)

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import test_bank
import test_clusters
import test_data
import test_kernels
import test_neighbours
import test_objectives
import test_scan
import test_screen
import test_threads
import test_tiles
from planting import mutated
from strategies import TEMPERATURES, make_case, make_search
from variants import NUMPY, STRICT, TORCH

from la_core import bank, clusters, kernels, neighbours, objectives, tiles, views
from la_core.backends import host, low, scan
from la_core.backends.torch import kernels as torch_kernels
from la_core.backends.torch import screen

TRIALS = 12


@dataclass(frozen=True)
class Bug:
    name: str
    function: Any
    before: str
    after: str
    law: Any
    variants: tuple[Any, ...] = (NUMPY, TORCH)
    """Where this function is the one that answers."""

    def __str__(self):
        return self.name


def on_cases(law):
    def check(variant):
        for seed in range(TRIALS):
            law(variant, make_case(seed, temperature=TEMPERATURES[1 + seed % 3]))

    return check


def on_searches(law):
    def check(variant):
        for seed in range(TRIALS):
            law(variant, make_search(seed, budget=(500, 2**26)[seed % 2]))  # one query at a time, and all together

    return check


def on_seeds(law):
    def check(variant):
        for seed in range(TRIALS):
            law(variant, seed)

    return check


derivative = on_cases(test_objectives.law_cotangent_is_the_derivative)
renaming = on_cases(test_objectives.law_names_of_clusters_do_not_matter)
within = on_cases(test_objectives.law_labels_compare_within_one_clustering)
scaling = on_cases(test_objectives.law_length_of_z_does_not_matter)
permuting = on_cases(test_objectives.law_samples_may_be_permuted)
rotating = on_cases(test_objectives.law_rotations_do_not_matter)
batching = on_cases(test_objectives.law_batch_may_be_permuted)
unit_bank = on_cases(test_bank.law_touched_rows_are_unit)
mixed_mean = on_cases(test_bank.law_update_is_the_mixed_mean)
untouched = on_cases(test_bank.law_other_rows_keep_their_bits)
exact_search = on_searches(test_neighbours.law_nearest_is_exact)
scanned = on_searches(test_scan.law_a_scan_is_exact)
lossless = on_seeds(lambda variant, seed: test_screen.law_nothing_is_lost(seed))
screened = on_seeds(lambda variant, seed: test_screen.law_what_passes_exceeds_the_threshold(seed))
tiled = on_seeds(test_tiles.law_every_row_is_with_its_nearest_centroid)
all_used = on_seeds(test_clusters.law_every_cluster_is_used)
shared = on_cases(lambda variant, case: test_threads.law_shares_of_a_batch_are_the_whole(variant, case))
squares = on_seeds(test_clusters.law_inertia_is_the_sum_of_squares)
means = on_seeds(test_clusters.law_centroids_are_means_at_the_fixed_point)
nearest_centroid = on_seeds(test_clusters.law_every_row_is_with_its_nearest_centroid)
ratio = on_seeds(lambda variant, seed: test_kernels.law_the_fast_ratio_is_the_reference(seed))

ties_and_nan = on_seeds(test_scan.law_ties_do_not_make_up_for_a_nan)
best = on_seeds(test_kernels.law_the_best_are_the_reference)
stretches = on_seeds(lambda variant, seed: test_kernels.law_a_bank_read_by_stretches_is_the_reference(seed))
one_exponential = on_seeds(lambda variant, seed: test_kernels.law_one_exponential_is_enough(seed))

WEIGHTS = "mass / total - close_mass / close_total"
THEIRS = "entries(labels[h, :], neighbours)"
PUT = "kernels.put_rows(bank, indices, rows)"

BUGS = (
    Bug("cotangent with the wrong sign", kernels.softmax_ratio.reference, WEIGHTS, "close_mass / close_total - mass / total", derivative, (STRICT,)),
    Bug("cotangent of rows without close neighbours", kernels.softmax_ratio.reference, "xp.where(some, mass", "xp.where(some | True, mass", derivative, (STRICT,)),
    Bug("cotangent of the sum, not the mean", objectives.aggregate.reference, "(temperature * batch)", "temperature", derivative),
    Bug("cotangent without the temperature", objectives.aggregate.reference, "(temperature * batch)", "batch", derivative),
    Bug("cotangent of the mean over a share", objectives.aggregate.reference, "(temperature * batch)", "(temperature * v.shape[0])", shared),
    Bug("every share is the first", host.in_shares, "lambda rows: work(rows,", "lambda rows: work(slice(0, rows.stop - rows.start),", on_seeds(test_threads.law_shares_of_a_search_are_the_whole)),
    Bug("places among the first of all rows", scan.top_k, "n * np.arange(len(flat))", "0 * np.arange(len(flat))", best),
    Bug("NaN above a guess goes unseen", scan._best_above_a_guess, "not np.isnan(values).any()", "True", ties_and_nan),
    Bug("a stretch forgotten", torch_kernels._by_stretches, "cuts[1:].ravel()", "np.maximum(cuts[1:] - 1, cuts[:-1]).ravel()", stretches, (TORCH,)),
    Bug("a share with the samples of another", host.aggregate, "indices[rows]", "indices[: v[rows].shape[0]]", shared),
    Bug("cotangent not through the unit length", objectives._through_unit, "(pull - ", "(pull - 0.0 * ", derivative),
    Bug("cotangent along z", objectives._through_unit, "(pull - ", "(pull - 0.0 * ", scaling),
    Bug("log of the wrong k", kernels.softmax_ratio.reference, "math.log(s.shape[1])", "math.log(s.shape[1] + 1)", derivative, (STRICT,)),
    Bug("labels compared across clusterings", kernels.votes.reference, THEIRS, "entries(labels[h - 1, :], neighbours)", renaming, (STRICT,)),
    Bug("labels compared across clusterings", kernels.votes.reference, THEIRS, "entries(labels[h - 1, :], neighbours)", within, (STRICT,)),
    Bug("only the first clustering counts", kernels.votes.reference, "range(labels.shape[0])", "range(1)", derivative, (STRICT,)),
    Bug("no cluster is a cluster", kernels.votes.reference, "& (mine >= 0)", "", derivative, (STRICT,)),
    Bug("anchors off by one", kernels.votes.reference, "xp.take(labels[h, :], indices)", "xp.take(labels[h, :], (indices + 1) % labels.shape[1])", permuting, (STRICT,)),
    Bug("the undecided are repelled", neighbours.verdict, "(votes > 0) & ~mask", "(votes < 0) & ~mask", on_cases(
        lambda variant, case: test_objectives.law_cotangent_is_the_derivative(variant, replace(case, combine="majority", labels=np.repeat(case.labels, [1, 2], axis=0))))),
    Bug("labels compared across clusterings", host.votes, "zip(labels, own", "zip(labels[::-1], own", within),
    Bug("no cluster is a cluster", host.votes, "& (mine >= 0)", "", on_seeds(test_kernels.law_votes_are_the_reference)),
    Bug("more votes than a byte counts", host.votes, "many < 256", "True", on_seeds(test_kernels.law_votes_are_the_reference)),
    Bug("labels above a byte", host.votes, "labels.max() < NO_CLUSTER", "True", on_seeds(test_kernels.law_votes_are_the_reference)),
    Bug("samples without a cluster share one", host._count_equal_bytes, "np.minimum(np.take(table, indices, axis=0), NO_CLUSTER)", "np.take(table, indices, axis=0)", on_seeds(test_kernels.law_votes_are_the_reference)),
    Bug("labels that differ in the highest bit", host._count_equal_bytes, "high |= differ", "pass", on_seeds(test_kernels.law_votes_are_the_reference)),
    Bug("the first eight clusterings again", host.votes, "labels[eight]", "labels[: eight.stop - eight.start]", on_seeds(test_kernels.law_votes_are_the_reference)),
    Bug("equals are thought distinct", host.distinct, "== indices.size", "<= indices.size", on_seeds(test_kernels.law_means_of_equals_are_the_reference)),
    Bug("a large sum is taken for infinity", torch_kernels.finite, "bool(torch.isfinite(x).all())", "False", on_seeds(test_kernels.law_infinity_is_told_from_a_large_sum), (TORCH,)),
    Bug("C's mass vanishes", host.softmax_ratio, "return kernels.softmax_ratio.reference(s, mask)", "close_total += 1e-30", one_exponential, (NUMPY,)),
    Bug("gradient without C", host.softmax_ratio, "weights *= some", "weights *= 1.0", one_exponential, (NUMPY,)),
    Bug("all of B is C", host.softmax_ratio, "weights * mask", "weights * (mask | True)", one_exponential, (NUMPY,)),
    Bug("outside of C has mass", torch_kernels.softmax_ratio, ".mul_(inside)", "", ratio, (TORCH,)),
    Bug("outside of C is infinite", torch_kernels.softmax_ratio, ".clamp_(max=0.0)", "", ratio, (TORCH,)),
    Bug("gradient without C", torch_kernels.softmax_ratio, ".mul_(some)", "", ratio, (TORCH,)),
    Bug("C with the peak of B", torch_kernels.softmax_ratio, "s.masked_fill(~mask, -torch.inf)", "s", ratio, (TORCH,)),
    Bug("a row without its k goes unseen", scan._reaching, "np.isnan(best).any()", "False", ties_and_nan),
    Bug("sorted the wrong way", torch_kernels.falling, "[:, ::-1]", "", on_seeds(test_kernels.law_rows_are_sorted), (TORCH,)),
    Bug("the farthest centroid on a CPU", host.assign, "np.argmax(", "np.argmin(", nearest_centroid, (NUMPY, TORCH)),
    Bug("a group's views by one generator", views.ImageView.begin, "self._draw(sample.shape, rng)", "self._draw(sample.shape, rngs[0])", lambda _: test_data.law_a_batch_is_its_samples_one_by_one(4), (NUMPY,)),
    Bug("an image is left at another size", views.ImageView._evaluated, "== (self.size, self.size)", "!= ()", lambda _: test_data.law_what_pillow_would_leave_alone_is_left_alone((6, 9)), (NUMPY,)),
    Bug("a direction of its own", bank.direction, "return x * scale", "return (x + 0.1) * scale", rotating),
    Bug("rows of the batch mixed up", objectives.aggregate.reference, "verdict(labels, indices, ", "verdict(labels, xp.flip(indices), ", batching),
    Bug("bank not made unit again", bank.mixed, "between * scale", "between", unit_bank),
    Bug("mixing the wrong way round", bank.mixed, "(1.0 - mixing) * old + mixing * fresh", "mixing * old + 0.25 * fresh", mixed_mean),
    Bug("index off by one in the update", bank.mixed, PUT, "kernels.put_rows(bank, (indices + 1) % bank.shape[0], rows)", mixed_mean),
    Bug("index off by one in the update", bank.mixed, PUT, "kernels.put_rows(bank, (indices + 1) % bank.shape[0], rows)", untouched),
    Bug("duplicates not averaged", bank.mixed, "kernels.mean_of_equals(unit(kernels.like(z, bank)), indices)", "unit(kernels.like(z, bank))", on_cases(
        lambda variant, case: test_bank.law_update_is_the_mixed_mean(variant, make_case(int(case.n_background), n=2, batch=5)))),
    Bug("index off by one between blocks", kernels.nearest.reference, "columns + rows.start", "columns + rows.start - int(rows.start > 0)", exact_search),
    Bug("last block forgotten", kernels.nearest.reference, "blocks(bank.shape[0], ", "blocks(max(k, bank.shape[0] - 1), ", exact_search),
    Bug("a guess that was too high is believed", scan.scan, "== -np.inf", "== np.inf", test_scan.law_a_guess_is_verified),
    Bug("scanned rows counted from the block's first", scan._Candidates.add, "np.repeat(rows.start - starts", "np.repeat(-starts", scanned),
    Bug("without room the threshold is raised too far", scan._Candidates.tighten, "values.min(", "values.max(", scanned),
    Bug("scores with the rows of other scores", scan.exactly, "np.take(block, flat)", "np.take(block, flat[::-1])", scanned, (TORCH,)),
    Bug("scores with the rows of other scores", scan.exactly, "np.take(block, np.take(flat, order))", "np.take(block, flat)", scanned, (NUMPY,)),
    Bug("rows of a query do not rise", scan.exactly, "order = np.argsort(query.astype(np.uint16)", "order = np.argsort(query * 10_000 - row", scanned, (NUMPY,)),
    Bug("what a query does not have is made up", scan._Candidates.table, "-np.inf", "0.0", test_scan.law_a_guess_is_verified),
    Bug("rows of a part counted from its first", scan._fill, "_shifted(some, span.start)", "some", scanned),
    Bug("queries of a pass counted from the first", scan.Task.some, "_shifted(some, queries.start)", "some", scanned),
    Bug("rows lose nothing to bfloat16", low.margin, "norm * kind.roundoff +", "", lossless, (TORCH,)),
    Bug("queries lose nothing to bfloat16", low.margin, "(error + ", "(", lossless, (TORCH,)),
    Bug("scores lose nothing to bfloat16", screen.Screen._candidates, "1.0 - low.BFLOAT16.roundoff", "1.0", lossless, (TORCH,)),
    Bug("the margin is for rows of unit length", screen.Screen._candidates, "_norm(some.numpy())", "1.0", lossless, (TORCH,)),
    Bug("what may exceed the threshold does", screen.Screen.__call__, "scores > ", "scores >= -1e9 * ", screened, (TORCH,)),
    Bug("scored again with the pairs of others", screen.Screen._scored, "row[part]", "row[part][::-1]", screened, (TORCH,)),
    Bug("candidates of other queries are selected from", scan._few, "_shifted(few, queries.start)", "few", scanned),
    Bug("memory of all parts but one forgotten", scan._cut, "(parts * (candidates", "(1 * (candidates", lambda variant: test_scan.law_memory_stays_within_the_budget(1000, 2, 2**24)),
    Bug("a part's candidates forgotten", scan._search, "for x in xs]", "for x in xs[: max(1, len(xs) - 1)]]", scanned),
    Bug("lost centroids stay lost", clusters.means, "if n_empty:", "if n_empty < 0:", all_used),
    Bug("distance from the origin forgotten", kernels.assign.reference, "xp.vecdot(block, block) - ", "1.5 * xp.vecdot(block, block) - ", squares, (STRICT,)),
    Bug("means divided by one too many", kernels.segment_mean, "xp.clip(counts, min=1.0)", "(counts + 1.0)", means),
    Bug("assigned by the dot product alone", kernels.assign.reference, "block @ columns - half", "block @ columns - 0.0 * half", nearest_centroid, (STRICT,)),
    Bug("distance from the origin forgotten", host.assign, "vecdot(x, x) - ", "vecdot(x, x) * 1.5 - ", squares, (NUMPY, TORCH)),
    Bug("assigned by the dot product alone", host.assign, "-0.5 * np", "-0.0 * np", nearest_centroid, (NUMPY, TORCH)),
    Bug("every row counts as its cluster's centroid", tiles.near, "xp.sqrt(apart + off)", "0.0", on_seeds(test_tiles.law_sure_rows_are_right)),
    Bug("lists of the first share for all", host.neighbours, "of[some]", "of[: len(of[some])]", test_threads.law_lists_of_shares_are_the_whole, (NUMPY,)),
    Bug("unsure rows are believed", tiles.assign, "if unsure:", "if False:", tiled),
    Bug("rows asked again in the wrong order", tiles.assign, "xp.take(x, rows, axis=0)", "xp.take(x, xp.flip(rows), axis=0)", tiled),
    Bug("tiles lose what their clusters are", tiles.by_cluster, "xp.take(first, own)", "own", on_seeds(test_tiles.law_a_tile_holds_rows_of_one_cluster_and_every_row_is_in_one)),
    Bug("a list without the nearest", tiles.neighbours.reference, "2.0 * own", "-2.0 * own", on_seeds(test_tiles.law_lists_are_of_the_nearest)),
)  # fmt: skip


@pytest.mark.parametrize(("bug", "variant"), [pytest.param(b, v, id=f"{b}-{v}") for b in BUGS for v in b.variants])
def test_planted_bug_is_caught(monkeypatch, variant, bug):
    bug.law(variant)
    monkeypatch.setattr(bug.function, "__code__", mutated(bug.function, bug.before, bug.after))
    with pytest.raises(AssertionError):
        bug.law(variant)
    monkeypatch.undo()
    bug.law(variant)
