"""How values are written on Hydra's command line. No Hydra is needed to know that."""


def quoted(text: str) -> str:
    """A value in the syntax of Hydra's command line."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
