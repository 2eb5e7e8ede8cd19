"""Print which stage of `make demo` starts and the time left for all of them; at the end, print how long each took.

The Makefile calls it at the start of each stage, and with `end` after the last one.
"""

import argparse
import json
import time
from pathlib import Path

SECONDS = {
    "data": 72,
    "teacher": 156,
    "students": 264,
    "export": 42,
    "engine": 3,
    "detect": 6,
    "bench": 36,
    "parity": 12,
    "report": 3,
}
"""Stage -> seconds on two cores with AVX-512 and bfloat16 (docs/results.md)."""
END = "end"


def main() -> None:
    """Record the time at which a stage starts, and print a line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("record", type=Path, help="the JSON file of the times; delete it to start again")
    parser.add_argument("stage", choices=[*SECONDS, END])
    arguments = parser.parse_args()
    record: Path = arguments.record
    starts: dict[str, float] = json.loads(record.read_text("utf-8")) if record.exists() else {}
    if arguments.stage == END and not starts:
        return  # everything was there
    starts[arguments.stage] = time.time()
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(starts), encoding="utf-8")
    print(durations(starts) if arguments.stage == END else announcement(arguments.stage, starts), flush=True)  # noqa: T201


def announcement(stage: str, starts: dict[str, float]) -> str:
    """Return the line of a stage that starts; the time left is that of the plan, at the pace of the stages before."""
    stages = list(SECONDS)
    number = stages.index(stage)
    elapsed = starts[stage] - min(starts.values())
    planned = sum(SECONDS[one] for one in starts if one != stage)
    left = sum(SECONDS[one] for one in stages[number:]) * (elapsed / planned if planned else 1.0)
    return f"\nStage {number + 1} of {len(stages)}: {stage} (about {max(left / 60, 0.1):.1f} min left)"


def durations(starts: dict[str, float]) -> str:
    """Return the minutes of each stage that ran, and of all."""
    names, times = list(starts), list(starts.values())
    minutes = {name: (end - start) / 60 for name, start, end in zip(names, times, times[1:], strict=False)}
    listing = ", ".join(f"{name} {spent:.1f}" for name, spent in minutes.items())
    return f"The demonstration took {(times[-1] - times[0]) / 60:.1f} min: {listing}"


if __name__ == "__main__":
    main()
