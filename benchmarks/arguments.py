"""Flags of a benchmark that takes only integers."""

import argparse


def asked(description: str | None, **numbers: int) -> argparse.Namespace:
    """What the command line says: a flag for each number, with its default, and --json."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    for name, number in numbers.items():
        parser.add_argument(f"--{name}", type=int, default=number)
    parser.add_argument("--json", action="store_true", help="one JSON object as the last line")
    return parser.parse_args()
