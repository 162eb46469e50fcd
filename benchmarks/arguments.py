"""Arguments that several programs of this folder take."""

import argparse
from collections.abc import Sequence
from typing import Any


class Names(argparse.Action):
    """Some of the ``known`` names, with spaces or commas between them; all of them where the option is left out."""

    def __init__(self, *args: Any, known: Sequence[str], **fields: Any) -> None:
        super().__init__(*args, nargs="+", default=list(known), metavar="NAME", **fields)
        self.known = known

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option: str | None = None
    ) -> None:
        names = [name for value in values for name in value.split(",") if name]
        for name in names:
            if name not in self.known:
                parser.error(f"argument {option}: there is no {name!r}, choose from {', '.join(self.known)}")
        setattr(namespace, self.dest, names)
