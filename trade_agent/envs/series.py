"""The prices an environment trades on, resident on one device."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from trade_agent.errors import DataError

if TYPE_CHECKING:
    from trade_agent.data.bars import Bars


@dataclass(frozen=True, slots=True)
class MarketSeries:
    """Prices of A assets over T bars.

    open, close: [T, A] float64, positive and finite everywhere, in the currency of the account. On a row where an asset
    is not tradable both are the close of its last tradable row, so a position is marked there and never at NaN; before
    the first tradable row they are 1.0, a value nobody can hold.
    tradable: [T, A] bool; False where the asset is not listed or suspended during bar t.
    always_tradable: whether ``tradable`` is True throughout; the step then leaves the masks out.

    Raises DataError for wrong shapes or dtypes and for a price that is not positive and finite.
    """

    open: Tensor
    close: Tensor
    tradable: Tensor
    always_tradable: bool = field(init=False)

    def __post_init__(self) -> None:
        for name, values in (("open", self.open), ("close", self.close)):
            if values.ndim != 2 or values.shape != self.tradable.shape or values.dtype != torch.float64:
                raise DataError(
                    f"{name} prices are {values.dtype} of shape {tuple(values.shape)}, "
                    f"tradable has shape {tuple(self.tradable.shape)}",
                    "give float64 prices and a bool mask, all of shape [bars, assets]",
                )
            if not bool((torch.isfinite(values) & (values > 0)).all()):
                raise DataError(f"{name} prices hold values that are not positive and finite", "use from_bars")
        if self.tradable.dtype != torch.bool:
            raise DataError(f"tradable is {self.tradable.dtype}", "give a bool mask")
        # Side by side in memory: a step reads both prices of a bar.
        prices = torch.stack((self.open, self.close), dim=1)
        object.__setattr__(self, "open", prices[:, 0])
        object.__setattr__(self, "close", prices[:, 1])
        object.__setattr__(self, "always_tradable", bool(self.tradable.all()))

    @property
    def num_bars(self) -> int:
        return self.close.shape[0]

    @property
    def num_assets(self) -> int:
        return self.close.shape[1]

    @classmethod
    def from_bars(cls, bars: Bars, device: torch.device | str = "cpu") -> MarketSeries:
        """Series of ``bars`` on ``device``; the last tradable price is carried forward, never backward."""
        tradable = bars.tradable
        # Row of the last tradable bar up to and including t; -1 before the first one.
        rows = np.where(tradable, np.arange(len(tradable))[:, None], -1)
        last = np.maximum.accumulate(rows, axis=0)
        carried = np.where(last >= 0, np.take_along_axis(bars.close, np.maximum(last, 0), axis=0), 1.0)
        return cls(
            open=torch.as_tensor(np.where(tradable, bars.open, carried), dtype=torch.float64, device=device),
            close=torch.as_tensor(carried, dtype=torch.float64, device=device),
            tradable=torch.as_tensor(tradable, device=device),
        )
