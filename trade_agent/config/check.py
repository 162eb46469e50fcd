"""Range, choice and consistency checks on a typed config. Everything here runs before any work starts."""

import zoneinfo
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from trade_agent.config import schema
from trade_agent.config.schema import TrainingConfig
from trade_agent.errors import ConfigError


def check_config(config: TrainingConfig) -> None:
    """Raise ConfigError naming the first field that is out of range or contradicts another one."""
    for name, value, metadata in walk(config, ""):
        check_value(name, value, metadata)
    check_stage_and_model(config)
    check_task(config)
    check_market(config.env)
    check_upstream(config)
    check_replay(config)
    check_positions(config)
    check_forecasters(config)
    check_data(config.data)
    check_splits(config)
    check_webhook(config.monitoring.alerts)


def walk(node: Any, prefix: str) -> Iterator[tuple[str, Any, dict[str, Any]]]:
    """Every leaf of a tree of dataclasses as (dotted name, value, metadata of its field)."""
    for item in fields(node):
        name, value = f"{prefix}{item.name}", getattr(node, item.name)
        if is_dataclass(value):
            yield from walk(value, f"{name}.")
        elif isinstance(value, dict) and value and all(is_dataclass(entry) for entry in value.values()):
            for key, entry in value.items():
                yield from walk(entry, f"{name}.{key}.")
        else:
            yield name, value, dict(item.metadata)


def check_value(name: str, value: Any, metadata: dict[str, Any]) -> None:
    options = metadata.get("options")
    if options and value not in options:
        known = ", ".join(str(option).lower() if isinstance(option, bool) else option for option in options)
        raise ConfigError(f"{name}={value} is not a choice", f"use one of {known}")
    if "low" not in metadata or value is None:
        return
    low, high = metadata["low"], metadata["high"]
    if isinstance(value, list) and len(value) < metadata.get("min_length", 0):
        raise ConfigError(f"{name} is empty", f"give at least {metadata['min_length']}, as {name}=[...]")
    for number in value if isinstance(value, list) else [value]:
        if not low <= number <= high:  # also catches NaN, which compares false
            raise ConfigError(f"{name}={number} is out of range", f"use a value from {low:g} to {high:g}")


def check_stage_and_model(config: TrainingConfig) -> None:
    stage, model = config.stage.name, config.model.name
    allowed = {"cnn_lstm": ("cnn_lstm",), "ensemble": ("ensemble",)}.get(stage, schema.ALGORITHMS)
    if model not in allowed:
        why = {
            "cnn_lstm": "the forecaster is trained by itself; leave model= away, or use stage=rl for an agent",
            "ensemble": "the members name their own algorithms; leave model= away and set model.combiner",
        }.get(stage, f"use model={'|'.join(schema.ALGORITHMS)}")
        raise ConfigError(f"stage={stage} cannot be trained with model={model}", why)


def check_task(config: TrainingConfig) -> None:
    if not isinstance(config.env, schema.GymnasiumConfig):
        return
    if config.stage.name != "rl":
        raise ConfigError(f"stage={config.stage.name} needs a market, and env=gymnasium is none", "use stage=rl")
    if config.device.compile is not False:
        raise ConfigError(
            f"device.compile={str(config.device.compile).lower()} is for a market, and env=gymnasium is none",
            "leave device.compile=false",
        )


def check_market(env: schema.EnvConfig) -> None:
    if not isinstance(env, schema.MarketConfig):
        return
    if env.latency_bars >= env.episode_bars:
        raise ConfigError(
            f"env.latency_bars={env.latency_bars} leaves no order time to fill in env.episode_bars={env.episode_bars}",
            "raise env.episode_bars",
        )
    if env.sizing == "fixed_notional" and env.reward in ("log_return", "drawdown_penalised"):
        raise ConfigError(
            f"env.reward={env.reward} compounds and env.sizing=fixed_notional does not",
            "use env.reward=mean_variance or differential_sharpe",
        )


def check_upstream(config: TrainingConfig) -> None:
    upstream = config.upstream
    expected = {
        "cnn_lstm": schema.UpstreamConfig,
        "rl": schema.RlUpstream,
        "hybrid": schema.HybridUpstream,
        "ensemble": schema.EnsembleUpstream,
    }[config.stage.name]
    if type(upstream) is not expected:
        raise ConfigError(f"upstream does not fit stage={config.stage.name}", f"use upstream={config.stage.name}")
    if isinstance(upstream, schema.HybridUpstream) and upstream.rl_model is None:  # a named agent is compared itself
        check_same_agent("model", config.model, "upstream.rl.model", upstream.rl.model)
    if isinstance(upstream, schema.EnsembleUpstream):
        for name, member in upstream.members.items():
            path = f"upstream.members.{name}"
            check_same_agent(f"{path}.hybrid.model", member.hybrid.model, f"{path}.rl.model", member.rl.model)
        check_members(upstream, config.stage)


# Settings that decide what the weights of an agent mean.
INHERITED = (
    "name",
    "hidden_sizes",
    "activation",
    "layer_norm",
    "gamma",
    "reward_scale",
    "normalise_observation",
    "normalise_reward",
    "policy",
    "positions",
)


def check_same_agent(name: str, hybrid: schema.ModelConfig, parent_name: str, parent: schema.ModelConfig) -> None:
    """A hybrid takes over the networks of its parent agent, so both must be the same algorithm and shape."""
    for key in INHERITED:
        mine, theirs = getattr(hybrid, key, None), getattr(parent, key, None)
        if mine != theirs:
            raise ConfigError(
                f"{name}.{key}={mine} but {parent_name}.{key}={theirs}, and a hybrid goes on from its agent's networks",
                f"set {parent_name}.{key} as well",
            )


def check_members(upstream: schema.EnsembleUpstream, stage: schema.StageConfig) -> None:
    assert isinstance(stage, schema.EnsembleStage)
    count = len(upstream.models) or len(upstream.members)
    if count < stage.min_members:
        raise ConfigError(
            f"an ensemble of {count} is below stage.min_members={stage.min_members}",
            "name more hybrids in upstream.models=[A,B,...]",
        )
    if len(set(upstream.models)) != len(upstream.models):
        raise ConfigError(f"upstream.models={upstream.models} names a model twice", "name each hybrid once")


def check_replay(config: TrainingConfig) -> None:
    for name, model in agent_models(config):
        if isinstance(model, schema.OffPolicyModel) and model.num_envs > model.replay_capacity:
            raise ConfigError(
                f"{name}.num_envs={model.num_envs} is above {name}.replay_capacity={model.replay_capacity}",
                f"raise {name}.replay_capacity",
            )


def check_positions(config: TrainingConfig) -> None:
    low = -1.0 if getattr(config.env, "allow_short", True) else 0.0  # a task has no shorts to forbid
    for name, model in agent_models(config):
        if not isinstance(model, schema.PpoModel) or model.policy != "categorical":
            continue
        if len(set(model.positions)) != len(model.positions):
            raise ConfigError(f"{name}.positions={model.positions} repeats a position", "give each of them once")
        if min(model.positions) < low:
            raise ConfigError(
                f"{name}.positions={model.positions} holds short ones, and env.allow_short=false",
                f"use {name}.positions=[0,1]",
            )


def agent_models(config: TrainingConfig) -> list[tuple[str, schema.ModelConfig]]:
    """Every algorithm that a run may train, with its dotted name."""
    upstream, models = config.upstream, [("model", config.model)]
    if isinstance(upstream, schema.HybridUpstream):
        models.append(("upstream.rl.model", upstream.rl.model))
    if isinstance(upstream, schema.EnsembleUpstream):
        for name, member in upstream.members.items():
            models.append((f"upstream.members.{name}.rl.model", member.rl.model))
            models.append((f"upstream.members.{name}.hybrid.model", member.hybrid.model))
    return models


def check_forecasters(config: TrainingConfig) -> None:
    for name, model in forecaster_models(config):
        shortest = len(model.conv_channels) * (model.kernel_size - 1) + 1
        if model.window_bars < shortest:
            raise ConfigError(
                f"{name}.window_bars={model.window_bars} is too short for {len(model.conv_channels)} convolutions of "
                f"kernel_size={model.kernel_size}",
                f"use at least {shortest} bars",
            )
    if config.trainer.cross_fit_folds == 1:
        raise ConfigError("trainer.cross_fit_folds=1 leaves nothing to train on", "use 0 (off) or at least 2")


def forecaster_models(config: TrainingConfig) -> list[tuple[str, schema.CnnLstmModel]]:
    if isinstance(config.model, schema.CnnLstmModel):
        return [("model", config.model)]
    recipe = getattr(config.upstream, "cnn_lstm", None)
    return [("upstream.cnn_lstm.model", recipe.model)] if recipe else []


FILE_SOURCES = ("csv", "parquet", "feather", "lean")
READ_BY = {
    "path": FILE_SOURCES,
    "time_format": ("csv", "parquet", "feather"),
    "symbol_column": ("csv", "parquet", "feather"),
    "delimiter": ("csv",),
    "interval": ("yahoo", "crypto"),
    "exchange": ("crypto",),
    "num_bars": schema.SYNTHETIC_MARKETS,
    "seed": schema.SYNTHETIC_MARKETS,
}


def check_data(data: schema.DataConfig) -> None:
    """Refuse settings that the chosen source does not read: `data.path=FILE` alone would train on the sample."""
    for name, sources in READ_BY.items():
        if getattr(data, name) is not None and data.source not in sources:
            raise ConfigError(
                f"data.{name}={getattr(data, name)} is not read by data={data.source}", f"use data={'|'.join(sources)}"
            )
    for item in fields(data.columns):
        if getattr(data.columns, item.name) is not None and data.source not in FILE_SOURCES[:3]:
            raise ConfigError(f"data.columns.{item.name} is not read by data={data.source}", "use data=csv")
    if data.source in schema.SYNTHETIC_MARKETS and ((data.num_bars or 0) < 2 or data.seed is None or data.seed < 0):
        raise ConfigError(
            f"data.num_bars={data.num_bars} and data.seed={data.seed} make no market",
            "use at least 2 bars and a seed of 0 or more",
        )
    if data.timezone not in zoneinfo.available_timezones():
        raise ConfigError(f"data.timezone={data.timezone} is unknown", "use a name such as UTC or America/New_York")


def check_splits(config: TrainingConfig) -> None:
    used = config.evaluation.train_fraction + config.evaluation.validation_fraction
    if used > 0.95:
        raise ConfigError(
            f"evaluation.train_fraction + evaluation.validation_fraction = {used:g} leaves too little to test on",
            "keep their sum at or below 0.95",
        )


def check_webhook(alerts: schema.AlertsConfig) -> None:
    if alerts.webhook is not None and not alerts.webhook.startswith(("http://", "https://")):
        raise ConfigError("monitoring.alerts.webhook is no web address", "give one that begins with https://")
