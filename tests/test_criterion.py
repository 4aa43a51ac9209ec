"""The torch criterion for a loop of one's own, and the torch encoder."""

import gc
from copy import deepcopy
from functools import partial

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from variants import EXACT, assert_close, assert_same

import la_core
from la_core import State, objectives
from la_core.backends.torch import LocalAggregation, TorchEncoder, parameter_groups
from la_core.backends.torch.small import by_numpy
from la_core.errors import BackendError, KindError, ShapeError

N, DIM, BATCH = 40, 6, 5
SETTINGS = {"n_background": 12, "temperature": 0.1}


def draw(seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(BATCH, DIM, dtype=dtype, generator=generator)
    return z.requires_grad_(), torch.randint(0, N, (BATCH,), generator=generator)


def criterion(clusterings=2, **options):
    made = LocalAggregation(N, DIM, seed=1, **(SETTINGS | options)).double()
    if clusterings:
        made.cluster(n_clusters=6, n_clusterings=clusterings, seed=0)
    return made


@given(seed=st.integers(0, 2**31))
def test_loss_and_gradient_are_the_library_s(seed):
    made, (z, indices) = criterion(), draw(seed)
    loss, want = by_numpy(la_core.local_aggregation_and_cotangent)(
        z.detach(), la_core.State(made.bank.clone(), made.labels), indices, **SETTINGS
    )
    got = made(z, indices)
    assert_close(got.item(), loss.mean().item(), 1e-15)
    (3 * got).backward()
    assert_close(z.grad.numpy(), 3 * want.numpy(), 1e-15, np.abs(want.numpy()).max())


def test_settings_reach_the_objective():
    z, indices = draw()
    for options in ({"n_background": 20}, {"temperature": 0.3}, {"combine": "intersection"}, {"combine": "majority"}):
        made = criterion(3, **options)
        want = by_numpy(la_core.local_aggregation)(
            z.detach(), la_core.State(made.bank, made.labels), indices, **(SETTINGS | options)
        ).mean()
        assert made(z, indices).item() == want.item() != criterion(3)(z, indices).item()


@pytest.mark.parametrize("mixing", [0.2, 0.5])
def test_bank_is_updated_once_after_backward(mixing):
    made, (z, indices) = criterion(mixing=mixing), draw()
    before = made.bank.clone()
    want = by_numpy(la_core.update)(la_core.State(before.clone()), indices, z.detach(), mixing=mixing).bank
    loss = made(z, indices)
    assert torch.equal(made.bank, before)
    loss.backward(retain_graph=True)
    assert torch.equal(made.bank, want)
    assert not torch.equal(made.bank, before)
    loss.backward()
    assert torch.equal(made.bank, want)


def test_two_forward_passes_read_one_bank_and_both_update_it():
    made, (z, indices) = criterion(), draw()
    before = made.bank.clone()
    first, second = made(z[:2], indices[:2]), made(z[2:], indices[2:])
    (first + second).backward()
    touched = torch.zeros(N, dtype=torch.bool)
    touched[indices] = True
    assert torch.equal((made.bank != before).any(dim=1), touched)


def test_evaluation_mode_changes_nothing():
    made, (z, indices) = criterion().eval(), draw()
    before = deepcopy(made.state_dict())
    made(z, indices).backward()
    assert z.grad is not None
    for name, x in made.state_dict().items():
        assert torch.equal(x, before[name])


def test_forward_without_backward_changes_nothing():
    made, (z, indices) = criterion(), draw()
    before = made.bank.clone()
    with torch.no_grad():
        made(z, indices)
    made(z, indices)
    assert torch.equal(made.bank, before)


@given(seed=st.integers(0, 2**31))
def test_warm_up_is_instance_discrimination(seed):
    made, (z, indices) = criterion(clusterings=0), draw(seed)
    loss, want = by_numpy(la_core.instance_discrimination_and_cotangent)(
        z.detach(), made.bank.clone(), indices, temperature=0.1
    )
    got = made(z, indices)
    got.backward()
    assert made.n_close is None
    assert_close(got.item(), loss.mean().item(), 1e-15)
    assert_same(z.grad.numpy(), want.numpy())


@pytest.mark.parametrize("clusterings", [0, 2])
@given(seed=st.integers(0, 2**31))
def test_two_views_read_fresh_rows_and_both_move_the_bank(clusterings, seed):
    made, (one, indices), (other, _) = criterion(clusterings), draw(seed), draw(seed + 1)
    z = torch.cat([one, other]).detach().requires_grad_()
    state = la_core.State(made.bank.clone(), made.labels if clusterings else None)
    if clusterings:
        objective, rows = partial(objectives.local_aggregation_terms, **SETTINGS), indices
    else:
        state, rows = la_core.State(made.bank[indices]), torch.arange(BATCH)

        def objective(z, state, rows):
            return objectives.Terms(
                *la_core.instance_discrimination_and_cotangent(z, state.bank, rows, temperature=0.1)
            )

    want, _ = by_numpy(objectives.fresh_rows)(objective, z.detach(), state, rows)
    bank = made.bank.clone()
    loss = made(z, indices)
    assert_same(made.bank.numpy(), bank.numpy())
    loss.backward()
    assert_close(loss.item(), want.loss.mean().item(), 1e-15)
    assert_close(z.grad.numpy(), want.cotangent.numpy(), 1e-15, np.abs(want.cotangent.numpy()).max())
    moved = by_numpy(la_core.update)(la_core.State(bank), torch.cat([indices, indices]), z.detach())
    assert_same(made.bank.numpy(), moved.bank.numpy())


def test_instances_within_the_batch_are_a_share_of_the_loss_of_two_views():
    (one, indices), (other, _) = draw(0), draw(1)
    z = torch.cat([one, other]).detach()
    made = criterion(instance_weight=0.25)
    objective = partial(objectives.local_aggregation_terms, **SETTINGS)
    mixed = objectives.with_instances(objective, 0.25, SETTINGS["temperature"])
    want, _ = objectives.fresh_rows(mixed, z, la_core.State(made.bank.clone(), made.labels), indices)
    assert_close(made(z, indices).item(), want.loss.mean().item(), 1e-15)
    assert made(z, indices).item() != criterion()(z, indices).item()
    warm = criterion(clusterings=0, instance_weight=0.25)
    assert warm(z, indices).item() == criterion(clusterings=0)(z, indices).item()  # it is all of the warm-up's loss


def test_instances_within_the_batch_need_two_views():
    made, (z, indices) = criterion(instance_weight=0.25), draw()
    bank = made.bank.clone()
    with pytest.raises(ShapeError, match="two views"):
        made(z, indices)
    assert torch.equal(made.bank, bank)


def test_cluster_is_the_library_s():
    made = criterion(clusterings=0)
    result = made.cluster(n_clusters=[4, 7], n_clusterings=2, seed=5)
    want = la_core.cluster(made.bank, n_clusters=[4, 7], n_clusterings=2, seed=5)
    assert torch.equal(made.labels, want.labels)
    assert torch.equal(result.inertia, want.inertia)
    made(*draw())
    assert made.n_close.shape == (BATCH,)


@pytest.mark.parametrize(("saved", "fresh"), [(3, 0), (3, 3), (2, 5), (0, 2)])
def test_state_dict_round_trip(saved, fresh):
    made, other = criterion(saved), LocalAggregation(N, DIM, seed=9, **SETTINGS).double()
    if fresh:
        other.cluster(n_clusters=3, n_clusterings=fresh, seed=4)
    made(*draw()).backward()
    other.load_state_dict(made.state_dict())
    assert other.labels.shape == (saved, N)
    assert torch.equal(other.labels, made.labels)
    assert torch.equal(other.bank, made.bank)
    z, indices = draw(1)
    assert other(z, indices).item() == made(z, indices).item()
    other.bank.zero_()
    assert made.bank.any()


def test_a_state_of_another_size_leaves_the_labels():
    made, other = criterion(3), LocalAggregation(N + 1, DIM, seed=9, **SETTINGS)
    with pytest.raises(RuntimeError, match="size mismatch"):
        other.load_state_dict(made.state_dict())
    assert other.labels.shape == (0, N + 1)


def test_state_dict_round_trip_inside_a_model():
    model, fresh = (nn.ModuleDict({"loss": c}) for c in (criterion(3), criterion(0)))
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh["loss"].labels, model["loss"].labels)


def test_bank_is_no_parameter():
    made = criterion()
    assert not list(made.parameters())
    assert not made.bank.requires_grad


@pytest.mark.parametrize("clusterings", [0, 2])
def test_autocast_keeps_the_bank_in_full_precision(clusterings):
    made = LocalAggregation(N, DIM, **SETTINGS)
    if clusterings:
        made.cluster(n_clusters=6, n_clusterings=clusterings)
    model = nn.Linear(4, DIM)
    x, indices = torch.randn(BATCH, 4, generator=torch.Generator().manual_seed(0)), torch.arange(BATCH)
    with torch.autocast("cpu", torch.bfloat16):
        z = model(x)
        loss = made(z, indices)
    plain = deepcopy(made)
    assert z.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())
    assert made.bank.dtype == torch.float32
    assert_close(torch.linalg.vector_norm(made.bank, dim=1).numpy(), np.ones(N), 1e-6)
    exact = z.detach().float().requires_grad_()
    assert_close(loss.item(), plain(exact, indices).item(), 5e-6)


def test_backward_inside_autocast_updates_in_full_precision():
    inside, outside = (LocalAggregation(N, DIM, seed=1, **SETTINGS) for _ in range(2))
    z, indices = draw(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        inside(z, indices).backward()
    outside(z, indices).backward()
    assert_close(inside.bank.numpy(), outside.bank.numpy(), 5e-6, 1.0)


def test_second_derivative_of_the_criterion_is_refused():
    """The cotangent is a constant of the graph: a second derivative through it would be silently wrong."""
    made, (z, indices) = criterion(), draw()
    before = made.bank.clone()
    with pytest.raises(BackendError, match="create_graph"):
        torch.autograd.grad(made(z, indices), z, create_graph=True)
    assert torch.equal(made.bank, before)


@pytest.mark.filterwarnings("default:The .grad attribute")  # which the compiler hides, unless warnings are errors
@pytest.mark.parametrize("inside", [False, True])
@pytest.mark.parametrize("clusterings", [0, 2])
def test_a_compiled_loop_takes_batches_of_any_size(clusterings, inside):
    """The second size makes the sizes symbols; also where the backward pass is compiled."""
    generator = torch.Generator().manual_seed(0)
    plain, compiled = (criterion(clusterings) for _ in range(2))

    def step(x, i):
        loss = compiled(x * 2, i)
        if inside:
            loss.backward()
        return loss

    run = torch.compile(step, backend="eager")
    for size in (8, 7, 6):
        x = torch.randn(size, DIM, dtype=torch.float64, generator=generator)
        indices = torch.randperm(N, generator=generator)[:size]
        ours, theirs = (x.clone().requires_grad_() for _ in range(2))
        loss, want = run(ours, indices), plain(theirs * 2, indices)
        assert loss.item() == want.item()
        if not inside:
            loss.backward()
        want.backward()
        assert torch.equal(ours.grad, theirs.grad)
        assert torch.equal(compiled.bank, plain.bank)


def test_bad_input_changes_nothing():
    made, (z, indices) = criterion(), draw()
    before = made.bank.clone()
    for bad_z, bad_indices in ((z[:, :3], indices), (z * torch.nan, indices), (z, indices + N)):
        with pytest.raises(la_core.LaCoreError):
            made(bad_z, bad_indices)
    assert torch.equal(made.bank, before)


def test_default_background():
    assert LocalAggregation(50, 3).n_background == 50
    assert LocalAggregation(5000, 3).n_background == 4096


# Encoder ---------------------------------------------------------------------------------------------------------


def network(seed=0):
    torch.manual_seed(seed)
    front = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*front, nn.Linear(64, 8), nn.LayerNorm(8), nn.Linear(8, DIM)).double()


def images(seed=0):
    return torch.randn(BATCH, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def sgd(module, **options):
    return torch.optim.SGD(parameter_groups(module, 0.1), lr=0.5, momentum=0.9, **options)


def test_parameter_groups_leave_normalisation_without_decay():
    module = network()
    decayed, plain = parameter_groups(module, 0.1)
    assert decayed["weight_decay"] == 0.1
    assert plain["weight_decay"] == 0.0
    names = {id(p): name for name, p in module.named_parameters()}
    assert {names[id(p)] for p in plain["params"]} == {"1.weight", "1.bias", "5.weight", "5.bias"}
    assert len(decayed["params"]) + len(plain["params"]) == len(names)


def test_parameter_groups_leave_out_what_is_frozen_and_what_is_empty():
    module = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    module[0].requires_grad_(False)
    (group,) = parameter_groups(module)
    assert group["weight_decay"] == 1e-4
    assert {id(p) for p in group["params"]} == {id(p) for p in module[1].parameters()}


def test_pullback_and_step_are_plain_torch():
    """Tier 0: the same operations, to the bit."""
    mine, plain = network(), network()
    encoder, optimizer = TorchEncoder(mine, sgd(mine)), sgd(plain)
    for step, rate in enumerate((0.1, 0.1, 0.02)):
        cotangent = torch.randn(BATCH, DIM, dtype=torch.float64)
        z, back = encoder.pullback(images(step))
        assert not z.requires_grad
        back(cotangent)
        encoder.step(rate)

        out = plain.train()(images(step))
        assert torch.equal(z, out.detach())
        optimizer.zero_grad()
        (out * cotangent).sum().backward()
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
    for name, x in plain.state_dict().items():
        assert torch.equal(mine.state_dict()[name], x), name


def test_gradients_do_not_add_up_over_steps():
    module = network()
    encoder = TorchEncoder(module, sgd(module))
    grads = []
    for _ in range(2):
        _, back = encoder.pullback(images())
        back(torch.ones(BATCH, DIM, dtype=torch.float64))
        grads.append(module[4].weight.grad.clone())
    assert_close(grads[1].numpy(), grads[0].numpy(), EXACT, 1.0)


def test_groups_keep_the_ratios_of_their_rates():
    module = network()
    groups = parameter_groups(module)
    groups[1]["lr"] = 0.05
    optimizer = torch.optim.SGD(groups, lr=0.5)
    encoder = TorchEncoder(module, optimizer)
    _, back = encoder.pullback(images())
    back(torch.ones(BATCH, DIM, dtype=torch.float64))
    encoder.step(0.2)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.2, 0.02])


def test_features_are_the_input_of_the_last_linear_by_default():
    module = network()
    z, features = TorchEncoder(module).apply(images())
    module.eval()
    with torch.no_grad():
        want = module[:6](images())
        assert torch.equal(features, want)
        assert torch.equal(z, module(images()))


def test_features_of_a_named_part_are_flattened():
    module = network()
    z, features = TorchEncoder(module, features="0").apply(images())
    assert features.shape == (BATCH, 64)
    assert z.shape == (BATCH, DIM)
    with torch.no_grad():
        assert torch.equal(features, module[0](images()).flatten(1))


def test_features_of_an_unknown_part():
    with pytest.raises(KindError, match="'nowhere'"):
        TorchEncoder(network(), features="nowhere")


def test_features_of_an_encoder_without_linear_layers_are_the_embedding():
    z, features = TorchEncoder(nn.Flatten()).apply(images())
    assert torch.equal(z, features)


def test_features_do_not_outlive_their_batch():
    encoder = TorchEncoder(network())
    encoder.pullback(images())
    _, features = encoder.apply(images()[:2])
    assert features.shape == (2, 8)


@pytest.mark.parametrize("training", [True, False])
def test_apply_learns_nothing_and_restores_the_mode(training):
    module = network().train(training)
    before = deepcopy(module.state_dict())
    z, _ = TorchEncoder(module).apply(images())
    assert not z.requires_grad
    assert module.training is training
    for name, x in module.state_dict().items():
        assert torch.equal(x, before[name])


def test_weights_round_trip():
    module, other = network(0), network(1)
    encoder, copy = TorchEncoder(module, sgd(module)), TorchEncoder(other)
    weights = encoder.weights()
    assert all(isinstance(x, np.ndarray) for x in weights.values())
    copy.load(weights)
    assert torch.equal(copy.apply(images())[0], encoder.apply(images())[0])
    _, back = encoder.pullback(images())
    back(torch.ones(BATCH, DIM, dtype=torch.float64))
    encoder.step(0.1)
    assert_same(weights["4.weight"], copy.weights()["4.weight"])
    assert not np.array_equal(weights["4.weight"], encoder.weights()["4.weight"])


def test_weights_in_bfloat16_are_saved_as_float32():
    module = nn.Linear(3, 4).bfloat16()
    found = TorchEncoder(module).weights()
    assert {x.dtype.name for x in found.values()} == {"float32"}
    TorchEncoder(other := nn.Linear(3, 4).bfloat16()).load(found)
    assert torch.equal(other.weight, module.weight)


def test_encoder_under_autocast_gives_float32():
    module = nn.Sequential(nn.Flatten(), nn.Linear(36, DIM))
    encoder = TorchEncoder(module, torch.optim.SGD(module.parameters(), lr=0.1), autocast=torch.bfloat16)
    before = module[1].weight.detach().clone()
    z, back = encoder.pullback(images().float())
    assert z.dtype == torch.float32
    back(torch.ones_like(z))
    encoder.step(0.1)
    assert torch.isfinite(module[1].weight).all()
    assert not torch.equal(module[1].weight, before)


def test_encoder_without_an_optimizer_cannot_step():
    with pytest.raises(BackendError, match="optimizer"):
        TorchEncoder(network()).step(0.1)


def test_encoder_that_gives_no_matrix():
    with pytest.raises(ShapeError, match=r"\(B, D\)"):
        TorchEncoder(nn.Conv2d(1, 1, 3).double()).apply(images())


@pytest.mark.parametrize("n", [200, 200_000], ids=["by NumPy", "by PyTorch"])
def test_a_bank_that_another_term_needs_as_it_was_is_an_error_and_not_a_wrong_gradient(n):
    made = LocalAggregation(n, DIM, n_background=8)
    z, indices = draw(dtype=torch.float32)

    def other():
        return la_core.instance_discrimination(z, made.bank, indices, temperature=0.1).mean()

    with pytest.raises(RuntimeError, match="inplace"):
        (other() + made(z, indices)).backward()  # the last is differentiated first
    (made(z, indices) + other()).backward()


def law_of_bounded_tensors(step, most=2):
    """What a step makes is gone after a few more."""
    counts = []
    for number in range(30):
        step()
        if number in (9, 29):
            gc.collect()
            counts.append(sum(type(x) is Tensor for x in gc.get_objects()))
    assert counts[1] - counts[0] <= most, counts


def test_steps_leave_no_tensors_behind():
    made = criterion()
    z, indices = draw(dtype=torch.float32)
    law_of_bounded_tensors(lambda: made(z, indices).backward())
    held = [State(torch.from_numpy(la_core.random_rows(N, DIM, seed=0)), torch.zeros((1, N), dtype=torch.int32))]
    move = by_numpy(la_core.update)
    law_of_bounded_tensors(lambda: held.__setitem__(0, move(held[0], indices, z.detach())))
    bank = held[0].bank
    assert move(held[0], indices, z.detach()).bank is bank


def test_a_chain_of_tensors_is_caught():
    chain = [torch.zeros(3)]

    def step():
        chain[0] = torch.from_numpy(chain[0].numpy())

    with pytest.raises(AssertionError):
        law_of_bounded_tensors(step)


@pytest.mark.parametrize(
    ("z", "indices", "error"),
    [
        (torch.ones(BATCH, DIM, dtype=torch.complex64), torch.arange(BATCH), KindError),
        (torch.ones(BATCH, DIM, dtype=torch.int64), torch.arange(BATCH), KindError),
        (torch.ones(BATCH, DIM), torch.tensor(2), ShapeError),
    ],
    ids=["complex", "whole", "one index"],
)
def test_what_the_objectives_refuse_the_criterion_does(z, indices, error):
    with pytest.raises(error):
        criterion()(z, indices)
