"""What is JAX's own: tracing, float64, donation, compilation, derivatives, and its encoder."""

import subprocess
import sys
from functools import partial

import numpy as np
import pytest

jax = pytest.importorskip("jax")

import jax.numpy as jnp
import optax
from flax import nnx
from golden import CASES, assert_golden, golden
from strategies import make_case
from variants import EXACT, Variant, assert_close, assert_same

import la_core
from la_core import clusters, kernels
from la_core.backends.jax import (
    JaxEncoder,
    Perceptron,
    ResNet18,
    SmallCNN,
    decayed,
    instance_discrimination_loss,
    local_aggregation_loss,
    make_optimizer,
    nnx_encoder,
    scan,
)
from la_core.data import Samples
from la_core.errors import BackendError, KindError, NotFiniteError, RangeError, ShapeError

BACKEND = la_core.backend("jax")


class Jax(Variant):
    def asarray(self, host, *, copy=True):
        return BACKEND.asarray(host)

    def to_host(self, x):
        return BACKEND.to_host(x)


JAX = Jax("jax", jnp)
every_case = pytest.mark.parametrize("name", CASES)
ways = pytest.mark.parametrize("way", [lambda f: f, jax.jit], ids=["eager", "jitted"])


@pytest.fixture
def x64():
    with jax.enable_x64(True):
        yield


def draw(seed=0, batch=3, n=9, dim=4, dtype=np.float64):
    rng = np.random.default_rng(seed)
    z, bank = (jnp.asarray(rng.standard_normal(shape).astype(dtype)) for shape in ((batch, dim), (n, dim)))
    return z, bank, jnp.asarray(rng.integers(0, n, (batch, 5)))


# The published code's numbers, and gradients ---------------------------------------------------------------------


@every_case
@pytest.mark.usefixtures("x64")
def test_golden_values(name):
    case = golden(name, JAX)
    loss, cotangent = la_core.local_aggregation_and_cotangent(
        case.embeddings, case.state, case.indices, **case.settings
    )
    assert_golden(np.asarray(loss), case.la_loss_rows)
    assert_golden(np.asarray(cotangent), case.la_grad)
    loss, cotangent = la_core.instance_discrimination_and_cotangent(
        case.embeddings, case.bank, case.indices, noise=case.noise, **case.nce
    )
    assert_golden(np.asarray(loss).mean(), case.ir_loss)
    assert_golden(np.asarray(cotangent), case.ir_grad)
    state = la_core.update(case.state, case.indices, case.embeddings, mixing=case.mixing)
    assert_golden(np.asarray(state.bank)[np.asarray(case.indices)], case.new_rows)


@every_case
@ways
@pytest.mark.usefixtures("x64")
def test_golden_gradients_in_a_grad_of_ones_own(name, way):
    case = golden(name, JAX)

    def custom(z):
        return local_aggregation_loss(z, case.bank, case.state.labels, case.indices, **case.settings)

    def native(z):
        return la_core.local_aggregation(z, case.state, case.indices, **case.settings).mean()

    for function in (custom, native):
        loss, gradient = way(jax.value_and_grad(function))(case.embeddings)
        assert_golden(float(loss), case.la_loss)
        assert_golden(np.asarray(gradient), case.la_grad)

    def custom_noise(z):
        return instance_discrimination_loss(z, case.bank, case.indices, case.noise, **case.nce)

    def native_noise(z):
        return la_core.instance_discrimination(z, case.bank, case.indices, noise=case.noise, **case.nce).mean()

    for function in (custom_noise, native_noise):
        loss, gradient = way(jax.value_and_grad(function))(case.embeddings)
        assert_golden(float(loss), case.ir_loss)
        assert_golden(np.asarray(gradient), case.ir_grad)


@ways
@pytest.mark.usefixtures("x64")
@pytest.mark.parametrize("seed", range(3))
def test_custom_gradient_is_the_cotangent(way, seed):
    there = make_case(seed, n_clusterings=3).on(JAX)
    _, want = la_core.local_aggregation_and_cotangent(there.z, there.state, there.indices, **there.settings)
    loss = partial(local_aggregation_loss, **there.settings)
    got = way(jax.grad(lambda z: 3.0 * loss(z, there.bank, there.labels, there.indices)))(there.z)
    assert_close(got, 3 * np.asarray(want), EXACT, np.abs(want).max())

    _, want = la_core.instance_discrimination_and_cotangent(there.z, there.bank, there.indices, temperature=0.1)
    got = way(jax.grad(lambda z: instance_discrimination_loss(z, there.bank, there.indices, temperature=0.1)))(there.z)
    assert_close(got, want, EXACT, np.abs(want).max())


@pytest.mark.usefixtures("x64")
def test_half_precision_is_left_before_the_cotangent():
    there = make_case(1).astype(np.float32).on(JAX)
    loss = partial(local_aggregation_loss, **there.settings)
    half = there.z.astype(jnp.bfloat16)
    value, gradient = jax.value_and_grad(loss)(half, there.bank, there.labels, there.indices)
    exact, wide = jax.value_and_grad(loss)(half.astype(jnp.float32), there.bank, there.labels, there.indices)
    assert gradient.dtype == jnp.bfloat16
    assert value.dtype == jnp.float32
    assert value == exact
    assert_same(np.asarray(gradient.astype(jnp.float32)), np.asarray(wide.astype(jnp.bfloat16).astype(jnp.float32)))


@pytest.mark.parametrize("budget", [1, 2**20])
@pytest.mark.usefixtures("x64")
def test_derivatives_of_the_kernels(budget):
    z, bank, indices = draw()
    weights = jnp.asarray(np.random.default_rng(7).standard_normal(indices.shape))
    pairs = (
        (lambda z: kernels.nearest(z, bank, 4, budget)[0], lambda z: jnp.sort(jnp.sort(z @ bank.T)[:, -4:]), z),
        (lambda z: kernels.scores_at(z, bank, indices), lambda z: jnp.einsum("bd,bkd->bk", z, bank[indices]), z),
        (
            lambda w: kernels.weighted_rows(w, bank, indices),
            lambda w: jnp.einsum("bk,bkd->bd", w, bank[indices]),
            weights,
        ),
        (
            lambda z: kernels.softmax_mean(z, bank, 0.5, budget)[0],
            lambda z: jax.nn.logsumexp(z @ bank.T / 0.5, axis=1),
            z,
        ),
        (
            lambda z: kernels.softmax_mean(z, bank, 0.5, budget)[1],
            lambda z: jax.nn.softmax(z @ bank.T / 0.5, axis=1) @ bank,
            z,
        ),
    )
    for kernel, plain, x in pairs:

        def total(f, x):
            return (f(x) ** 2).sum()

        def turned(f, x):
            return (jax.grad(partial(total, f))(x) ** 3).sum()

        for order in (total, turned):
            want = jax.grad(partial(order, plain))(x)
            for way in (lambda f: f, jax.jit):
                got = way(jax.grad(partial(order, kernel)))(x)
                assert_close(got, want, 1e-11, np.abs(want).max())


def test_derivative_of_the_softmax_makes_no_second_pass():
    z, bank, _ = draw(dtype=np.float32)

    def lse(z):
        return kernels.softmax_mean(z, bank, 0.5)[0].sum()

    once = str(jax.make_jaxpr(lse)(z)).count("scan[")
    assert once > 0
    assert str(jax.make_jaxpr(jax.grad(jax.jit(lse)))(z)).count("scan[") == once


# Kernels ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "k"), [(20_000, 3), (33_333, 500), (9_000, 9_000)])
@pytest.mark.parametrize("ties", [True, False])
def test_selection_by_groups_is_exact(n, k, ties):
    rng = np.random.default_rng(k)
    x = (rng.integers(-9, 9, (2, n)) if ties else rng.standard_normal((2, n))).astype(np.float32)
    values, columns = kernels.top_k(jnp.asarray(x), k)
    want_values, want = kernels.top_k.reference(x, k)
    np.testing.assert_array_equal(np.asarray(columns), want)
    assert_same(np.asarray(values), want_values)


def test_no_selection_runs_over_a_million_columns():
    jaxpr = str(jax.make_jaxpr(lambda x: kernels.top_k(x, 4096))(jax.ShapeDtypeStruct((2, 1_000_000), jnp.float32)))
    ranked = [line for line in jaxpr.splitlines() if " top_k[" in line]
    sorts = [line for line in jaxpr.splitlines() if " sort[" in line]
    assert ranked
    assert not [line for line in ranked + sorts if "1000000" in line]


def test_zero_has_no_sign_in_a_selection():
    x = jnp.asarray([[-0.0, 0.0, -0.0, 0.0, -1.0]])
    assert kernels.top_k(x, 2)[1].tolist() == [[0, 1]]


@pytest.mark.parametrize("sign", [1, -1])
def test_a_bank_with_nan_is_refused(sign):
    z, bank, _ = draw(dtype=np.float32)
    bank = bank.at[5, 0].set(sign * jnp.nan)
    with pytest.raises(NotFiniteError, match="bank must be finite"):
        la_core.nearest(z, bank, 3)


@pytest.mark.parametrize("kernel", ["nearest", "softmax_mean"])
def test_the_scores_are_never_stored_whole(kernel):
    batch, n, dim, budget = 64, 50_000, 16, 2**20
    z, bank = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, dim), (n, dim)))
    setting = 100 if kernel == "nearest" else 0.1
    run = jax.jit(lambda z, bank: getattr(kernels, kernel)(z, bank, setting, budget))
    used = run.lower(z, bank).compile().memory_analysis().temp_size_in_bytes
    assert used < 2 * budget < 4 * batch * n


def test_update_gives_the_bank_away():
    z, bank, _ = draw(n=4096, dim=64, dtype=np.float32)
    indices = jnp.arange(3)
    bank = BACKEND.asarray(np.asarray(la_core.unit(bank)))
    place = bank.unsafe_buffer_pointer()
    state = la_core.update(la_core.State(bank), indices, z)
    assert bank.is_deleted()
    assert state.bank.unsafe_buffer_pointer() == place


def test_what_went_to_the_host_stays_as_it_was():
    z, bank, _ = draw(n=512, dtype=np.float32)
    there = BACKEND.asarray(np.asarray(bank))
    host = BACKEND.to_host(there)
    before = host.copy()
    la_core.update(la_core.State(there), jnp.arange(3), z)
    assert_same(host, before)
    assert_same(np.asarray(bank), before)


def test_a_whole_step_in_one_jit():
    there = make_case(3).astype(np.float32).on(JAX)

    @jax.jit
    def step(bank, z):
        state = la_core.State(bank, there.labels)
        loss, cotangent = la_core.local_aggregation_and_cotangent(z, state, there.indices, **there.settings)
        return loss, cotangent, la_core.update(state, there.indices, z).bank

    got = step(there.bank, there.z)
    loss, cotangent = la_core.local_aggregation_and_cotangent(there.z, there.state, there.indices, **there.settings)
    for x, y in zip(got, (loss, cotangent, la_core.update(there.state, there.indices, there.z).bank), strict=True):
        assert_close(x, y, 5e-6, np.abs(y).max())


def test_a_compiled_step_copies_no_bank_where_the_update_is_compiled_by_itself():
    """A large bank, which is scanned. A step in one piece shows that a copy would be seen: there XLA makes one."""
    batch, n, dim, settings = 4, scan.LEAST, 32, {"n_background": 8, "temperature": 0.1}

    def loss(z, state, indices):
        return jax.value_and_grad(partial(local_aggregation_loss, **settings))(z, *state, indices)

    def both(state, indices, z):
        return loss(z, state, indices), la_core.update(state, indices, z)

    def temporary(function, *args, donate=()):
        """In units of the bank."""
        compiled = jax.jit(function, donate_argnums=donate).lower(*args).compile()
        return compiled.memory_analysis().temp_size_in_bytes / (4 * n * dim)

    z, bank = (jax.ShapeDtypeStruct((rows, dim), jnp.float32) for rows in (batch, n))
    labels, indices = (jax.ShapeDtypeStruct(shape, jnp.int32) for shape in ((2, n), (batch,)))
    state = la_core.State(bank, labels)
    assert temporary(loss, z, state, indices) < 0.5
    assert temporary(la_core.update, state, indices, z, donate=0) < 0.1
    assert temporary(both, state, indices, z, donate=0) > 1


# Bad input -------------------------------------------------------------------------------------------------------


def test_float64_without_x64_says_how_to_switch_it_on():
    with pytest.raises(KindError, match="jax_enable_x64"):
        BACKEND.asarray(np.ones(3))
    with jax.enable_x64(True):
        assert BACKEND.asarray(np.ones(3)).dtype == jnp.float64


def test_integers_become_narrow_only_where_they_fit():
    assert BACKEND.asarray(np.array([2**31 - 1])).dtype == jnp.int32
    with pytest.raises(KindError, match="32 bits"):
        BACKEND.asarray(np.array([2**31]))


def test_asarray_copies():
    host = np.ones((1000, 64), np.float32)
    there = BACKEND.asarray(host)
    host[0] = 7
    assert there[0, 0] == 1


@pytest.mark.parametrize("device", ["no such device", "gpu:first", "cpu:99", "cuda:99"])
def test_device_that_is_not_there(device):
    with pytest.raises(BackendError, match=device):
        la_core.backend("jax", device)


def test_device_by_number():
    assert la_core.backend("jax", "cpu:0").asarray(np.arange(3)).device == jax.devices("cpu")[0]


def test_traced_numbers_ask_to_be_static():
    z, bank, _ = draw(dtype=np.float32)
    with pytest.raises(KindError, match=r"k must be a Python integer, not a traced value: mark it static"):
        jax.jit(la_core.nearest)(z, bank, 3)
    scores, _ = jax.jit(la_core.nearest, static_argnames="k")(z, bank, 3)
    assert scores.shape == (3, 3)
    with pytest.raises(KindError, match=r"temperature must be a Python number, not a traced value: mark it static"):
        jax.jit(lambda z, t: la_core.instance_discrimination(z, bank, jnp.arange(3), temperature=t))(z, 0.1)
    with pytest.raises(KindError, match=r"temperature must be a Python number, not a traced value: mark it static"):
        jax.jit(lambda z, t: instance_discrimination_loss(z, bank, jnp.arange(3), temperature=t))(z, 0.1)


def test_shapes_and_kinds_are_checked_while_tracing():
    z, bank, _ = draw(dtype=np.float32)
    with pytest.raises(ShapeError, match="width of the bank"):
        jax.jit(lambda z: la_core.nearest(z, bank, 2))(z[:, :2])
    with pytest.raises(KindError, match="real floating"):
        jax.jit(lambda z: la_core.nearest(z, bank, 2))(z.astype(int))
    with pytest.raises(KindError, match="arrays of one library"):
        jax.jit(lambda z: la_core.nearest(z, np.asarray(bank), 2))(z)


def test_what_can_be_seen_while_tracing_is_checked():
    z, bank, _ = draw(dtype=np.float32)
    wrong, poisoned = jnp.asarray([0, 1, 9]), z.at[1, 0].set(jnp.nan)
    for way in (lambda f: f, jax.jit, jax.grad):
        with pytest.raises(RangeError, match="got 9"):
            way(lambda z: instance_discrimination_loss(z, bank, wrong, temperature=0.1))(z)
    with pytest.raises(NotFiniteError, match="first row 1"):
        jax.jit(lambda bank: la_core.nearest(poisoned, bank, 2))(bank)


def test_functions_of_the_host_refuse_to_be_traced():
    z, bank, _ = draw(dtype=np.float32)
    with pytest.raises(KindError, match="outside of a jit"):
        jax.jit(lambda bank: la_core.cluster(bank, n_clusters=2, seed=0).labels)(bank)
    with pytest.raises(KindError, match="outside of a jit"):
        jax.jit(lambda bank: la_core.evaluate.knn(bank, jnp.arange(9), z, k=2))(bank)


def test_arrays_alone_need_neither_flax_nor_optax():
    program = (
        "import sys, jax.numpy as jnp, la_core\n"
        "la_core.nearest(jnp.ones((2, 3)), jnp.ones((4, 3)), 2)\n"
        "print(sorted({'flax', 'optax'} & set(sys.modules)), 'la_core.backends.jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    assert done.stdout.strip() == "[] True"
    with pytest.raises(AttributeError, match="nothing"):
        la_core.backends.jax.nothing  # noqa: B018


# Encoders --------------------------------------------------------------------------------------------------------

DIM, BATCH = 6, 5
SETTINGS = la_core.Settings(learning_rate=0.5, weight_decay=0.1)


class Net(nnx.Module):
    """A bit of everything: convolution, batch norm, layer norm, dropout."""

    def __init__(self, seed=0, rate=0.0):
        rngs = nnx.Rngs(seed)
        self.conv, self.norm = nnx.Conv(1, 4, (3, 3), use_bias=False, rngs=rngs), nnx.BatchNorm(4, rngs=rngs)
        self.drop, self.layer = nnx.Dropout(rate, rngs=rngs), nnx.LayerNorm(4, rngs=rngs)
        self.head = nnx.Linear(4, DIM, rngs=rngs)

    def features(self, x):
        return self.layer(self.drop(nnx.relu(self.norm(self.conv(jnp.moveaxis(x, 1, -1)))).mean((1, 2))))

    def __call__(self, x):
        return self.head(self.features(x))


def images(seed=0, batch=BATCH, channels=1, size=6):
    return jnp.asarray(np.random.default_rng(seed).standard_normal((batch, channels, size, size)), jnp.float32)


def encoder(seed=0, settings=SETTINGS, rate=0.0):
    net = Net(seed, rate)
    return nnx_encoder(net, make_optimizer(settings, decayed(net)))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_pullback_and_step_are_plain_optax(optimizer):
    settings = la_core.Settings(learning_rate=0.5, weight_decay=0.1, optimizer=optimizer)
    net = Net()
    mine = nnx_encoder(net, make_optimizer(settings, decayed(net)))
    graph, parameters, state = nnx.split(net, nnx.Param, ...)
    parameters, state = nnx.to_pure_dict(parameters), nnx.to_pure_dict(state)
    mask = jax.tree_util.tree_map_with_path(
        lambda path, x: "norm" not in str(path) and "layer" not in str(path), parameters
    )
    rate = 0.1

    def plain_optimizer(rate):
        if optimizer == "adam":
            return optax.adamw(rate, weight_decay=0.1, mask=mask)
        return optax.chain(optax.add_decayed_weights(0.1, mask), optax.trace(0.9), optax.scale(-rate))

    moments = plain_optimizer(rate).init(parameters)
    for step, rate in enumerate((0.1, 0.1, 0.02)):
        cotangent = jnp.asarray(np.random.default_rng(step).standard_normal((BATCH, DIM)), jnp.float32)
        z, back = mine.pullback(images(step))
        back(cotangent)
        mine.step(rate)

        def total(parameters, state=state, step=step, cotangent=cotangent):
            module = nnx.merge(graph, parameters, state)
            z = module(images(step))
            return (z * cotangent).sum(), (z, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param))))

        gradients, (out, state) = jax.grad(total, has_aux=True)(parameters)
        updates, moments = plain_optimizer(rate).update(gradients, moments, parameters)
        parameters = optax.apply_updates(parameters, updates)
        assert_close(z, out, 1e-4, 1.0)
    want = jax.tree.leaves((parameters, state))
    for x, y in zip(jax.tree.leaves((mine.parameters, mine.state)), want, strict=True):
        if jnp.issubdtype(x.dtype, jnp.floating):
            assert_close(x, y, 1e-3, 1.0)


def test_any_pytree_is_an_encoder():
    parameters = {"w": jnp.ones((36, DIM)), "deep": [jnp.zeros(DIM)]}

    def apply(parameters, count, batch, training):
        x = batch.reshape(len(batch), -1)
        return x @ parameters["w"] + parameters["deep"][0], x, count + training

    made = JaxEncoder(apply, parameters, jnp.asarray(0), optax.inject_hyperparams(optax.sgd)(learning_rate=1.0))
    z, back = made.pullback(images())
    back(jnp.ones_like(z))
    made.step(0.5)
    assert_close(made.parameters["deep"][0], np.full(DIM, -0.5 * BATCH), 1e-6)
    assert made.state == 1
    assert set(made.weights()) == {"parameters.w", "parameters.deep.0", "state"}
    assert parameters["w"].sum() == 36 * DIM  # the caller's arrays are the caller's
    z, features = made.apply(images())
    assert (z.shape, features.shape) == ((BATCH, DIM), (BATCH, 36))


def test_normalisation_has_no_decay():
    mask = decayed(Net())
    assert mask["conv"] == {"kernel": True}
    assert mask["head"] == {"kernel": True, "bias": True}
    assert mask["norm"] == mask["layer"] == {"scale": False, "bias": False}


def test_apply_learns_nothing_and_pullback_moves_the_statistics():
    made = encoder()
    before = made.weights()
    made.apply(images())
    for name, x in made.weights().items():
        assert_same(x, before[name])
    made.pullback(images())
    moved = {name for name, x in made.weights().items() if not np.array_equal(x, before[name])}
    assert {"state.norm.mean", "state.norm.var"} <= moved
    assert all(name.startswith("state.") for name in moved)


def test_dropout_draws_anew_at_every_step_and_never_in_evaluation():
    made = encoder(rate=0.5)
    one, two = made.pullback(images())[0], made.pullback(images())[0]
    assert not np.allclose(one, two, atol=1e-3)
    assert_same(np.asarray(made.apply(images())[0]), np.asarray(made.apply(images())[0]))


def test_weights_round_trip():
    made, other = encoder(0, rate=0.5), encoder(1, rate=0.5)
    made.pullback(images())
    weights = made.weights()
    assert all(isinstance(x, np.ndarray) for x in weights.values())
    other.load(weights)
    for one, two in zip(made.apply(images()), other.apply(images()), strict=True):
        assert_same(np.asarray(one), np.asarray(two))
    z, back = made.pullback(images(1))
    assert_same(np.asarray(z), np.asarray(other.pullback(images(1))[0]))  # the keys of dropout went along
    back(z)
    made.step(0.1)
    assert_same(other.weights()["parameters.head.kernel"], weights["parameters.head.kernel"])
    assert not np.array_equal(made.weights()["parameters.head.kernel"], weights["parameters.head.kernel"])


def test_weights_of_another_encoder_are_refused():
    made = encoder()
    weights = made.weights()
    with pytest.raises(KindError, match=r"missing \['parameters.head.bias'\]"):
        made.load({name: x for name, x in weights.items() if name != "parameters.head.bias"})
    with pytest.raises(ShapeError, match=r"parameters.head.bias must have shape \(6,\)"):
        made.load(weights | {"parameters.head.bias": np.zeros(5, np.float32)})


def test_encoders_that_cannot_be_trained_or_used():
    with pytest.raises(BackendError, match="without an optimizer"):
        nnx_encoder(Net()).step(0.1)
    with pytest.raises(KindError, match="learning rate in its state"):
        nnx_encoder(Net(), optax.sgd(0.1))
    with pytest.raises(ShapeError, match=r"\(B, D\)"):
        JaxEncoder(lambda p, s, x, training: (x, x, s), ()).apply(images())


def test_half_precision_leaves_the_encoder_widened():
    made = JaxEncoder(lambda p, s, x, training: (*[x.reshape(len(x), -1).astype(jnp.bfloat16)] * 2, s), ())
    z, features = made.apply(images())
    assert z.dtype == features.dtype == jnp.float32


@pytest.mark.parametrize(
    ("module", "channels", "size", "width"),
    [
        (SmallCNN(1, DIM, width=4, rngs=nnx.Rngs(0)), 1, 28, 32),
        (ResNet18(3, DIM, width=4, stem="small", rngs=nnx.Rngs(0)), 3, 16, 32),
        (ResNet18(3, DIM, width=4, rngs=nnx.Rngs(0)), 3, 64, 32),
        (Perceptron((27, 16, 8, DIM), rngs=nnx.Rngs(0)), 3, 3, 8),
    ],
    ids=["cnn", "resnet small", "resnet imagenet", "perceptron"],
)
def test_networks(module, channels, size, width):
    made = nnx_encoder(module, make_optimizer(SETTINGS, decayed(module)))
    batch = images(batch=2, channels=channels, size=size)
    z, features = made.apply(batch)
    assert (z.shape, features.shape) == ((2, DIM), (2, width))
    z, back = made.pullback(batch)
    back(z)
    before = made.weights()
    made.step(0.1)
    after = made.weights()
    changed = {name for name in after if not np.array_equal(after[name], before[name])}
    assert {name for name in after if name.endswith("kernel")} <= changed
    module.eval()
    assert module(batch).shape == (2, DIM)


def test_images_come_channels_first():
    module = SmallCNN(2, DIM, width=4, blocks=2, rngs=nnx.Rngs(0))
    module.eval()
    x = images(channels=2, size=9)
    assert_close(module(x), module(jnp.asarray(np.ascontiguousarray(x))), 1e-6, 1.0)
    assert not np.allclose(module(x), module(x[:, ::-1]), atol=1e-4)


# The run ---------------------------------------------------------------------------------------------------------


class Compilations(la_core.Callback):
    """How many functions had been compiled when each epoch ended."""

    def __init__(self, log):
        self.log, self.counts = log, []

    def on_epoch(self, run, record):
        self.counts.append(sum("Compiling" in record.getMessage() for record in self.log.records))


@pytest.mark.parametrize("warmup", ["exact", "nce"])
def test_nothing_is_compiled_in_a_steady_run(warmup, caplog):
    rng = np.random.default_rng(0)
    n = 103 if warmup == "exact" else 111  # shapes of its own: what is compiled once stays so for other tests
    rows = rng.standard_normal((4, 12)).astype(np.float32)[rng.integers(0, 4, n)]
    rows += 0.3 * rng.standard_normal(rows.shape).astype(np.float32)
    settings = la_core.Settings(
        epochs=8, warmup_epochs=4, batch_size=20, warmup=warmup, n_noise=16, n_background=12, n_clusters=3, knn_k=5
    )
    net = Perceptron((12, 16, 8), rngs=nnx.Rngs(0))
    watch = Compilations(caplog)
    with jax.log_compiles(True):
        la_core.train(
            Samples(rows, rng.integers(0, 4, n)),
            nnx_encoder(net, make_optimizer(settings, decayed(net))),
            backend=BACKEND,
            settings=settings,
            callbacks=[watch],
            progress=False,
        )
    counts = watch.counts
    assert counts[0] > 0, "the count must see what is compiled"
    assert counts[1] == counts[3], counts  # the warm-up
    assert counts[5] == counts[7] > counts[3], counts  # Local Aggregation, clustering included


@pytest.mark.parametrize("precise", ["highest", None], ids=["as it is", "planted: without it"])
def test_clusterings_have_their_products_in_full_precision(precise, monkeypatch):
    """A GPU rounds products to TF32 unless it is told not to, and then rows go to other clusters than their own."""
    asked, plain = [], clusters.lloyd.reference

    def watched(*args):
        asked.append(jax.config.jax_default_matmul_precision)
        return plain(*args)

    monkeypatch.setattr(clusters.lloyd, "reference", watched)
    if precise is None:
        monkeypatch.setitem(clusters.lloyd.overrides, "jaxlib", watched)
    la_core.cluster(jnp.asarray(la_core.random_rows(20, 4, seed=0)), n_clusters=3, seed=0)
    assert asked == [precise]


@pytest.mark.parametrize("epochs", [2, 3, 5])
def test_labels_that_were_brought_outlast_the_steps_that_consume_them(epochs):
    rows, labels = la_core.random_rows(48, 12, seed=0), np.random.default_rng(0).integers(0, 4, (2, 48))
    settings = la_core.Settings(epochs=epochs, warmup_epochs=1, batch_size=16)
    net = Perceptron((12, 16, 8), rngs=nnx.Rngs(0))
    run = la_core.train(
        Samples(rows),
        nnx_encoder(net, make_optimizer(settings, decayed(net))),
        backend=BACKEND,
        settings=settings,
        labels=labels,
        progress=False,
    )
    np.testing.assert_array_equal(np.asarray(run.state.labels), labels)


def test_embeddings_in_bfloat16_that_are_concrete_inside_a_jit():
    bank, z = jnp.asarray(la_core.random_rows(9, 4, seed=0)), jnp.asarray(la_core.random_rows(3, 4, seed=1))
    z = z.astype(jnp.bfloat16)
    inside = jax.jit(lambda bank: la_core.nearest(z, bank, 2))(bank)
    for got, want in zip(inside, la_core.nearest(z, bank, 2), strict=True):
        np.testing.assert_array_equal(got, want)
    bad = z.at[1, 2].set(jnp.nan)
    with pytest.raises(NotFiniteError, match="row 1"):
        jax.jit(lambda bank: la_core.nearest(bad, bank, 2))(bank)
