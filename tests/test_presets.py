"""Presets hold the published settings, and the dry run says what they take without a bank or an encoder."""

import math
import re
import tracemalloc
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from la_core import dryrun
from la_core.data import batches
from la_core.dryrun import Cost, plan
from la_core.errors import RangeError, SettingsError
from la_core.presets import preset, presets, small
from la_core.settings import Settings

N = 1_281_167
COST = Cost(macs=1000, parameters=100, activations=500, dim=16)
PAPER = [name for name in presets if name.startswith("paper")]


@pytest.mark.parametrize(
    ("name", "clusterings", "clusters", "epochs", "drops", "network"),
    [
        ("paper-alexnet", 3, 30_000, 160, (118.9, 142.2), "AlexNet"),
        ("paper-vgg16", 6, 10_000, 168, (126, 148), "VGG16"),
        ("paper-resnet18", 10, 30_000, 200, (159.9, 187.2), "ResNet18"),
        ("paper-resnet50", 10, 30_000, 200, (152.1, 189.4), "ResNet50"),
    ],
)
def test_the_published_settings(name, clusterings, clusters, epochs, drops, network):
    recipe = preset(name, N)
    s = recipe.settings
    assert (s.n_clusterings, s.n_clusters, s.epochs, s.drops) == (clusterings, clusters, epochs, drops)
    assert (s.n_background, s.n_noise, s.warmup, s.warmup_epochs, s.views) == (4096, 4096, "nce", 10, 1)
    assert (s.optimizer, s.learning_rate, s.momentum, s.weight_decay) == ("sgd", 0.03, 0.9, 1e-4)
    assert (s.temperature, s.mixing, s.n_iter, s.combine) == (0.07, 0.5, 20, "union")
    assert recipe.network == network
    assert recipe.options.get("preactivation", False) == network.startswith("ResNet")
    assert recipe.view.size == 224


@given(st.integers(1, 2_000_000))
def test_the_small_settings_fit_every_number_of_samples(n):
    s = small(n).resolved(n)
    assert s.views == 2
    assert s.warmup_epochs <= small(max(1, n // 2)).warmup_epochs


def test_an_unknown_preset_names_the_nearest():
    with pytest.raises(RangeError, match="Did you mean 'paper-resnet50'"):
        preset("paper-resnet5", N)


def test_a_preset_that_does_not_fit_the_data_is_refused():
    with pytest.raises(SettingsError, match="at most the number of samples, 1000"):
        preset("paper-resnet18", 1000)


# The dry run -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", presets)
def test_every_preset_is_planned_without_a_bank(name):
    torch = pytest.importorskip("torch", reason="counts the networks of the presets")
    from la_core.backends.torch import cost, network

    assert torch.empty(1).device.type == "cpu"
    recipe = preset(name, N)
    tracemalloc.start()
    try:
        found = cost(lambda: network(recipe.network, **recipe.options), (3, recipe.view.size, recipe.view.size))
        planned = plan(recipe.settings, N, found)
        assert tracemalloc.get_traced_memory()[1] < 100e6  # the bank alone would take 656 MB
    finally:
        tracemalloc.stop()
    text = str(planned)
    assert f"1281167 x {found.dim} x 4 bytes" in text
    assert "626 MiB" in text


def test_resnet18_takes_what_is_known_of_it():
    """Bank, labels and clustering as worked out by hand for the published run."""
    planned = plan(preset("paper-resnet18", N).settings, N, Cost(1_814_000_000, 11_240_384, 0, 128))
    memory = {line.name: line.amount for line in planned.memory}
    assert memory["bank"] == 655_957_504
    assert memory["labels"] == pytest.approx(51e6, rel=0.01)
    assert planned.clustering.amount == pytest.approx(2.07e15, rel=0.01)
    assert sum(line.amount for line in planned.step[1:2]) == pytest.approx(42e9, rel=0.01)
    assert planned.step[0].amount * planned.steps_per_epoch == pytest.approx(14e15, rel=0.02)
    assert planned.rounds == 190
    assert "learning rate 0.003 from epoch 159.9, step 1600599" in planned.phases


def evaluated(how):
    """What the arithmetic that is shown comes to."""
    words = r" bytes| views| iterations| clusterings| parameters|\(scores, mean row\) |\(forward.*?\) |\(sgd\)|\(adam\)"
    expression = re.sub(words, "", how).partition(",")[0]
    return eval(expression.replace(" x ", " * "), {"__builtins__": {}})


settings = st.builds(
    Settings,
    epochs=st.integers(4, 9),
    warmup_epochs=st.integers(0, 4),
    batch_size=st.integers(1, 300),
    warmup_batch_size=st.sampled_from([None, 16, 50]),
    views=st.sampled_from([1, 2]),
    warmup=st.sampled_from(["exact", "nce"]),
    optimizer=st.sampled_from(["sgd", "adam"]),
    schedule=st.sampled_from(["step", "cosine", "constant"]),
    drops=st.sampled_from([(), (1.5, 3.0), (7,)]),
    dtype=st.sampled_from(["float32", "float64"]),
    n_clusters=st.sampled_from([None, 3, (3, 4, 5)]),
    recluster_every=st.integers(1, 3),
    recluster_unit=st.sampled_from(["epochs", "steps"]),
)


def holds(s, n, planned):
    """The shown arithmetic gives the amounts, the steps are those of the run, and so are the clusterings."""
    lines = (*planned.memory, *planned.warmup_step, *planned.step, planned.clustering)
    shown = all(math.isclose(evaluated(line.how), line.amount) for line in lines if "budget" not in line.how)
    order = [batches(n, s.batch(epoch), seed=0, epoch=epoch) for epoch in range(s.epochs)]
    due = 0
    for epoch in range(s.warmup_epochs, s.epochs):
        for number in range(len(order[epoch])):
            past = epoch - s.warmup_epochs
            if s.recluster_unit == "steps":
                due += (past * len(order[epoch]) + number) % s.recluster_every == 0
            else:
                due += number == 0 and past % s.recluster_every == 0
    lengths = [planned.warmup_steps_per_epoch] * s.warmup_epochs
    lengths += [planned.steps_per_epoch] * (s.epochs - s.warmup_epochs)
    return shown and lengths == [len(epoch) for epoch in order] and planned.rounds == due


@given(settings, st.integers(70, 700))
def test_what_is_shown_is_what_is_meant(s, n):
    planned = plan(s, n, COST)
    assert holds(s, n, planned)
    assert str(planned)
    for said in planned.phases:
        if "from epoch" in said:
            step = int(said.rpartition(" ")[2])
            rate = float(said.split()[2])
            lengths = [planned.warmup_steps_per_epoch] * s.warmup_epochs
            lengths += [planned.steps_per_epoch] * (s.epochs - s.warmup_epochs)
            progress = [epoch + number / length for epoch, length in enumerate(lengths) for number in range(length)]
            assert s.rate(progress[step]) == pytest.approx(rate)
            assert s.rate(progress[step - 1]) > 5 * rate


def test_the_warm_up_of_vgg_has_smaller_batches():
    planned = plan(preset("paper-vgg16", N).settings, N, COST)
    assert (planned.warmup_steps_per_epoch, planned.steps_per_epoch) == (10_010, 5_005)


def test_a_warm_up_within_the_batch_costs_no_pass_over_the_bank():
    two = Settings(epochs=4, warmup_epochs=1, views=2)
    bank, batch = (plan(replace(two, warmup=warmup), 7000, COST).warmup_step[1] for warmup in ("exact", "batch"))
    assert bank.amount / batch.amount == pytest.approx(7000 / 128, rel=0.02)


def test_a_forgotten_view_is_caught():
    s = Settings(epochs=4, warmup_epochs=1, views=2)
    planned = plan(s, 300, COST)
    first = planned.step[0]
    wrong = replace(planned, step=(replace(first, amount=first.amount / 2), *planned.step[1:]))
    assert holds(s, 300, planned)
    assert not holds(s, 300, wrong)


def test_no_samples_are_refused():
    with pytest.raises(RangeError, match="at least 1 sample"):
        plan(Settings(), 0, COST)


def test_the_larger_batch_of_the_warm_up_counts_if_there_is_a_warm_up():
    def activations(**settings):
        memory = plan(Settings(epochs=10, batch_size=64, **settings), 100_000, COST).memory
        return next(line.amount for line in memory if line.name == "activations")

    usual = activations(warmup_epochs=5)
    assert activations(warmup_epochs=5, warmup_batch_size=1000) == pytest.approx(usual * 1000 / 64, rel=0.01)
    assert activations(warmup_epochs=0, warmup_batch_size=1000) == usual
    assert activations(warmup_epochs=5, warmup_batch_size=8) == usual


def test_amounts_are_shown_in_their_units():
    assert dryrun._bytes(1023) == "1023 B"
    assert dryrun._bytes(626 * 2**20) == "626 MiB"
    assert dryrun._flop(2.07e15) == "2.07 PFLOP"
