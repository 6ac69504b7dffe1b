"""Flags of a benchmark that takes numbers and choices."""

import argparse


def asked(description: str | None, **flags: int | tuple[str, ...]) -> argparse.Namespace:
    """What the command line says: a flag for each number or choice, and --json.

    Args:
        description: the benchmark's docstring.
        flags: each number with its default, each choice with its values, the default first.
    """
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    for name, flag in flags.items():
        if isinstance(flag, int):
            parser.add_argument(f"--{name}", type=int, default=flag)
        else:
            parser.add_argument(f"--{name}", choices=flag, default=flag[0])
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()
