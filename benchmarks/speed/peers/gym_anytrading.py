"""One account of gym-anytrading on a tape of actions."""

import time
from importlib.metadata import version

import numpy as np
import pandas as pd
from gym_anytrading.envs import StocksEnv

from benchmarks.speed.peers.serve import serve


class State:
    env: StocksEnv
    actions: np.ndarray


def load(path: str, window: int) -> dict[str, str]:
    """Prices and actions of an .npz; without fees the profit is that of our market without costs."""
    arrays = np.load(path)
    frame = pd.DataFrame({"Close": arrays["close"]})
    State.env = StocksEnv(df=frame, window_size=window, frame_bound=(window, len(frame)))
    State.env.trade_fee_bid_percent = State.env.trade_fee_ask_percent = 0.0
    State.actions = arrays["actions"]
    return {"gym-anytrading": version("gym-anytrading")}


def play() -> dict[str, object]:
    """The whole tape: seconds, steps, the window [W, 2] seen before the first, and the profit after each."""
    env, profits = State.env, []
    window, _ = env.reset(seed=0)
    started = time.process_time()
    for action in State.actions:
        _, _, _, truncated, info = env.step(int(action))
        profits.append(float(info["total_profit"]))
        if truncated:
            break
    seconds = time.process_time() - started
    return {"seconds": seconds, "steps": len(profits), "window": window.tolist(), "profits": profits}


serve(load=load, play=play)
