"""When to raise an alarm: pure functions of what was measured. Each returns what is wrong in one line, or None.

Series are in order of training, the latest value last. A rule stays silent until it has seen enough to judge.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from trade_agent.config.schema import AlertsConfig

RECENT = 5  # values whose median stands for "now"
BEFORE = 10  # values that must lie before them: they stand for what is usual


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule on one series. needs: how many values it must have seen before it can find anything."""

    name: str
    series: str
    needs: int
    judge: Callable[[Sequence[float]], str | None]


def series_rules(config: AlertsConfig, *, score: str, checks: int) -> list[Rule]:
    """The rules on series that are switched on. score: the series that must not stand still, of `checks` values."""
    patience = math.ceil(config.plateau_fraction * checks)
    found = []
    if config.plateau_fraction:
        found.append(Rule("plateau", score, patience + 1, partial(plateau, checks=patience)))
    if config.gradient_factor:
        judge = partial(exploding_gradient, factor=config.gradient_factor)
        found.append(Rule("exploding_gradient", "grad_norm", BEFORE + 1, judge))
    if config.throughput_fraction:
        judge = partial(throughput_fall, fraction=config.throughput_fraction)
        found.append(Rule("throughput_fall", "steps_per_second", BEFORE + RECENT, judge))
    if config.memory_factor:
        judge = partial(memory_growth, factor=config.memory_factor)
        found.append(Rule("memory_growth", "memory_bytes", BEFORE + RECENT, judge))
    if config.collapsed_policy:
        judge = partial(collapsed_policy, floor=config.entropy_floor)
        found.append(Rule("collapsed_policy", "entropy", RECENT, judge))
        found.append(Rule("idle_policy", "validation/turnover", 2, idle_policy))
    return found


def not_finite(values: Mapping[str, float]) -> str | None:
    """A metric is NaN or infinite."""
    wrong = [f"{name} is {value}" for name, value in values.items() if not math.isfinite(value)]
    return ", ".join(wrong) or None


def plateau(scores: Sequence[float], *, checks: int) -> str | None:
    """The best validation score is that of more than `checks` checks ago."""
    if len(scores) <= checks:
        return None
    best = max(scores[:-checks])
    if max(scores[-checks:]) > best:
        return None
    return f"no validation score above {best:.4g} in the last {checks} checks"


def exploding_gradient(norms: Sequence[float], *, factor: float) -> str | None:
    """The latest gradient norm is above `factor` times the median of those before."""
    if len(norms) <= BEFORE:
        return None
    usual = median(norms[:-1])
    if norms[-1] <= factor * usual:
        return None
    return f"gradient norm {norms[-1]:.4g}, usually {usual:.4g}"


def throughput_fall(rates: Sequence[float], *, fraction: float) -> str | None:
    """Steps per second have fallen below `fraction` of what was usual."""
    if len(rates) < BEFORE + RECENT:
        return None
    now, usual = median(rates[-RECENT:]), median(rates[:-RECENT])
    if now >= fraction * usual:
        return None
    return f"{now:,.0f} steps per second, usually {usual:,.0f}"


def memory_growth(sizes: Sequence[float], *, factor: float) -> str | None:
    """Memory is above `factor` times what it was when training had settled, and was at its highest just now.

    sizes: bytes. The first values are those of buffers being made.
    """
    if len(sizes) < BEFORE + RECENT:
        return None
    settled, now = median(sizes[BEFORE - RECENT : BEFORE]), min(sizes[-RECENT:])
    if now <= factor * settled or max(sizes[-RECENT:]) < max(sizes):
        return None
    return f"memory grew from {settled / 2**20:,.0f} to {now / 2**20:,.0f} MiB"


def collapsed_policy(entropies: Sequence[float], *, floor: float) -> str | None:
    """The entropy of the policy, in nats, stays below `floor`: it does not explore any more."""
    recent = entropies[-RECENT:]
    if len(recent) < RECENT or max(recent) >= floor:
        return None
    return f"entropy of the policy {recent[-1]:.4g}, below {floor:g}"


def idle_policy(turnovers: Sequence[float]) -> str | None:
    """The policy traded at validation before, and now does not at all."""
    if len(turnovers) < 2 or turnovers[-1] > 0.0 or max(turnovers) == 0.0:
        return None
    return "the policy does not trade at all on validation rows"
