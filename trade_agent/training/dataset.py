"""From a config to what every stage works on, on one device: validated bars, split, fitted features, the market."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from trade_agent.config.schema import DataConfig, EvaluationConfig, MarketConfig, PreprocessingConfig, TrainingConfig
from trade_agent.data.bars import Bars
from trade_agent.data.load import load_bars, validate_file
from trade_agent.data.splits import Split, chronological_split
from trade_agent.data.validation import ValidationReport
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries
from trade_agent.errors import DataError
from trade_agent.preprocessing.causality import CausalityReport, check_causal
from trade_agent.preprocessing.pipeline import PreprocessingPipeline, StepSpec
from trade_agent.preprocessing.templates import template_steps

CAUSALITY_POINTS = 8  # bars at which the features of a run are tried for looking ahead
CAUSALITY_BARS = 100_000  # of a longer series so many are tried: each point transforms all of them again
MIN_SPLIT_ROWS = 40  # fewer bars in a split say nothing about anything


@dataclass(frozen=True, slots=True, kw_only=True)
class MarketDataset:
    """T bars of A assets, ready on `device`.

    features: [T, A, F] float32; the first `pipeline.warmup_bars` rows are NaN. causality: whether they change when the
    bars after them do, tried at some test and validation bars of these very data. close: [T, A] float64, NaN where not
    tradable. first_row: the first bar with features.
    """

    source: str
    bars: Bars
    validation: ValidationReport
    split: Split
    pipeline: PreprocessingPipeline
    features: Tensor
    causality: CausalityReport
    series: MarketSeries
    rules: MarketRules
    device: torch.device

    @property
    def first_row(self) -> int:
        return self.pipeline.warmup_bars

    @property
    def num_assets(self) -> int:
        return self.bars.num_assets

    def grade_inputs(self) -> dict[str, float]:
        """What a grading policy must know of the data."""
        return {"leaked": float(not self.causality.ok)}

    def to(self, device: torch.device) -> "MarketDataset":
        """The same on another device."""
        if device == self.device:
            return self
        series = MarketSeries.from_bars(self.bars, device)
        return replace(self, features=self.features.to(device), series=series, device=device)

    def splits(self) -> dict[str, list[str]]:
        """First and last bar of each split, both included, as ISO times in UTC."""
        named = {"train": self.split.train, "validation": self.split.validation, "test": self.split.test}
        return {name: [self._time(rows.start), self._time(rows.stop - 1)] for name, rows in named.items()}

    def _time(self, row: int) -> str:
        return str(np.datetime_as_string(self.bars.timestamps[row], unit="s"))


@dataclass(frozen=True, slots=True)
class LoadedData:
    """Bars of a run before anything was fitted."""

    source: str
    bars: Bars
    validation: ValidationReport


def load_data(data: DataConfig, evaluation: EvaluationConfig) -> LoadedData:
    """Read and validate. Raises DataError when the series is shorter than `evaluation.min_bars`."""
    bars, report = load_bars(**source_arguments(data))
    shortest = int(bars.tradable.sum(0).min())
    if shortest < evaluation.min_bars:
        symbol = bars.symbols[int(bars.tradable.sum(0).argmin())]
        raise DataError(
            f"{data.path or data.source}: {symbol} has {shortest} bars, at least {evaluation.min_bars} are needed to "
            "train, validate and test on separate rows",
            "give a longer series, or leave the symbol out with data.symbols=[...]",
        )
    for symbol, close, tradable in zip(bars.symbols, bars.close.T, bars.tradable.T, strict=True):
        if np.ptp(close[tradable]) == 0.0:
            raise DataError(
                f"{data.path or data.source}: the price of {symbol} never moves", "leave it out with data.symbols=[...]"
            )
    return LoadedData(data.source, bars, report)


def validate_source(data: DataConfig) -> ValidationReport:
    """The findings alone, also for data that training would refuse."""
    return validate_file(**source_arguments(data))


def source_arguments(data: DataConfig) -> dict[str, Any]:
    """The arguments of `load_bars` and `validate_file`: the fields of the config, under the same names."""
    arguments = {item.name: getattr(data, item.name) for item in fields(data)}
    for name in ("columns", "policies"):
        arguments[name] = {key: value for key, value in asdict(arguments[name]).items() if value is not None}
    return arguments


def market_rules(env: MarketConfig, periods_per_year: float) -> MarketRules:
    return MarketRules(
        fill=env.fill,
        sizing=env.sizing,
        latency_bars=env.latency_bars,
        max_leverage=env.max_leverage,
        max_weight=env.max_weight,
        allow_short=env.allow_short,
        commission_bps=env.commission_bps,
        commission_min=env.commission_min,
        half_spread_bps=env.half_spread_bps,
        slippage_bps=env.slippage_bps,
        impact=env.impact,
        borrow_rate=env.borrow_rate,
        financing_rate=env.financing_rate,
        periods_per_year=periods_per_year,
        no_trade_band=env.no_trade_band,
        reward=env.reward,
        sharpe_decay=env.sharpe_decay,
        risk_aversion=env.risk_aversion,
        drawdown_penalty=env.drawdown_penalty,
        reward_floor=env.reward_floor,
        maintenance=env.maintenance,
        initial_equity=env.initial_equity,
    )


def build_dataset(
    loaded: LoadedData, config: TrainingConfig, *, window_bars: int, horizons: Sequence[int], device: torch.device
) -> MarketDataset:
    """Split, fit the pipeline on train rows only, transform everything, put it on the device."""
    pipeline = new_pipeline(config.preprocessing, adjusted=config.data.adjust, signals=list(loaded.bars.signals))
    split = chronological_split(
        num_bars=loaded.bars.num_bars,
        warmup_bars=pipeline.warmup_bars,
        train_fraction=config.evaluation.train_fraction,
        validation_fraction=config.evaluation.validation_fraction,
        embargo_bars=window_bars + max(horizons),
        min_rows=MIN_SPLIT_ROWS + window_bars + max(horizons),
    )
    check_listed(loaded, split)
    pipeline = pipeline.fit(loaded.bars, split.train)
    return MarketDataset(
        source=loaded.source,
        bars=loaded.bars,
        validation=loaded.validation,
        split=split,
        pipeline=pipeline,
        features=features_of(loaded.bars, pipeline, device),
        causality=causality_of(loaded.bars, pipeline, split),
        series=MarketSeries.from_bars(loaded.bars, device),
        rules=market_rules(config.market, loaded.bars.periods_per_year),
        device=device,
    )


def features_of(bars: Bars, pipeline: PreprocessingPipeline, device: torch.device) -> Tensor:
    """[T, A, F] float32; the rows of the warm-up are NaN, so that nothing can read them unnoticed."""
    table = pipeline.transform(bars)
    table.values[: table.warmup_bars] = np.nan
    return torch.as_tensor(table.values, device=device)


def with_pipeline(dataset: MarketDataset, pipeline: PreprocessingPipeline) -> MarketDataset:
    """The same bars read through another fitted pipeline of the same contract."""
    features = features_of(dataset.bars, pipeline, dataset.device)
    causality = causality_of(dataset.bars, pipeline, dataset.split)
    return replace(dataset, pipeline=pipeline, features=features, causality=causality)


def causality_of(bars: Bars, pipeline: PreprocessingPipeline, split: Split) -> CausalityReport:
    """Replace the bars after some of those that nothing was fitted on, and compare the features up to them.

    Of a long series this is done on its last part or, where that has no gap but an earlier one has, on the part that
    ends with the last gap: a back-fill shows only there. The bars of the report are counted from that part's first.
    """
    stop, train_stop = bars.num_bars, split.train.stop
    gaps = train_stop + np.flatnonzero(~bars.tradable[train_stop:].all(1))
    if len(gaps) and gaps[-1] < stop - CAUSALITY_BARS:
        stop = max(int(gaps[-1]) + 2, train_stop + CAUSALITY_BARS)  # with the bar that ends the gap
    start = max(0, stop - CAUSALITY_BARS - pipeline.warmup_bars)
    return check_causal(
        lambda changed: pipeline.transform(changed).values,
        bars.rows(start, stop),
        num_points=CAUSALITY_POINTS,
        seed=0,
        first=max(train_stop - start, pipeline.warmup_bars),
    )


def check_listed(loaded: LoadedData, split: Split) -> None:
    """Raise DataError naming the first asset that is hardly traded within one of the splits."""
    for name, rows in {"train": split.train, "validation": split.validation, "test": split.test}.items():
        traded = loaded.bars.tradable[rows.start : rows.stop].sum(0)
        if traded.min() < MIN_SPLIT_ROWS:
            raise DataError(
                f"{loaded.bars.symbols[int(traded.argmin())]} is traded on {traded.min()} of {len(rows)} {name} bars, "
                f"at least {MIN_SPLIT_ROWS} are needed",
                "leave the symbol out with data.symbols=[...], or set data.start or data.end",
            )


def new_pipeline(
    preprocessing: PreprocessingConfig, *, adjusted: bool, signals: Sequence[str] = ()
) -> PreprocessingPipeline:
    """The steps of the template on top of the data's signals, or the user's own list when there is one."""
    own = [StepSpec(step.name, dict(step.params)) for step in preprocessing.steps]
    return PreprocessingPipeline(
        own or template_steps(preprocessing.template, signals), prices="adjusted" if adjusted else "raw"
    )
