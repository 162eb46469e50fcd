"""The program that measures learning: finished, unfinished and outdated seeds, and that its units run."""

import json
from pathlib import Path

import pytest

from benchmarks.intervals import mean_interval, student_quantile
from benchmarks.learning import __main__ as program
from benchmarks.learning.figures import figures
from benchmarks.learning.setting import compose
from benchmarks.learning.tasks import TASKS


def test_the_interval_of_three_seeds_by_hand():
    # Mean 2, standard deviation 1: 4.3027 / sqrt(3) to either side.
    mean, interval = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0
    assert interval == pytest.approx([2.0 - 2.48416, 2.0 + 2.48416], abs=1e-4)
    assert mean_interval([1.0]) == (1.0, None)


@pytest.mark.parametrize(("freedom", "quantile"), [(1, 12.706), (9, 2.262), (10, 2.228), (30, 2.042), (99, 1.984)])
def test_quantiles_are_those_of_the_printed_tables(freedom, quantile):
    assert student_quantile(freedom) == pytest.approx(quantile, abs=6e-4)


def seeds(*ratios):
    return [{"reached": ratio, "optimum": 1.0, "env_steps": 10} for ratio in ratios]


def test_a_target_is_met_when_all_seeds_are_there_and_not_before():
    def line(*ratios):
        return figures("leak", "ppo", TASKS["leak"], seeds(*ratios), 3)[0]

    assert line(0.95, 0.96, 0.97)["met"] is True
    assert line(0.80, 0.85, 0.90)["met"] is False
    for unfinished in ([], [0.99], [0.99, 0.99]):
        assert line(*unfinished)["met"] is None
        assert line(*unfinished)["missing"] == 3 - len(unfinished)
        assert line(*unfinished)["finished"] is False


def test_rewards_of_the_market_stand_beside_their_expectation():
    results = [
        {"reached": 0.9, "optimum": 1.0, "realised": realised, "realised_optimum": 4.0, "env_steps": 1}
        for realised in (3.0, 3.4)
    ]
    (line,) = figures("garleanu_pedersen", "td3", TASKS["garleanu_pedersen"], results, 2)
    assert (line["ratio"], line["realised_ratio"]) == (0.9, pytest.approx(0.8))  # of 0.75 and 0.85
    assert line["realised_interval"] == pytest.approx([0.16469, 1.43531], abs=1e-5)  # +- 12.7062 * 0.1 / 2


def test_a_difference_counts_when_its_interval_is_above_zero():
    def met(*differences):
        results = [{"reached": value, "compared": 0.0, "env_steps": 1} for value in differences]
        return figures("hybrid", "ppo", TASKS["hybrid"], results, len(results))[0]["met"]

    assert met(1.0, 1.1, 1.2) is True
    assert met(0.1, 1.0, 3.0) is False  # 1.37 +- 3.7


@pytest.mark.parametrize("name", list(TASKS))
def test_the_settings_of_every_variant_are_a_valid_config(name):
    for overrides in TASKS[name].variants.values():
        config = compose((*overrides, *TASKS[name].overrides), seed=3)
        assert (config.seed, config.data.seed) == (3, 3)


def keep(results: Path, name: str, variant: str, seed: int):
    path = program.unit_path(results, name, variant, seed)
    path.parent.mkdir(exist_ok=True)
    result = {"settings": program.settings(TASKS[name], variant), **seeds(0.5)[0]}
    result["curve"] = {"signal": [0.0, 1.0], "held": [0.0], "learned": [[0.0, seed]], "optimal": [[0.0, 1.0]]}
    path.write_text(json.dumps(result))
    return path, result


@pytest.mark.parametrize(("asked", "counted"), [(0, 12), (3, 3), (20, 20)])
def test_no_seeds_at_all_means_those_that_are_kept(tmp_path: Path, capsys, asked, counted):
    for seed in range(1, 13):
        keep(tmp_path, "leak", "ppo", seed)
    program.report(["leak"], ["ppo"], asked, tmp_path)
    line = json.loads(capsys.readouterr().out)
    assert (line["seeds"], line["missing"]) == (min(counted, 12), counted - min(counted, 12))


def test_a_picture_shows_every_variant_whatever_was_chosen(tmp_path: Path, capsys, monkeypatch):
    for variant, seed in (("td3", 10), ("td3", 2), ("ppo", 1)):
        keep(tmp_path, "leak", variant, seed)
    drawn = []
    monkeypatch.setattr(program, "plot_policies", lambda path, name, curves: drawn.append(curves))
    program.report(["leak"], ["sac"], 3, tmp_path)
    assert len(capsys.readouterr().out.splitlines()) == 1
    (curves,) = drawn
    assert {variant: curve["learned"][0][1] for variant, curve in curves.items()} == {"ppo": 1, "td3": 2}


def test_a_kept_result_counts_only_with_the_settings_of_now(tmp_path: Path, capsys, monkeypatch):
    path, kept = keep(tmp_path, "leak", "sac", 1)
    monkeypatch.setattr(
        "sys.argv", ["learning", "--only", "leak", "--variants", "sac", "--seeds", "0", "--results", str(tmp_path)]
    )
    program.main()
    line = json.loads(capsys.readouterr().out)
    assert (line["ratio"], line["missing"], line["met"]) == (0.5, 2, None)
    assert (tmp_path / "learning_leak.png").stat().st_size > 0

    path.write_text(json.dumps(kept | {"settings": ["model=sac"]}))
    program.main()
    line = json.loads(capsys.readouterr().out)
    assert (line["reached"], line["missing"], line["finished"]) == (None, 3, False)


# What makes a unit small; seeds stay those of nobody's report.
SMALL = {
    "leak": ("data.num_bars=3000",),
    "garleanu_pedersen": ("data.num_bars=9000",),
    "noise": ("data.num_bars=3000", "evaluation.train_fraction=0.5"),
    "forecaster": ("data.num_bars=3000", "trainer.forecaster_epochs=1"),
    "hybrid": ("data.num_bars=3000", "trainer=smoke", "trainer.cross_fit_folds=0"),
    "ensemble": ("data.num_bars=3000", "trainer=smoke", "trainer.cross_fit_folds=0"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(TASKS))
def test_a_small_unit_runs_and_gives_what_its_figure_needs(name, tmp_path: Path):
    task = TASKS[name]
    variant = next(iter(task.variants))
    overrides = (*task.variants[variant], *task.overrides, *SMALL[name])
    result = task.learn(overrides, 0, 8192 if task.env_steps else 0, tmp_path)
    lines = figures(name, variant, task, [result], 1)
    assert all(line["finished"] and line["met"] is not None for line in lines)
    json.dumps(result)
