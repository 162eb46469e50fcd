"""G1, G3, G4: steps of the market by itself, on a tape of actions.

Ours is the step compiled for a fixed number of accounts, ``UNROLLED`` bars in one kernel: between the bars of a tape
nothing leaves the registers. Windows are rows of a view of the series, copied in the same kernel. The plain step is
measured along with it.
"""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor
from torchrl.envs import FinancialRegimeEnv

from benchmarks.speed.measure import Figure, clock, first_run, in_turn
from benchmarks.speed.peer import Peer, reported_if_missing
from trade_agent.envs.market import MarketState, reset, step
from trade_agent.envs.rules import MarketRules
from trade_agent.envs.series import MarketSeries

Play = Callable[[MarketState, Tensor], tuple[MarketState, Tensor, list[Tensor]]]
WINDOW = 30
UNROLLED = 4
ACCOUNTS = {"cpu": 4096, "cuda": 2**18}
TAPE = {"cpu": 4_000_000, "cuda": 400_000_000}  # account steps in one run
COSTS = ("commission_bps", "half_spread_bps", "slippage_bps", "borrow_rate", "financing_rate")
FREE: dict[str, Any] = dict.fromkeys(COSTS, 0.0)


def random_walk(num_bars: int, device: torch.device | str = "cpu") -> MarketSeries:
    close = 100.0 * np.exp(np.cumsum(0.002 * np.random.default_rng(0).standard_normal((num_bars, 1)), axis=0))
    opens = np.concatenate((close[:1], close[:-1]))
    tradable = torch.ones(num_bars, 1, dtype=torch.bool, device=device)
    return MarketSeries(torch.tensor(opens, device=device), torch.tensor(close, device=device), tradable)


def tape_player(series: MarketSeries, rules: MarketRules, windows: Tensor | None = None) -> Play:
    """play(state, actions [S, N, 1]) -> state, equity [S, N] and, after each of the S steps, what is seen.

    That is the last W bars [N, W, F] of ``windows`` [T - W + 1, W, F], or the number of the bar [N] without them.
    """
    lag = 0 if windows is None else windows.shape[1] - 1

    def play(state: MarketState, actions: Tensor) -> tuple[MarketState, Tensor, list[Tensor]]:
        equity, seen = [], []
        for action in actions.unbind(0):
            state, result = step(series, rules, state, action)
            equity.append(result.equity)
            seen.append(state.t if windows is None else windows.index_select(0, state.t - lag))
        return state, torch.stack(equity), seen

    return play


def measure(repeats: int, device: torch.device) -> None:
    with reported_if_missing("G1 market against gym-anytrading", "gym-anytrading"):
        against_gym_anytrading(repeats, device, num_envs=ACCOUNTS[device.type])
    against_torchrl(repeats, device)
    if device.type == "cpu":  # G4 of a GPU is in cuda.py
        absolute(repeats)


def against_gym_anytrading(repeats: int, device: torch.device, *, num_envs: int, num_bars: int = 5000) -> None:
    series = random_walk(num_bars)
    resident = random_walk(num_bars, device)
    # It trades at the close of the bar after the decision, long or flat.
    rules = MarketRules(fill="next_close", allow_short=False, maintenance=0.0, **FREE)
    tape = np.random.default_rng(1).integers(0, 2, num_bars)
    with tempfile.TemporaryDirectory() as folder, Peer("gym_anytrading") as peer:
        path = str(Path(folder, "tape.npz"))
        np.savez(path, close=series.close[:, 0].numpy(), actions=tape)
        versions = peer.ask("load", path=path, window=WINDOW)
        answer = peer.ask("play")
        steps = answer["steps"]
        closes = resident.close
        features = torch.cat((closes, closes.diff(dim=0, prepend=closes[:1])), dim=1).float()
        agrees = same_profits(series, rules, tape[:steps], answer["profits"])
        agrees = agrees and same_window(series, rules, features.cpu(), answer["window"])
        for name, table, cpu_target in (("with windows", features, 50.0), ("index only", None, 150.0)):
            targets = {"cpu": cpu_target, "cuda": 5000.0}
            for compiled in (True, False):
                ours = _Steps(resident, rules, table, num_envs, compiled, WINDOW)
                figure = f"G1 market against gym-anytrading, {name}, {num_envs} accounts{'' if compiled else ', eager'}"
                if compiled:
                    first_run(figure, ours.run)
                side, other = in_turn(ours.run, lambda: peer.ask("play")["seconds"], repeats)
                _rate(
                    figure,
                    ours.steps / side,
                    steps / other,
                    peer_name="gym-anytrading",
                    target=targets[device.type] if compiled else None,
                    agrees=agrees and ours.as_plain(),
                    device=device.type,
                    versions=versions,
                )


def same_profits(
    series: MarketSeries, rules: MarketRules, tape: Sequence[int] | np.ndarray, profits: list[float]
) -> bool:
    """Whether equity is its profit at every step after which nothing is held: between these it does not mark.

    It multiplies up to thousands of trades in float32, hence the tolerance.
    """
    state = reset(series, rules, torch.tensor([WINDOW]), torch.tensor([series.num_bars - 1]))
    for action, profit in zip(tape, profits, strict=True):
        state, result = step(series, rules, state, torch.tensor([[2.0 * float(action) - 1.0]]))
        flat = float(result.weights.abs()) == 0.0
        if flat and abs(float(result.equity) / rules.initial_equity / profit - 1.0) > 1e-4:
            return False
    return True


def same_window(series: MarketSeries, rules: MarketRules, features: Tensor, window: list[list[float]]) -> bool:
    """Whether it sees before its first decision, at bar WINDOW, what we see there after the step to it."""
    play = tape_player(series, rules, features.unfold(0, WINDOW, 1).transpose(1, 2))
    state = reset(series, rules, torch.tensor([WINDOW - 1]), torch.tensor([series.num_bars - 1]))
    _, _, (seen,) = play(state, torch.zeros(1, 1, 1))
    return torch.equal(seen[0], torch.tensor(window))


class _Steps:
    """Runs of ``steps`` account steps of a tape, with windows of ``features`` [T, F] unless they are None."""

    def __init__(
        self,
        series: MarketSeries,
        rules: MarketRules,
        features: Tensor | None,
        num_envs: int,
        compiled: bool,
        window: int = 1,
    ) -> None:
        torch.compiler.reset()
        play = tape_player(series, rules, None if features is None else features.unfold(0, window, 1).transpose(1, 2))
        self._play = torch.compile(play, fullgraph=True, dynamic=False) if compiled else play
        self._plain = play
        self._device = series.close.device
        blocks = TAPE[self._device.type] // (num_envs * UNROLLED * (1 if compiled else 4))
        blocks = min(blocks, (series.num_bars - window - 1) // (2 * UNROLLED))
        generator = torch.Generator().manual_seed(2)
        last_start = series.num_bars - 1 - blocks * UNROLLED
        start = torch.randint(window - 1, last_start, (num_envs,), generator=generator).to(self._device)
        self._state = reset(series, rules, start, torch.full_like(start, series.num_bars - 1))
        actions = torch.rand(blocks, UNROLLED, num_envs, 1, generator=generator) * 2.0 - 1.0
        self._actions = actions.to(self._device)
        self.steps = blocks * UNROLLED * num_envs

    def run(self) -> float:
        return clock(self._device)(self._all)

    def as_plain(self) -> bool:
        """Whether what is timed has the equity of the plain steps, after each of them, and sees the same."""
        state = plain_state = self._state
        for actions in self._actions:
            state, equity, seen = self._play(state, actions)
            plain_state, plain, plainly_seen = self._plain(plain_state, actions)
            if not torch.allclose(equity, plain, rtol=1e-9, atol=0.0):
                return False
            if not all(torch.equal(mine, other) for mine, other in zip(seen, plainly_seen, strict=True)):
                return False
        return True

    def _all(self) -> None:
        state = self._state
        for actions in self._actions:
            state, _, _ = self._play(state, actions)


def against_torchrl(repeats: int, device: torch.device, num_envs: int = 4096, num_steps: int = 100) -> None:
    env = FinancialRegimeEnv(device=device)
    # Its reset takes the length of the window for a number, and fails on a batch: the state is set up by hand.
    start = TensorDict(
        {
            "price_history": 100.0 * torch.randn(num_envs, 50).mul(0.0126).cumsum(-1).exp(),
            "current_holdings": torch.zeros(num_envs, 1, dtype=torch.bool),
            "entry_price": torch.zeros(num_envs, 1),
            "step_count": torch.zeros(num_envs, dtype=torch.long),
            "params": env.gen_params(batch_size=[num_envs])["params"],
        },
        batch_size=[num_envs],
    ).to(device)
    actions = torch.randint(3, (num_steps, num_envs, 1), device=device)

    def peer() -> None:
        data = start.copy()  # a step is written into it
        for action in actions:
            data = env.step(data.set("action", action))["next"]

    series = random_walk(100_000, device)
    ours = _Steps(series, MarketRules(), series.close.float(), num_envs, compiled=True, window=50)
    figure = f"G3 market against FinancialRegimeEnv, windows of 50, {num_envs} accounts"
    first_run(figure, ours.run)
    side, other = in_turn(ours.run, lambda: clock(device)(peer), repeats)
    as_plain = ours.as_plain()
    _rate(
        figure,
        ours.steps / side,
        num_steps * num_envs / other,
        peer_name="TorchRL FinancialRegimeEnv",
        target={"cpu": 8.0, "cuda": 20.0}[device.type],
        agrees=None if as_plain else False,
        device=device.type,
        remark="its prices are drawn as it goes and its rewards are shaped: no common trajectory to compare"
        if as_plain
        else "compiled steps are not the plain ones",
    )


def absolute(repeats: int) -> None:
    for compiled, num_envs in ((True, 4096), (True, 16384), (False, 16384)):
        ours = _Steps(random_walk(100_000), MarketRules(), None, num_envs, compiled)
        name = f"G4 market, state only, all costs, {num_envs} accounts{'' if compiled else ', eager'}"
        if compiled:
            first_run(name, ours.run)
        side, _ = in_turn(ours.run, lambda: 0.0, repeats)
        Figure(figure=name, unit="env steps/s", ours=ours.steps / side, target=2e7 if compiled else None).print()


def _rate(figure: str, ours: float, peer: float, **fields: Any) -> None:
    Figure(figure=figure, unit="env steps/s", ours=ours, peer=peer, ratio=ours / peer, **fields).print()
