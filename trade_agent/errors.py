"""Every failure that a user can mend, with the exit code that a shell sees.

A message says what is wrong and where; ``remedy`` says what to do. Both are one line.
"""


class TradeAgentError(Exception):
    """Base class. ``exit_code`` 2 means the input was wrong and nothing was started, 1 means a run failed."""

    exit_code = 1

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}; {self.remedy}" if self.remedy else self.message


class ConfigError(TradeAgentError):
    """A field of the configuration is unknown, of the wrong type, out of range or contradicts another one."""

    exit_code = 2


class DataError(TradeAgentError):
    """A data file is missing, unreadable, ambiguous, too short or fails validation."""

    exit_code = 2


class PreprocessingError(TradeAgentError):
    """A frame does not fit the schema of a pipeline, or two preprocessing contracts differ."""

    exit_code = 2


class RegistryError(TradeAgentError):
    """A model reference is unknown or ambiguous, or a stored model is damaged."""

    exit_code = 2


class UnsafeFileError(RegistryError):
    """A file is not of a form that can be loaded without running code."""


class CheckpointError(TradeAgentError):
    """A checkpoint is missing, damaged or belongs to another run."""


class TrainingDivergedError(TradeAgentError):
    """A loss or a weight became NaN or infinite."""


class PeerLostError(TradeAgentError):
    """Another process that trains along died, or the network to it is gone. All may start again (EX_UNAVAILABLE)."""

    exit_code = 69


class JobError(TradeAgentError):
    """A job of a sweep was killed, cancelled or lost, and left no result."""


class StoppedError(TradeAgentError):
    """A signal asked the run to stop, and its state is in a checkpoint. ``exit_code`` follows the signal."""


class TrialPrunedError(TradeAgentError):
    """A trial of a search is worse than the others and ends early. It is no failure, and registers nothing."""
