"""One dataclass per config group: the fields a user may set, their types, ranges and choices.

`conf/` holds the values, this file holds the rules. A range or a list of choices stands in the metadata of its
field and is checked by `trade_agent.config.check` with the full dotted name in the message.
"""

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

STAGES = ("cnn_lstm", "rl", "hybrid", "ensemble")
ALGORITHMS = ("ppo", "sac", "td3")
SYNTHETIC_MARKETS = ("leak", "garleanu_pedersen", "noise", "ar", "regimes", "seasonal", "hybrid", "ensemble")


def number(low: float, high: float, default: Any = MISSING) -> Any:
    """A field whose value lies in the closed range [low, high], or is None where its type allows that."""
    return field(default=default, metadata={"low": low, "high": high})


def numbers(low: float, high: float, min_length: int = 1) -> Any:
    """A list field whose items all lie in [low, high] and that has at least `min_length` of them."""
    return field(default_factory=list, metadata={"low": low, "high": high, "min_length": min_length})


def choice(*options: str | bool, default: Any = MISSING) -> Any:
    """A field whose value is one of `options`."""
    return field(default=default, metadata={"options": options})


# ---------------------------------------------------------------------------------------------- stage


@dataclass(kw_only=True, slots=True)
class StageConfig:
    name: str = choice(*STAGES)


@dataclass(kw_only=True, slots=True)
class CnnLstmStage(StageConfig):
    direction_loss_weight: float = number(0.0, 100.0)


@dataclass(kw_only=True, slots=True)
class RlStage(StageConfig):
    """The agent is in `model`, the budget in `trainer`."""

    copies: int = number(1, 64, default=1)  # a checkpoint holds all of them


@dataclass(kw_only=True, slots=True)
class HybridStage(StageConfig):
    forecast_loss_weight: float = number(0.0, 100.0)
    forecaster_learning_rate: float = number(0.0, 1.0)
    agent_learning_rate_scale: float = number(0.0, 10.0)
    freeze_forecaster_fraction: float = number(0.0, 1.0)


@dataclass(kw_only=True, slots=True)
class EnsembleStage(StageConfig):
    min_members: int = number(2, 100)


# ---------------------------------------------------------------------------------------------- model


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    name: str = choice("cnn_lstm", *ALGORITHMS, "ensemble")


@dataclass(kw_only=True, slots=True)
class CnnLstmModel(ModelConfig):
    window_bars: int = number(4, 4096)
    horizons: list[int] = numbers(1, 1000)
    conv_channels: list[int] = numbers(1, 4096)
    kernel_size: int = number(1, 64)
    lstm_hidden: int = number(1, 4096)
    lstm_layers: int = number(1, 8)
    dropout: float = number(0.0, 0.95)
    learning_rate: float = number(1e-8, 1.0)
    weight_decay: float = number(0.0, 1.0)
    batch_size: int = number(1, 65536)


@dataclass(kw_only=True, slots=True)
class AgentModel(ModelConfig):
    hidden_sizes: list[int] = numbers(1, 8192)
    activation: str = choice("relu", "tanh", "elu", "silu", "gelu")
    layer_norm: bool = MISSING
    gamma: float = number(0.0, 1.0)
    learning_rate: float = number(1e-8, 1.0)
    learning_rate_schedule: str = choice("constant", "linear")
    batch_size: int = number(2, 1_000_000)
    num_envs: int = number(1, 1_000_000)
    reward_scale: float = number(1e-9, 1e9)
    normalise_observation: bool = MISSING
    normalise_reward: bool = MISSING


@dataclass(kw_only=True, slots=True)
class PpoModel(AgentModel):
    policy: str = choice("gaussian", "beta", "categorical")
    positions: list[float] = numbers(-1.0, 1.0, min_length=2)
    initial_log_std: float = number(-20.0, 2.0)
    rollout_steps: int = number(2, 1_000_000)
    epochs: int = number(1, 1000)
    gae_lambda: float = number(0.0, 1.0)
    clip_epsilon: float = number(1e-3, 10.0)
    entropy_coefficient: float = number(0.0, 10.0)
    value_coefficient: float = number(0.0, 10.0)
    max_grad_norm: float | None = number(1e-6, 1e6)


@dataclass(kw_only=True, slots=True)
class OffPolicyModel(AgentModel):
    critic_learning_rate: float = number(1e-8, 1.0)
    tau: float = number(1e-6, 1.0)
    n_step: int = number(1, 100)
    replay_capacity: int = number(100, 1_000_000_000)
    warmup_env_steps: int = number(0, 1_000_000_000)
    env_steps_per_update: int = number(1, 1_000_000)
    max_grad_norm: float | None = number(1e-6, 1e6)


@dataclass(kw_only=True, slots=True)
class SacModel(OffPolicyModel):
    alpha_learning_rate: float = number(1e-8, 1.0)
    initial_alpha: float = number(1e-8, 100.0)
    target_entropy: float | None = None


@dataclass(kw_only=True, slots=True)
class Td3Model(OffPolicyModel):
    exploration_noise: float = number(0.0, 10.0)
    target_noise: float = number(0.0, 10.0)
    target_noise_clip: float = number(0.0, 10.0)
    policy_delay: int = number(1, 1000)


@dataclass(kw_only=True, slots=True)
class EnsembleModel(ModelConfig):
    combiner: str = choice("mean", "weighted", "vote", "gate")
    gate_hidden_sizes: list[int] = numbers(1, 8192)
    gate_learning_rate: float = number(1e-8, 1.0)


# ---------------------------------------------------------------------------------------------- data and features


@dataclass(kw_only=True, slots=True)
class ColumnsConfig:
    """Names of a file's columns where they are not recognised; positions from 0 in a file without a header."""

    time: str | None = None
    open: str | None = None
    high: str | None = None
    low: str | None = None
    close: str | None = None
    adj_close: str | None = None
    volume: str | None = None


@dataclass(kw_only=True, slots=True)
class PoliciesConfig:
    """What to do about a finding instead of its default; `trade-agent data validate FILE` shows both."""

    unsorted: str | None = None
    duplicate_bar: str | None = None
    duplicate_timestamp: str | None = None
    nan: str | None = None
    non_positive_price: str | None = None
    high_below_low: str | None = None
    close_outside_range: str | None = None
    open_outside_range: str | None = None
    nan_volume: str | None = None
    negative_volume: str | None = None
    missing_volume: str | None = None
    zero_volume: str | None = None
    negative_spread: str | None = None
    volume_price_mismatch: str | None = None
    mixed_adjustment: str | None = None
    split: str | None = None
    unadjusted_split: str | None = None
    not_adjusted: str | None = None
    close_only: str | None = None
    stale: str | None = None
    outlier: str | None = None
    range_outlier: str | None = None
    gap: str | None = None
    hole: str | None = None
    off_session: str | None = None
    short_history: str | None = None
    many_dropped: str | None = None


@dataclass(kw_only=True, slots=True)
class DataConfig:
    source: str = choice("sample", "csv", "parquet", "feather", "lean", "yahoo", "crypto", *SYNTHETIC_MARKETS)
    path: str | None = None
    symbols: list[str] = field(default_factory=list)
    start: str | None = None
    end: str | None = None
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    time_format: str | None = None
    timezone: str = "UTC"
    symbol_column: str | None = None
    delimiter: str | None = None
    calendar: str | None = None
    price_side: str = choice("mid", "bid", "ask", default="mid")
    adjust: bool = True
    policies: PoliciesConfig = field(default_factory=PoliciesConfig)
    interval: str | None = None
    exchange: str | None = None
    num_bars: int | None = None
    seed: int | None = None


@dataclass(kw_only=True, slots=True)
class StepConfig:
    name: str = MISSING
    params: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class PreprocessingConfig:
    template: str = choice("default", "minimal", "full")
    steps: list[StepConfig] = field(default_factory=list)


# ---------------------------------------------------------------------------------------------- market


@dataclass(kw_only=True, slots=True)
class EnvConfig:
    """Where an agent acts: a market, or a gymnasium task."""


@dataclass(kw_only=True, slots=True)
class GymnasiumConfig(EnvConfig):
    """A task that proves the agents and trains no trading model."""

    id: str = MISSING
    evaluation_episodes: int = number(1, 100_000)
    check_episodes: int = number(1, 100_000)


@dataclass(kw_only=True, slots=True)
class MarketConfig(EnvConfig):
    fill: str = choice("next_open", "next_close", "same_close")
    latency_bars: int = number(0, 1000)
    sizing: str = choice("equity", "fixed_notional")
    episode_bars: int = number(2, 10_000_000)
    initial_equity: float = number(1e-6, 1e15)
    max_leverage: float = number(1e-6, 1000.0)
    max_weight: float = number(1e-6, 1000.0)
    allow_short: bool = MISSING
    no_trade_band: float = number(0.0, 10.0)
    commission_bps: float = number(0.0, 10_000.0)
    commission_min: float = number(0.0, 1e9)
    half_spread_bps: float = number(0.0, 10_000.0)
    slippage_bps: float = number(0.0, 10_000.0)
    impact: float = number(0.0, 1e6)
    borrow_rate: float = number(0.0, 100.0)
    financing_rate: float = number(0.0, 100.0)
    maintenance: float = number(0.0, 0.999)
    reward: str = choice("log_return", "differential_sharpe", "mean_variance", "drawdown_penalised")
    sharpe_decay: float = number(1e-6, 1.0)
    risk_aversion: float = number(0.0, 1e6)
    drawdown_penalty: float = number(0.0, 1e6)
    reward_floor: float = number(-1e6, -1e-6)


# ---------------------------------------------------------------------------------------------- machinery


@dataclass(kw_only=True, slots=True)
class DeviceConfig:
    name: str = choice("auto", "cpu", "cuda", "mps")
    strict: bool = MISSING
    precision: str = choice("auto", "float32", "tf32")
    threads: int = number(0, 4096)
    compile: Any = choice(True, False, "auto")
    capture: bool = MISSING
    processes: int = number(1, 4096)
    on_oom: str = choice("stop", "cpu")
    max_restarts: int = number(0, 1000)
    timeout_seconds: float = number(1.0, 86_400.0)


@dataclass(kw_only=True, slots=True)
class TrainerConfig:
    name: str = MISSING
    forecaster_epochs: int = number(1, 1_000_000)
    forecaster_patience: int = number(1, 1_000_000)
    cross_fit_folds: int = number(0, 100)
    on_policy_env_steps: int = number(1, 10_000_000_000)
    off_policy_env_steps: int = number(1, 10_000_000_000)
    joint_on_policy_env_steps: int = number(1, 10_000_000_000)
    joint_off_policy_env_steps: int = number(1, 10_000_000_000)
    gate_epochs: int = number(1, 1_000_000)
    validation_checks: int = number(1, 1000)
    checkpoint_seconds: float = number(0.0, 86_400.0)
    divergence_retries: int = number(0, 20)


@dataclass(kw_only=True, slots=True)
class EvaluationConfig:
    train_fraction: float = number(0.05, 0.9)
    validation_fraction: float = number(0.02, 0.5)
    min_bars: int = number(100, 1_000_000_000)
    confidence: float = number(0.5, 0.9999)
    bootstrap_samples: int = number(100, 1_000_000)
    cost_sensitivity_bps: list[float] = numbers(0.0, 10_000.0)


@dataclass(kw_only=True, slots=True)
class GradingConfig:
    """A grading policy; `trade_agent.evaluation.grading.policy_from_dict` checks its criteria and caps."""

    id: str = MISSING
    forecaster: dict[str, Any] = field(default_factory=dict)
    trading: dict[str, Any] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class RegistryConfig:
    """`keys` is the folder of signing_key.pem and trusted/*.pem; None: the user's configuration folder."""

    signing: str = choice("off", "sign", "require")
    keys: str | None = None
    durability: str = choice("full", "relaxed")


@dataclass(kw_only=True, slots=True)
class AlertsConfig:
    """Which rules raise an alarm, and who is told. A rule of 0 is off."""

    log: bool = MISSING
    file: bool = MISSING
    webhook: str | None = None
    webhook_timeout_seconds: float = number(0.1, 60.0)
    cooldown_seconds: float = number(0.0, 1e7)
    not_finite: bool = MISSING
    plateau_fraction: float = number(0.0, 1.0)
    gradient_factor: float = number(0.0, 1e9)
    throughput_fraction: float = number(0.0, 1.0)
    memory_factor: float = number(0.0, 1e6)
    collapsed_policy: bool = MISSING
    entropy_floor: float = number(-1e3, 1e3)


@dataclass(kw_only=True, slots=True)
class MonitoringConfig:
    tensorboard: bool = MISSING
    jsonl: bool = MISSING
    prometheus: str | None = None
    mlflow: str | None = None
    alerts: AlertsConfig = field(default_factory=AlertsConfig)


@dataclass(kw_only=True, slots=True)
class SearchConfig:
    """Hydra's own node `hydra.sweeper` of a search; `trade_agent.search.sweeper` checks and honours it."""

    _target_: str = "trade_agent.search.sweeper.StudySweeper"
    defaults: list[Any] = field(default_factory=lambda: [{"sampler": "tpe"}])
    sampler: Any = MISSING
    storage: str = MISSING
    study_name: str = MISSING
    objectives: dict[str, str] = field(default_factory=dict)
    at_most: dict[str, float] = field(default_factory=dict)
    at_least: dict[str, float] = field(default_factory=dict)
    n_trials: int = number(1, 1_000_000)
    n_jobs: int = number(1, 10_000)
    defaults_first: bool = MISSING
    max_failures_in_a_row: int = number(1, 1_000_000)
    max_restarts: int = number(0, 1_000_000)
    pruner: str = choice("median", "halving", "none")
    pruner_startup_trials: int = number(0, 1_000_000)
    pruner_warmup_checks: int = number(0, 1_000_000)
    params: dict[str, str] = field(default_factory=dict)


@dataclass(kw_only=True, slots=True)
class PathsConfig:
    models: str = MISSING
    outputs: str = MISSING


# ---------------------------------------------------------------------------------------------- stages below


@dataclass(kw_only=True, slots=True)
class CnnLstmRecipe:
    """How a missing forecaster is trained."""

    stage: CnnLstmStage = field(default_factory=CnnLstmStage)
    model: CnnLstmModel = field(default_factory=CnnLstmModel)


@dataclass(kw_only=True, slots=True)
class RlRecipe:
    """How a missing agent is trained. `model` is one of the algorithms."""

    stage: RlStage = field(default_factory=RlStage)
    model: AgentModel = field(default_factory=AgentModel)


@dataclass(kw_only=True, slots=True)
class HybridRecipe:
    """How a missing hybrid is trained."""

    stage: HybridStage = field(default_factory=HybridStage)
    model: AgentModel = field(default_factory=AgentModel)


@dataclass(kw_only=True, slots=True)
class MemberRecipe:
    """How a missing member of an ensemble is trained: its agent, then its hybrid."""

    rl: RlRecipe = field(default_factory=RlRecipe)
    hybrid: HybridRecipe = field(default_factory=HybridRecipe)


@dataclass(kw_only=True, slots=True)
class UpstreamConfig:
    """The models of the stages below: named by reference, or found by recipe, or trained when `missing=train`."""

    missing: str = choice("train", "error", "ask", default="train")


@dataclass(kw_only=True, slots=True)
class RlUpstream(UpstreamConfig):
    cnn_lstm_model: str | None = None
    cnn_lstm: CnnLstmRecipe = field(default_factory=CnnLstmRecipe)


@dataclass(kw_only=True, slots=True)
class HybridUpstream(UpstreamConfig):
    cnn_lstm_model: str | None = None
    rl_model: str | None = None
    cnn_lstm: CnnLstmRecipe = field(default_factory=CnnLstmRecipe)
    rl: RlRecipe = field(default_factory=RlRecipe)


@dataclass(kw_only=True, slots=True)
class EnsembleUpstream(UpstreamConfig):
    models: list[str] = field(default_factory=list)
    cnn_lstm: CnnLstmRecipe = field(default_factory=CnnLstmRecipe)
    members: dict[str, MemberRecipe] = field(default_factory=dict)


# ---------------------------------------------------------------------------------------------- the whole


@dataclass(kw_only=True, slots=True)
class TrainingConfig:
    """Everything one run depends on, typed. Built by `trade_agent.config.load.load_config`.

    `run_id` is unique: the UTC time of loading and the start of the content hash. `command` repeats the run.
    `hidden` holds the fields that were read from environment variables, as they were written (`${oc.env:NAME}`): no
    snapshot shows their values.
    """

    stage: StageConfig = MISSING
    model: ModelConfig = MISSING
    upstream: UpstreamConfig = MISSING
    data: DataConfig = MISSING
    preprocessing: PreprocessingConfig = MISSING
    env: EnvConfig = MISSING
    device: DeviceConfig = MISSING
    trainer: TrainerConfig = MISSING
    evaluation: EvaluationConfig = MISSING
    grading: GradingConfig = MISSING
    paths: PathsConfig = MISSING
    registry: RegistryConfig = MISSING
    monitoring: MonitoringConfig = MISSING
    seed: int = number(0, 2**31 - 1)
    tags: list[str] = field(default_factory=list)
    notes: str = ""
    run_id: str = ""
    command: str = ""
    hidden: dict[str, str] = field(default_factory=dict)

    @property
    def market(self) -> MarketConfig:
        """The market of a run that trains a trading model, which every run does but one with env=gymnasium."""
        assert isinstance(self.env, MarketConfig)
        return self.env
