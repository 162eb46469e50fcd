"""Stage 1: train the forecaster, cross-fit it over the train rows, judge it on test rows it never saw."""

from typing import Any

import numpy as np
from torch import Tensor

from trade_agent.config.schema import CnnLstmModel, CnnLstmStage
from trade_agent.errors import DataError
from trade_agent.evaluation.forecast import ForecastEvaluation, evaluate_forecast
from trade_agent.evaluation.grading import grade
from trade_agent.evaluation.report import plot_forecast
from trade_agent.networks.cnn_lstm import CNNLSTM
from trade_agent.training.dataset import MIN_SPLIT_ROWS, MarketDataset
from trade_agent.training.models import Forecaster, folds_to_state, forecaster_spec
from trade_agent.training.monitoring.watch import Watch
from trade_agent.training.stages.context import StageContext, StageOutcome, seed_everything
from trade_agent.training.supervised import (
    FitResult,
    FitSettings,
    Fold,
    Targets,
    align_latent,
    evaluate_loss,
    feature_table,
    fit_forecaster,
    fold_bounds,
    label_rows,
    make_targets,
    outside,
    samples,
)


def run(context: StageContext, *, stage: CnnLstmStage, model: CnnLstmModel) -> StageOutcome:
    """Train, cross-fit and evaluate a forecaster. The best epoch is chosen on validation rows."""
    return _outcome(context, *_train(context, stage, model))


def _train(context: StageContext, stage: CnnLstmStage, model: CnnLstmModel) -> tuple[Forecaster, list[Fold], FitResult]:
    """What is learned, without the targets: of a long series they are large, and the verdict needs the room."""
    dataset = context.dataset
    spec = forecaster_spec(model, dataset.features.shape[2])
    targets = dataset_targets(dataset, model.horizons)
    settings = FitSettings(
        epochs=context.trainer.forecaster_epochs,
        patience=context.trainer.forecaster_patience,
        batch_size=model.batch_size,
        learning_rate=model.learning_rate,
        weight_decay=model.weight_decay,
        direction_weight=stage.direction_loss_weight,
    )
    bars = label_rows(dataset.split.train, model.horizons, model.window_bars, dataset.first_row)
    network, fit = _fit(context, spec, targets, settings, bars, max(model.horizons), "forecaster", context.watch)
    forecaster = Forecaster(network, spec, tuple(model.horizons), targets.scale)
    return forecaster, _cross_fit(context, forecaster, targets, settings, bars), fit


def check_folds(dataset: MarketDataset, model: CnnLstmModel, folds: int) -> None:
    """Raise DataError when the other blocks leave a cross-fit forecaster fewer bars than a split must have."""
    bars = label_rows(dataset.split.train, model.horizons, model.window_bars, dataset.first_row)
    purge_bars = model.window_bars + max(model.horizons)
    fewest = min((len(outside(bars, block, purge_bars)) for block in fold_bounds(bars, folds)), default=MIN_SPLIT_ROWS)
    if fewest < MIN_SPLIT_ROWS:
        raise DataError(
            f"{len(bars)} train bars in {folds} cross-fit folds leave {fewest} bars to train one on, at least "
            f"{MIN_SPLIT_ROWS} are needed",
            "give a longer series, a smaller model.window_bars, more folds, or trainer.cross_fit_folds=0",
        )


def dataset_targets(dataset: MarketDataset, horizons: list[int], scale: Tensor | None = None) -> Targets:
    """`scale` [H] of a forecaster that exists already; fitted on train rows without one."""
    targets = make_targets(dataset.bars.close, dataset.bars.tradable, horizons, dataset.split.train, scale)
    return Targets(*(part.to(dataset.device) for part in targets))


def _fit(
    context: StageContext,
    spec: dict[str, Any],
    targets: Targets,
    settings: FitSettings,
    bars: range | list[int],
    longest_horizon: int,
    label: str,
    watch: Watch,
) -> tuple[CNNLSTM, FitResult]:
    """A new network trained on the windows that end at `bars`."""
    dataset = context.dataset
    # Every fold starts from the weights of the final forecaster's start: what differs is only what was seen.
    generator = seed_everything(context.seed, context.device, "cnn_lstm")
    network = CNNLSTM(**spec).to(context.device)
    context.world.own_random_numbers()
    validation = dataset.split.validation
    # Labels that end after the validation rows would look into the embargo.
    validation_bars = range(validation.start, validation.stop - longest_horizon)
    held_out = samples(validation_bars, targets.valid)
    figures = ["skill_score"] if watch.prunes else []
    watch.expect(metrics=["grad_norm"], reports=settings.epochs, validation=figures, checks=settings.epochs)
    with context.progress.task(label, settings.epochs) as task:

        def on_epoch(epoch: int, metrics: dict[str, float]) -> None:
            if task.done < epoch - 1:
                task.skip(epoch - 1)
            task.advance(1, f"loss {metrics['train_loss']:.4f}, validation {metrics['validation_loss']:.4f}")
            watch.metrics(epoch, metrics)
            if watch.prunes:
                watch.validated(epoch, {"skill_score": skill_score(network, dataset.features, targets, held_out)})

        fit = fit_forecaster(
            network,
            series=dataset.features,
            targets=targets,
            train=samples(bars, targets.valid),
            validation=held_out,
            settings=settings,
            generator=generator,
            session=context.checkpoints.session(label, generator),
            on_epoch=on_epoch,
        )
        task.advance(settings.epochs)
    return network, fit


def skill_score(network: CNNLSTM, series: Tensor, targets: Targets, pairs: Tensor) -> float:
    """1 - squared error / that of forecasting no change, over the pairs [S, 2] and all horizons.

    Unlike the loss it means the same under every weight of the direction, so that trials of a search can be compared.
    """
    naive = float(targets.returns[pairs[:, 0], pairs[:, 1]].square().mean())
    return 1.0 - evaluate_loss(network, series, targets, pairs, direction_weight=0.0) / naive


def _cross_fit(
    context: StageContext, forecaster: Forecaster, targets: Targets, settings: FitSettings, bars: range
) -> list[Fold]:
    """One forecaster for each block of train rows, trained on the other blocks."""
    folds: list[Fold] = []
    count = context.trainer.cross_fit_folds
    if count == 0:
        return folds
    features, network = context.dataset.features, forecaster.network
    final_table = feature_table(network, features)
    purge_bars = network.window_bars + max(forecaster.horizons)
    for index, block in enumerate(fold_bounds(bars, count)):
        others = outside(bars, block, purge_bars)
        label = f"cross-fit {index + 1}/{count}"
        longest = max(forecaster.horizons)
        fold_network, _ = _fit(context, forecaster.spec, targets, settings, others, longest, label, Watch())
        table = feature_table(fold_network, features)
        weight, bias = align_latent(table, final_table, others, network.latent_dim)
        # Blocks follow each other without a gap, so the last one also covers the rows whose labels leave the split.
        stop = context.dataset.split.train.stop if index == count - 1 else block.stop
        folds.append(Fold(block.start, stop, fold_network.state_dict(), weight, bias))
    return folds


def _outcome(context: StageContext, forecaster: Forecaster, folds: list[Fold], fit: FitResult) -> StageOutcome:
    dataset = context.dataset
    table = feature_table(forecaster.network, dataset.features)
    validation = [evaluate(context, forecaster, table, asset, dataset.split.validation) for asset in _assets(dataset)]
    test = [evaluate(context, forecaster, table, asset, dataset.split.test) for asset in _assets(dataset)]
    inputs = _pooled([result.grade_inputs() for result in test]) | dataset.grade_inputs()
    metrics = _pooled([result.metrics for result in test])
    validation_metrics = _pooled([result.metrics for result in validation])
    skill = validation_metrics["skill_score"]
    accuracy = metrics["directional_accuracy"]
    return StageOutcome(
        state={
            "kind": "cnn_lstm",
            "forecaster": forecaster.to_state(),
            "symbols": list(dataset.bars.symbols),
            "folds": folds_to_state(folds, dataset.bars.timestamps),
        },
        contract={
            "window_bars": forecaster.network.window_bars,
            "horizons": list(forecaster.horizons),
            "outputs": ["latent", "probability_up", "expected_return"],
            "target": "log return from close to close, in standard deviations of the train rows",
        },
        objective={"name": "validation_skill_score", "value": skill, "direction": "max"},
        validation=validation_metrics,
        metrics=metrics,
        baselines={name: _pooled([result.baselines[name] for result in test]) for name in test[0].baselines},
        # What is beaten must be beaten on every asset: the least favourable one stands for all.
        comparisons={
            name: min((result.comparisons[name] for result in test), key=lambda comparison: comparison.interval.low)
            for name in test[0].comparisons
        },
        report={symbol: result.as_dict() for symbol, result in zip(dataset.bars.symbols, test, strict=True)},
        grade=grade("cnn_lstm", inputs, context.grading),
        headline=("acc", accuracy),
        env_steps=0,
        history={"train_loss": fit.train_loss, "validation_loss": fit.validation_loss},
        pictures=[_picture(context, forecaster, table)],
        notes={"cross_fit_folds": len(folds), "best_epoch": fit.best_epoch + 1},
    )


def _assets(dataset: MarketDataset) -> range:
    return range(dataset.num_assets)


def _pooled(results: list[dict[str, float]]) -> dict[str, float]:
    """Mean over assets; what a model `beats` it must beat on every asset, and the shortest test counts."""
    worst = ("beats_", "num_")
    return {
        name: float((np.min if name.startswith(worst) else np.mean)([result[name] for result in results]))
        for name in results[0]
    }


def forecasts(forecaster: Forecaster, table: Tensor, asset: int, rows: range) -> tuple[np.ndarray, np.ndarray]:
    """Probability of a rise and expected log return [S] over the first horizon, at the close of each bar of `rows`."""
    latent, count = forecaster.network.latent_dim, len(forecaster.horizons)
    part = table[rows.start : rows.stop, asset]
    probability, expected = (part[:, column].double().cpu().numpy() for column in (latent, latent + count))
    return probability, expected * float(forecaster.target_scale[0])


def evaluate(
    context: StageContext, forecaster: Forecaster, table: Tensor, asset: int, rows: range
) -> ForecastEvaluation:
    """Score the forecasts over the first horizon for one asset."""
    dataset, horizon = context.dataset, forecaster.horizons[0]
    past, target = log_returns(dataset, asset, horizon)
    target[rows.stop - horizon :] = np.nan  # a label that ends after these rows belongs to the next split
    train = range(dataset.first_row, dataset.split.train.stop - horizon)
    probability, expected = forecasts(forecaster, table, asset, rows)
    return evaluate_forecast(
        probability,
        expected,
        past_return=past,
        target=target,
        train=train,
        rows=rows,
        horizon_bars=horizon,
        seed=context.seed,
        confidence=context.evaluation.confidence,
        num_resamples=context.evaluation.bootstrap_samples,
    )


def log_returns(dataset: MarketDataset, asset: int, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """[T] log return of the bar that ended at t, and from the close of t over `horizon` bars; NaN where unknown."""
    log_close = np.log(dataset.bars.close[:, asset])
    past, target = np.full_like(log_close, np.nan), np.full_like(log_close, np.nan)
    known = np.flatnonzero(np.isfinite(log_close))  # where an asset rests, the return is that since its last bar
    past[known[1:]] = np.diff(log_close[known])
    target[:-horizon] = log_close[horizon:] - log_close[:-horizon]
    return past, target


def _picture(context: StageContext, forecaster: Forecaster, table: Tensor) -> str:
    rows, dataset = context.dataset.split.test, context.dataset
    probability, expected = forecasts(forecaster, table, 0, rows)
    _, target = log_returns(dataset, 0, forecaster.horizons[0])
    realised = target[rows.start : rows.stop]
    known = np.isfinite(realised)
    path = context.folder / "forecast.png"
    plot_forecast(
        path,
        probability_up=probability[known],
        expected_return=expected[known],
        realised_return=realised[known],
        title=f"forecast of {dataset.bars.symbols[0]} over {forecaster.horizons[0]} bars: test rows",
    )
    return path.name
