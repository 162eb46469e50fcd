"""A run of all stages that is killed again and again ends with the bits of one that was left alone."""

from pathlib import Path

import pytest

from benchmarks.killed import REGISTERED, WRITING
from benchmarks.kills import killed_and_left_alone, learned

SMALL = (
    "preprocessing=minimal",
    "data.start=2011-06-01",
    "evaluation.min_bars=300",
    "evaluation.bootstrap_samples=100",
    "evaluation.cost_sensitivity_bps=[10]",
    "trainer.forecaster_epochs=1",
    "trainer.off_policy_env_steps=800",
    "trainer.joint_off_policy_env_steps=400",
    "trainer.on_policy_env_steps=1024",
    "trainer.joint_on_policy_env_steps=512",
    "upstream.cnn_lstm.model.window_bars=8",
    "upstream.cnn_lstm.model.conv_channels=[8]",
    "upstream.cnn_lstm.model.lstm_hidden=8",
)


@pytest.mark.slow
def test_a_run_that_is_killed_six_times_ends_alike(tmp_path: Path) -> None:
    outcome = killed_and_left_alone(tmp_path, kills=6, seed=4, overrides=SMALL)
    hows = {moment.how for moment in outcome.moments}
    assert len({moment.stage for moment in outcome.moments}) == 6
    assert hows & set(WRITING)
    assert outcome.wrong == {}
    stages = {"cnn_lstm", "ppo", "sac", "td3", "hybrid_ppo", "hybrid_sac", "hybrid_td3", "ensemble"}
    assert learned(tmp_path / "killed").keys() == stages
    assert not (tmp_path / "killed/run/checkpoints").exists()
    assert REGISTERED in hows  # which would register a second time, were it not for the run id
