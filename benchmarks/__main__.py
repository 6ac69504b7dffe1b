"""Runs the benchmarks and reports what changed since the committed results.

python -m benchmarks
python -m benchmarks topk evaluate
python -m benchmarks --data ../shared/data

New results go to runs/bench; `benchmarks/results` is only updated by hand. Without --data, the
benchmarks that need external pictures or interactions are skipped.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NEW = HERE.parent / "runs" / "bench"
# Each with the flags that it is run with; {data} is the folder that --data names.
SCRIPTS: dict[str, list[str]] = {
    "topk": [],
    "sampling": [],
    "evaluate": [],
    "train": ["--source", "{data}/movies"],
    "extract": ["--source", "{data}/clothing"],
    "backbones": ["--source", "{data}/clothing"],
    "recommend_scale": [],
    "carry": [],
    "prepare_scale": [],
    "export": [],
    "night": [],
    "gpu": [],
}
# Committed results whose names say with which settings they were measured.
RESULTS = {"topk": "topk_native_random"}
MOVED = 0.2
# Not of the code: the machine, and what was asked for.
ASIDE = {"asked", "cpu", "cores", "load", "versions"}


def committed(name: str) -> Path:
    """The result that a benchmark's new one is compared with."""
    return HERE / "results" / f"{RESULTS.get(name, name)}.json"


def numbers(found: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """Every number of a result, by its dotted name."""
    if isinstance(found, dict):
        for key, value in found.items():
            if key not in ASIDE:
                yield from numbers(value, f"{name}.{key}".lstrip("."))
    elif isinstance(found, list):
        for context, value in enumerate(found):
            yield from numbers(value, f"{name}[{context}]")
    elif isinstance(found, int | float) and not isinstance(found, bool):
        yield name, float(found)


def moved(before: Any, now: Any) -> list[str]:
    """A line for each number that is another by more than `MOVED`."""
    old = dict(numbers(before))
    return [
        f"  {name}: {old[name]:,.3g} before, {value:,.3g} now ({value / old[name] - 1:+.0%})"
        for name, value in numbers(now)
        if old.get(name) and abs(value / old[name] - 1) > MOVED
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", choices=[*SCRIPTS, []], help="which (all)")
    parser.add_argument("--data", help="folder with movies/ and clothing/")
    args = parser.parse_args()
    NEW.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in args.names or SCRIPTS:
        flags = SCRIPTS[name]
        if not args.data and any("{data}" in flag for flag in flags):
            print(f"\n{name}: left out, it wants --data")
            continue
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json"]
        command += [flag.format(data=args.data) for flag in flags]
        print(f"\n{name}: {' '.join(command[1:])}", flush=True)
        done = subprocess.run(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
        *shown, last = done.stdout.splitlines() or [""]
        print("\n".join(shown))
        if done.returncode:
            failed.append(name)
            continue
        found = json.loads(last)
        (NEW / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")
        known = committed(name)
        if not known.exists():
            print("  no committed result to compare with")
            continue
        lines = moved(json.loads(known.read_text()), found)
        print("\n".join(lines) or f"  nothing moved by more than {MOVED:.0%}", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
