"""PyTorch's backend: small steps on a CPU are made by NumPy, in the tensors' own memory."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest
import threadpoolctl
from strategies import make_case

torch = pytest.importorskip("torch")

import la_core
from la_core import State, clusters, objectives
from la_core.backends import threads
from la_core.backends.torch import small


def seen(compiled, *args):
    """What a compiled function gives, and the libraries that it was called with."""
    libraries = []

    def function(*given):
        libraries.extend(type(x).__module__ for x in leaves(given))
        return given

    return compiled(function)(*args), set(libraries)


def leaves(x):
    return [leaf for part in x for leaf in leaves(part)] if isinstance(x, tuple) else [x]


def test_a_small_step_is_numpy_s_in_the_same_memory():
    backend = la_core.backend("torch")
    state, z = State(torch.zeros(5, 3), torch.zeros(2, 5, dtype=torch.int32)), torch.ones(2, 3, requires_grad=True)
    (found, other, nothing), libraries = seen(backend.compile, state, z, None)
    assert libraries == {"numpy", "builtins"}
    assert type(found) is State
    assert nothing is None
    assert [x.data_ptr() for x in (*found, other)] == [x.data_ptr() for x in (*state, z)]
    assert [x.dtype for x in (*found, other)] == [x.dtype for x in (*state, z)]
    assert not other.requires_grad


@pytest.mark.parametrize(
    "bank", [torch.zeros(small.SMALL // 4 + 1, 1), torch.zeros(5, 3, dtype=torch.bfloat16)], ids=["large", "bfloat16"]
)
def test_what_numpy_is_not_for_stays_with_pytorch(bank):
    (found,), libraries = seen(la_core.backend("torch").compile, bank)
    assert libraries == {"torch"}
    assert found is bank


def test_what_cannot_be_written_comes_back_as_a_copy():
    (found,) = la_core.backend("torch").compile(lambda x: (np.broadcast_to(x, (3, 2)),))(torch.ones(2))
    assert found.tolist() == [[1.0, 1.0]] * 3
    found[0, 0] = 2.0
    assert found[1, 0] == 1.0


def test_the_bank_is_written_where_it_is():
    backend, case = la_core.backend("torch"), make_case(0)
    bank = torch.tensor(np.asarray(case.bank))
    moved = backend.compile(lambda state, rows, z: la_core.update(state, rows, z), (0,))
    indices, z = torch.tensor(np.asarray(case.indices)), torch.tensor(np.asarray(case.z))
    wanted = la_core.update(State(bank.clone()), indices, z).bank
    found = moved(State(bank), indices, z).bank
    assert found.data_ptr() == bank.data_ptr()
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_the_terms_are_those_of_pytorch():
    case = make_case(1)
    objective = partial(objectives.local_aggregation_terms, n_background=case.n_background, temperature=0.1)
    args = (
        torch.tensor(np.asarray(case.z)),
        State(torch.tensor(np.asarray(case.bank)), torch.tensor(np.asarray(case.labels))),
        torch.tensor(np.asarray(case.indices)),
    )
    by_numpy, by_torch = la_core.backend("torch").compile(objective)(*args), objective(*args)
    for ours, theirs in zip(by_numpy, by_torch, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)


def test_numpy_has_one_thread_in_small_steps_alone():
    inside = []

    def step(x):
        inside.append(threads._count())
        return (x,)

    with threadpoolctl.threadpool_limits(2, user_api="blas"):
        la_core.backend("torch").compile(step)(torch.ones(1))
        assert threads._count() == 2
    assert inside == [1]


def test_few_rows_are_clustered_by_numpy_and_many_by_pytorch():
    """Which shows in nothing but the time: so the calls are counted."""
    libraries = []

    def means(x, *rest):
        libraries.append(type(x).__module__)
        return plain(x, *rest)

    rows = np.asarray(make_case(2).bank)
    plain, clusters.means = clusters.means, means
    try:
        few = la_core.cluster(torch.tensor(rows), n_clusters=3, n_clusterings=2, seed=0)
        bare = la_core.cluster(np.array(rows), n_clusters=3, n_clusterings=2, seed=0)
        many = torch.nn.functional.normalize(torch.randn(small.SMALL // 4 // 8 + 1, 8))
        la_core.cluster(many, n_clusters=2, seed=0, n_iter=2)
    finally:
        clusters.means = plain
    assert libraries == sorted(libraries)  # "numpy" comes before "torch"
    assert set(libraries) == {"numpy", "torch"}
    assert few.labels.numpy().tolist() == bare.labels.tolist()
    assert [x.numpy().tolist() for x in few.centroids] == [x.tolist() for x in bare.centroids]


def test_what_is_given_away_is_taken_over_and_what_is_read_only_is_copied():
    backend, host = la_core.backend("torch"), np.zeros((2, 3), dtype=np.float32)
    assert backend.asarray(host, copy=False).data_ptr() == host.ctypes.data
    assert backend.asarray(host).data_ptr() != host.ctypes.data
    host.flags.writeable = False
    there = backend.asarray(host, copy=False)
    there += 1
    assert not host.any()


def test_the_second_derivative_of_the_exact_softmax_is_right():
    """A penalty on the gradient, against differences: the mean row of the bank moves with the embedding."""
    drawn = np.random.default_rng(0).standard_normal((20, 5))
    bank = torch.nn.functional.normalize(torch.tensor(drawn))
    z, indices = (2 * bank[:3] + 0.1).requires_grad_(), torch.arange(3)

    def penalty(z):
        loss = la_core.instance_discrimination(z, bank, indices, temperature=0.3)
        (slope,) = torch.autograd.grad(loss.mean(), z, create_graph=True)
        return (slope**2).sum()

    assert torch.autograd.gradcheck(penalty, (z,))
    (plain,) = torch.autograd.grad(penalty(z), z)
    with torch.autocast("cpu", torch.bfloat16):
        (half,) = torch.autograd.grad(penalty(z), z)
    assert torch.equal(half, plain)


def test_who_has_no_loop_of_his_own_waits_for_no_compiler():
    code = "import la_core, sys; la_core.backend('torch'); sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


@pytest.mark.parametrize("seed", [0, 2**63, 10**20])
def test_any_seed_is_one(seed):
    backend = la_core.backend("torch")
    draws = []
    for _ in range(2):
        backend.seed(seed)
        draws.append(torch.rand(3))
    assert torch.equal(*draws)
