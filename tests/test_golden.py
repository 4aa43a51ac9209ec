"""The published code's own numbers are reproduced."""

import pytest

torch = pytest.importorskip("torch")

from golden import CASES, GOLDEN, assert_golden, golden
from variants import NUMPY, TORCH

import la_core
from la_core.backends.torch import LocalAggregation

every_case = pytest.mark.parametrize("name", CASES)
with_library = pytest.mark.parametrize("variant", [NUMPY, TORCH], ids=str)


def test_every_case_is_tested():
    assert {key.partition("/")[0] for key in GOLDEN} == set(CASES)


@every_case
@with_library
def test_local_aggregation(name, variant):
    case = golden(name, variant)
    loss, cotangent = la_core.local_aggregation_and_cotangent(
        case.embeddings, case.state, case.indices, **case.settings
    )
    alone = la_core.local_aggregation(case.embeddings, case.state, case.indices, **case.settings)
    for rows in (variant.to_host(loss), variant.to_host(alone)):
        assert_golden(rows, case.la_loss_rows)
        assert_golden(rows.mean(), case.la_loss)
    assert_golden(variant.to_host(cotangent), case.la_grad)


@every_case
@with_library
def test_bank_rows_after_the_update(name, variant):
    case = golden(name, variant)
    state = la_core.update(case.state, case.indices, case.embeddings, mixing=case.mixing)
    assert_golden(variant.to_host(state.bank)[variant.to_host(case.indices)], case.new_rows)


@every_case
@with_library
def test_noise_contrastive_estimation(name, variant):
    case = golden(name, variant)
    args = case.embeddings, case.bank, case.indices
    loss, cotangent = la_core.instance_discrimination_and_cotangent(*args, noise=case.noise, **case.nce)
    alone = la_core.instance_discrimination(*args, noise=case.noise, **case.nce)
    assert_golden(variant.to_host(loss).mean(), case.ir_loss)
    assert_golden(variant.to_host(alone).mean(), case.ir_loss)
    assert_golden(variant.to_host(cotangent), case.ir_grad)


@every_case
def test_native_autograd(name):
    case = golden(name, TORCH)
    z = case.embeddings.clone().requires_grad_()
    la_core.local_aggregation(z, case.state, case.indices, **case.settings).mean().backward()
    assert_golden(z.grad.numpy(), case.la_grad)

    z = case.embeddings.clone().requires_grad_()
    la_core.instance_discrimination(z, case.bank, case.indices, noise=case.noise, **case.nce).mean().backward()
    assert_golden(z.grad.numpy(), case.ir_grad)


@every_case
def test_criterion(name):
    case = golden(name, TORCH)
    criterion = LocalAggregation(*case.bank.shape, mixing=case.mixing, **case.settings).double()
    criterion.load_state_dict({"bank": case.bank, "labels": case.labels})
    z = case.embeddings.clone().requires_grad_()
    loss = criterion(z, case.indices)
    loss.backward()
    assert criterion.bank.dtype == torch.float64
    assert_golden(loss.item(), case.la_loss)
    assert_golden(z.grad.numpy(), case.la_grad)
    assert_golden(criterion.bank[case.indices].numpy(), case.new_rows)
