"""The stages that `make demo` prints."""

import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "configs" / "demo_stages.py"


def announce(record: Path, stage: str) -> str:
    command = [sys.executable, SCRIPT, record, stage]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def minutes_left(line: str) -> float:
    found = re.search(r"about ([\d.]+) min left", line)
    assert found, line
    return float(found.group(1))


def test_the_makefile_announces_every_stage_in_order(tmp_path):
    # a dry run follows the dependencies of the files, so the stages come as they would run
    command = ["make", "--dry-run", "demo", f"RUN={tmp_path}/demo"]
    plan = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    announced = re.findall(r"demo_stages\.py \S+ (\w+)", plan)
    lines = [announce(tmp_path / "record.json", stage) for stage in announced]
    count = len(announced) - 1
    assert [line.split(":")[0] for line in lines[:-1]] == [f"Stage {n} of {count}" for n in range(1, count + 1)]
    assert announced[-1] == "end"


def test_the_time_left_follows_the_pace_of_the_stages_before(tmp_path):
    planned = minutes_left(announce(tmp_path / "other.json", "students"))
    announce(tmp_path / "record.json", "teacher")
    starts = json.loads((tmp_path / "record.json").read_text())
    spent = 2 * runpy.run_path(str(SCRIPT))["SECONDS"]["teacher"]  # twice the plan
    (tmp_path / "record.json").write_text(json.dumps({"teacher": starts["teacher"] - spent}))
    assert abs(minutes_left(announce(tmp_path / "record.json", "students")) - 2 * planned) < 0.2


def test_a_demonstration_that_was_complete_prints_no_times(tmp_path):
    assert announce(tmp_path / "record.json", "end") == ""
    announce(tmp_path / "record.json", "report")
    assert re.fullmatch(r"The demonstration took 0\.\d min: report 0\.\d", announce(tmp_path / "record.json", "end"))
