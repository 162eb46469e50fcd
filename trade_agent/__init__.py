"""trade_agent: trading agents trained in four stages, from a CNN-LSTM forecaster to an ensemble of hybrids."""

__version__ = "0.1.0"
