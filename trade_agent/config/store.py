"""Registers the dataclasses of `schema` in Hydra's ConfigStore, where the files of `conf/` start from them."""

from hydra.core.config_store import ConfigStore

from trade_agent.config import schema

SCHEMAS = {
    "schema/train": schema.TrainingConfig,
    "schema/data": schema.DataConfig,
    "schema/preprocessing": schema.PreprocessingConfig,
    "schema/env/market": schema.MarketConfig,
    "schema/env/gymnasium": schema.GymnasiumConfig,
    "schema/device": schema.DeviceConfig,
    "schema/trainer": schema.TrainerConfig,
    "schema/evaluation": schema.EvaluationConfig,
    "schema/grading": schema.GradingConfig,
    "schema/paths": schema.PathsConfig,
    "schema/registry": schema.RegistryConfig,
    "schema/monitoring": schema.MonitoringConfig,
    "hydra/sweeper/study": schema.SearchConfig,
    "schema/stage/cnn_lstm": schema.CnnLstmStage,
    "schema/stage/rl": schema.RlStage,
    "schema/stage/hybrid": schema.HybridStage,
    "schema/stage/ensemble": schema.EnsembleStage,
    "schema/model/cnn_lstm": schema.CnnLstmModel,
    "schema/model/ppo": schema.PpoModel,
    "schema/model/sac": schema.SacModel,
    "schema/model/td3": schema.Td3Model,
    "schema/model/ensemble": schema.EnsembleModel,
    "schema/upstream/cnn_lstm": schema.UpstreamConfig,
    "schema/upstream/rl": schema.RlUpstream,
    "schema/upstream/hybrid": schema.HybridUpstream,
    "schema/upstream/ensemble": schema.EnsembleUpstream,
}


def register_schemas() -> None:
    """Make every schema known to Hydra. Calling it again changes nothing."""
    store = ConfigStore.instance()
    for path, node in SCHEMAS.items():
        group, name = path.rsplit("/", 1)
        store.store(group=group, name=name, node=node, provider="trade_agent", replace=True)
