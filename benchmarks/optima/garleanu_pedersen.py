"""The best policy for a mean-reverting signal under quadratic costs (Garleanu and Pedersen, 2013), of one asset.

Per bar, with x the position held over the bar, in units of the fixed notional, and d = x - x_before the trade,

    reward = x f - gamma / 2 sigma^2 x^2 - lambda / 2 sigma^2 d^2,     f' = (1 - phi) f + noise,

discounted by delta a bar. The paper discounts what a bar earns once more than what its trade costs: its lambda is delta
times ours, its 1 - rho is delta. The value of a state is V(x, f) = -a_xx x^2 / 2 + a_xf x f + a_ff f^2 / 2 + constant
(proposition 2). Nothing here knows the agents or the environment.
"""

import math
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """reversion: phi. volatility: sigma, of a bar's return given f. risk_aversion: gamma. cost: lambda. discount:
    delta."""

    reversion: float
    volatility: float
    risk_aversion: float
    cost: float
    discount: float


@dataclass(frozen=True, slots=True)
class Policy:
    """Trade the fraction ``rate`` of the way to the aim ``aim_per_factor * f``."""

    rate: float
    aim_per_factor: float

    def position(self, before: Any, factor: Any) -> Any:
        """Position after the trade; numbers, or arrays or tensors that go together."""
        return before + self.rate * (self.aim_per_factor * factor - before)


def closed_form(model: Model) -> Policy:
    """Propositions 2 and 3 of the paper for one asset."""
    delta, gamma, lam = model.discount, model.risk_aversion, model.discount * model.cost
    linear = gamma * delta + lam * (1.0 - delta)
    # (-linear + root) / (2 delta), without the cancellation of small costs.
    a = 2.0 * gamma * lam * delta / (linear + math.sqrt(linear**2 + 4.0 * gamma * lam * delta**2))
    aim = 1.0 / (gamma * model.volatility**2 * (1.0 + model.reversion * a / gamma))
    return Policy(a / lam, aim)


def riccati(model: Model, tolerance: float = 1e-14, max_iterations: int = 100_000) -> Policy:
    """The same policy by iterating the Bellman equation on the coefficients of V: no formula of the paper is used.

    Raises RuntimeError when it does not settle.
    """
    variance, delta = model.volatility**2, model.discount
    risk, trade, keep = model.risk_aversion * variance, model.cost * variance, 1.0 - model.reversion
    a_xx = a_xf = 0.0
    for _ in range(max_iterations):
        # max over x of x f - risk x^2 / 2 - trade (x - y)^2 / 2 + delta (-a_xx x^2 / 2 + a_xf x keep f)
        curvature = risk + trade + delta * a_xx
        per_factor = 1.0 + delta * a_xf * keep
        new_xx, new_xf = trade - trade**2 / curvature, trade * per_factor / curvature
        settled = abs(new_xx - a_xx) <= tolerance * trade and abs(new_xf - a_xf) <= tolerance
        a_xx, a_xf = new_xx, new_xf
        if settled:
            kept = trade / curvature  # x = kept y + per_factor / curvature f
            return Policy(1.0 - kept, per_factor / curvature / (1.0 - kept))
    raise RuntimeError(f"the Riccati equation has not settled in {max_iterations} iterations")


def value(model: Model, policy: Policy, factor_deviation: float) -> float:
    """Expected discounted reward of a linear policy from a flat start, f stationary with this standard deviation.

    The second moments of (x, f) obey linear recurrences; their discounted sums are summed up until they vanish.
    """
    variance, keep = model.volatility**2, 1.0 - model.reversion
    stay, per_factor = 1.0 - policy.rate, policy.rate * policy.aim_per_factor
    ff = factor_deviation**2
    yy = yf = total = 0.0  # moments of the position before the trade with itself and with the present factor
    weight = 1.0
    while weight > 1e-12:
        xx = stay**2 * yy + 2.0 * stay * per_factor * yf + per_factor**2 * ff
        xf = stay * yf + per_factor * ff
        dd = xx - 2.0 * (stay * yy + per_factor * yf) + yy
        total += weight * (xf - 0.5 * variance * (model.risk_aversion * xx + model.cost * dd))
        yy, yf, weight = xx, keep * xf, weight * model.discount
    return total
