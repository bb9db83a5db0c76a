"""scripts/gpu_check.py: every part is tried, whatever happens to the others, and its dry run works on the CPU."""

import json
import subprocess
import sys
from pathlib import Path

import gpu_parts
import pytest
import torch
from gpu_check import MARK, PARTS, Report, supervise

ROOT = Path(__file__).parents[1]
CHILD = f"""
import json, os, sys, time
def say(**said):
    print({MARK!r} + json.dumps(said), flush=True)
if "never" in sys.argv[3:4]:
    sys.exit("cannot be imported")
for part in sys.argv[3:]:  # behind --seconds N
    say(part=part, state="running")
    say(part=part, name="first", value=1)
    if part == "crash":
        os._exit(7)
    if part == "hang":
        time.sleep(100)
    if part == "raise":
        say(part=part, state="failed", error="ValueError: no")
        continue
    say(part=part, name="second", value=os.getpid())
    say(part=part, state="done")
"""


@pytest.fixture
def check(tmp_path):
    def run(parts, seconds=30.0, limit=20.0):
        (tmp_path / "child.py").write_text(CHILD)
        report = Report(tmp_path / "report.json")
        limits = {part: 0.5 if part == "hang" else limit for part in parts}
        command = [sys.executable, str(tmp_path / "child.py")]
        done = supervise(command, limits, report, tmp_path / "log", seconds)
        return done, json.loads((tmp_path / "report.json").read_text())["parts"]

    return run


def test_parts_that_fail_crash_or_hang_leave_the_others_and_their_own_results(check):
    done, parts = check(["a", "raise", "b", "crash", "c", "hang", "d"])
    assert not done
    assert {name for name, part in parts.items() if part["state"] == "done"} == {"a", "b", "c", "d"}
    assert all(part["results"]["first"] == 1 for part in parts.values())
    assert parts["raise"]["error"] == "ValueError: no"
    assert "code 7" in parts["crash"]["error"]
    assert "stopped after" in parts["hang"]["error"]
    processes = [parts[name]["results"]["second"] for name in "abcd"]
    assert processes[0] == processes[1] != processes[2] != processes[3]


def test_a_process_that_never_begins_does_not_repeat_for_ever(check):
    done, parts = check(["never", "a"])
    assert not done
    assert [part["state"] for part in parts.values()] == ["failed", "done"]


def test_what_the_time_does_not_allow_is_skipped_and_named(check):
    done, parts = check(["a", "b"], seconds=0.5)
    assert not done
    assert [part["state"] for part in parts.values()] == ["skipped"] * 2
    assert "no time was left" in parts["b"]["error"]


@pytest.mark.parametrize("waiting", [False, True])
def test_the_profile_finds_steps_that_wait(waiting):
    place = gpu_parts.Place(dry=True, end=float("inf"))
    model = gpu_parts.transformer(place, 16, 4)

    def decode(wrap, callback):
        def slow(predict):
            def call(step):
                assert step.tokens.float().mean().item() >= 0
                return predict(step)

            return wrap(call if waiting else predict)

        with torch.no_grad():
            gpu_parts.decoding(place, model, 2, wrap=slow, callback=callback)

    found, steps = gpu_parts.waits_of(place, decode)
    assert steps == place.steps
    assert found == ({"aten::item": 2, "aten::_local_scalar_dense": 2} if waiting else {})


@pytest.mark.bench
def test_the_dry_run_does_every_part(tmp_path):
    command = [sys.executable, "scripts/gpu_check.py", "--dry-run", "--out", str(tmp_path), "--seconds", "900"]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr + (tmp_path / "gpu_check.log").read_text()[-5000:]
    parts = json.loads((tmp_path / "gpu_check.json").read_text())["parts"]
    assert list(parts) == list(PARTS) == list(gpu_parts.RUN)
    for name, part in parts.items():
        assert part["state"] == "done"
        assert part["results"], name
        assert "error" not in json.dumps(part["results"])
    assert parts["host_waits"]["results"]["decode"] == {"steps": 2, "waits": {}}
    assert all(found["seeds_equal"] == found["seeds"] for found in parts["tasks"]["results"].values())
    assert "passed" in parts["tests"]["results"].values()
