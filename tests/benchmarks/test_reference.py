"""The program that compares with published returns: what it says of finished and unfinished seeds."""

import pytest

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
