"""Hyper-parameters: refused when no run could use them, shown when chosen, and the same after a round trip."""

import math

import pytest

from la_core import Settings
from la_core.errors import SettingsError


def test_round_trip(tmp_path):
    settings = Settings(n_clusters=(3, 4, 5), drops=(1.5, 2.0), seed=7, warmup="nce")
    settings.save(tmp_path / "s.json")
    assert Settings.load(tmp_path / "s.json") == settings
    (tmp_path / "s.json").write_text('{"sed": 1}')
    with pytest.raises(SettingsError, match="sed"):
        Settings.load(tmp_path / "s.json")


@pytest.mark.parametrize("n", [1, 2, 63, 64, 100, 1438, 50_000, 1_281_167])
def test_automatic_values_fit_any_number_of_samples(n):
    settings = Settings().resolved(n)
    assert 1 <= settings.n_background <= n
    assert 1 <= settings.n_clusters <= n
    assert 1 <= settings.knn_k <= n
    assert settings.resolved(n) == settings
    assert "None" not in str(settings)


def test_the_papers_numbers_for_imagenet():
    settings = Settings().resolved(1_281_167)
    assert settings.n_background == 4096
    assert 25 <= 1_281_167 / settings.n_clusters <= 150


@pytest.mark.parametrize(
    "bad",
    [
        {"epochs": 0},
        {"warmup_epochs": 6, "epochs": 5},
        {"batch_size": 2.5},
        {"batch_size": True},
        {"temperature": 0.0},
        {"temperature": math.nan},
        {"mixing": 1.5},
        {"n_clusters": 0},
        {"n_clusters": (1, 2)},
        {"n_clusters": (1, 0, 2)},
        {"schedule": "stairs"},
        {"combine": "xor"},
        {"instance_weight": 1.5, "views": 2},
        {"instance_weight": 0.5, "views": 1},
        {"dtype": "float16"},
        {"seed": -1},
        {"learning_rate": -0.1},
        {"learning_rate": math.inf},
        {"drops": 160},
        {"drops": ("a",)},
        {"drops": (1.0, math.inf)},
    ],
)
def test_what_no_run_could_use(bad):
    with pytest.raises(SettingsError, match=next(iter(bad))):
        Settings(**bad)


def test_learning_rates():
    step = Settings(learning_rate=1.0, drops=(2, 4))
    assert [step.rate(e) for e in (0, 1.9, 2, 3.9, 4)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])
    cosine = Settings(learning_rate=1.0, schedule="cosine", epochs=10)
    assert [cosine.rate(e) for e in (0, 5, 10)] == pytest.approx([1, 0.5, 0])
    rates = [cosine.rate(e / 10) for e in range(101)]
    assert rates == sorted(rates, reverse=True)
    assert Settings(schedule="constant", learning_rate=0.2).rate(99) == 0.2


@pytest.mark.parametrize("content", [None, "{", "[1]", "3"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path, content):
    path = tmp_path / "settings.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(SettingsError, match=r"settings\.json cannot be read as settings"):
        Settings.load(path)
