"""The program that compares with published returns: what it says of finished and unfinished seeds."""

import json

import pytest
from matplotlib.figure import Figure

from benchmarks import reference as program
from benchmarks.reference import UNITS, figure, path_of
from trade_agent.config.load import compose_config, load_config

PENDULUM = UNITS[0]


def seeds(*returns):
    return [{"mean_return": value, "seconds": 1.0} for value in returns]


def test_the_mean_of_all_seeds_is_compared_with_the_published_return_less_a_tenth():
    assert PENDULUM.threshold == pytest.approx(-157.0 - 15.7)
    assert figure(PENDULUM, seeds(-170.0, -172.0, -174.0), 3)["met"] is True
    assert figure(PENDULUM, seeds(-170.0, -174.0, -176.0), 3)["met"] is False


@pytest.mark.parametrize("returns", [(), (-100.0,), (-100.0, -100.0)])
def test_nothing_is_met_before_all_seeds_are_there(returns):
    line = figure(PENDULUM, seeds(*returns), 3)
    assert (line["met"], line["finished"], line["missing"]) == (None, False, 3 - len(returns))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: f"{unit.task}-{unit.algorithm}")
def test_settings_are_a_valid_config_and_each_seed_has_a_file_of_its_own(unit, tmp_path):
    config = load_config(compose_config([*unit.settings, "seed=2"]))
    assert config.seed == 2
    assert path_of(unit, 2, tmp_path) == tmp_path / unit.task / f"{unit.algorithm}_2.json"


def test_names_may_have_commas_and_what_is_kept_is_printed_and_drawn(tmp_path, monkeypatch, capsys):
    kept = {"ppo": 4, "sac": 1}
    for unit in (unit for unit in UNITS if unit.task == PENDULUM.task and unit.algorithm in kept):
        for seed in range(1, kept[unit.algorithm] + 1):
            path = path_of(unit, seed, tmp_path)
            path.parent.mkdir(exist_ok=True)
            result = {"settings": unit.settings, "seed": seed, "mean_return": -150.0, "seconds": 1.0}
            path.write_text(json.dumps(result | {"checks": [[1, -150.0]]}))
    drawn = []

    def savefig(picture, path, **settings):
        drawn.extend(panel.get_title() for panel in picture.axes if panel.get_visible())

    monkeypatch.setattr(Figure, "savefig", savefig)
    argv = ["reference", "--only", "Pendulum-v1,BipedalWalker-v3", "--algorithms", "td3,ppo", "--seeds", "0"]
    monkeypatch.setattr("sys.argv", [*argv, "--results", str(tmp_path)])
    program.main()
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(line["figure"], len(line["by_seed"]), line["missing"]) for line in lines] == [
        ("Pendulum-v1 td3", 0, 3),
        ("Pendulum-v1 ppo", 4, 0),
        ("BipedalWalker-v3 td3", 0, 3),
    ]
    assert drawn == ["Pendulum-v1 sac", "Pendulum-v1 ppo"]


def test_what_is_not_required_runs_only_where_it_is_named_and_is_listed_anyhow(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.setattr(program, "run_missing", lambda units, *rest: ran.append({unit.task for unit in units}))
    for only in ([], ["--only", "BipedalWalker-v3"]):
        monkeypatch.setattr("sys.argv", ["reference", "--seeds", "0", "--results", str(tmp_path), *only])
        program.main()
    assert ran == [{"Pendulum-v1", "LunarLanderContinuous-v3"}, {"BipedalWalker-v3"}]
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    record = [line for line in lines[: len(UNITS)] if not line["required"]]
    assert [(line["figure"], line["finished"], line["missing"]) for line in record] == [
        (f"{task} {algorithm}", False, 3)
        for task in ("BipedalWalker-v3", "MountainCarContinuous-v0")
        for algorithm in ("sac", "td3")
    ]
