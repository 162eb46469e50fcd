"""What is logged while a run is under way, in one file of its folder, whoever started the run or goes on with it."""

import contextlib
import logging
from collections.abc import Iterator
from logging.handlers import MemoryHandler
from pathlib import Path

LOG = "train.log"
FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class RunLog(MemoryHandler):
    """Appends to a file. What comes before its folder is made waits for it: wrong input leaves none behind."""

    def __init__(self, path: Path) -> None:
        self.file = logging.FileHandler(path, encoding="utf-8", delay=True)
        self.file.setFormatter(logging.Formatter(FORMAT))
        super().__init__(capacity=0, target=self.file, flushOnClose=False)

    def shouldFlush(self, record: logging.LogRecord) -> bool:
        return Path(self.file.baseFilename).parent.is_dir()

    def close(self) -> None:
        super().close()
        self.file.close()


@contextlib.contextmanager
def run_log(run_dir: Path) -> Iterator[None]:
    """Keep everything from INFO on, of every library, in `train.log` of a run's folder."""
    root, handler = logging.getLogger(), RunLog(run_dir / LOG)
    level = root.level
    root.setLevel(min(level, logging.INFO))
    root.addHandler(handler)
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
        handler.close()
