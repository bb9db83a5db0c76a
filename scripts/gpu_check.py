"""Run everything that needs a GPU, with one command and within 8 minutes; docs/gpu.md describes what is measured.

    python scripts/gpu_check.py --out gpu-check                 # writes gpu_check.json and gpu_check.log there
    python scripts/gpu_check.py --dry-run --out /tmp/dry        # the same on the CPU at tiny sizes, within a minute

The parts run in a process of their own, in the order of their value. A part that fails, crashes or hangs is recorded
and the next one starts in a new process. The JSON is written after each result, so a kill loses nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
MARK = "GPU_CHECK "  # begins the lines by which a process reports
# Parts in the order of their value, with the most seconds that each may take.
PARTS = {
    "environment": 40,
    "tests": 150,
    "tasks": 60,
    "host_waits": 40,
    "tokenizer_step": 50,
    "speed": 130,
    "pixels": 50,
    "compiled": 120,
    "speed_fp32": 120,
    "compiled_fp32": 90,
}


class Report:
    """The JSON file. Each change replaces it as a whole."""

    def __init__(self, path: Path, **about: Any):
        self.path, self.began = path, time.monotonic()
        self.content: dict[str, Any] = {**about, "parts": {}}
        self.write()

    def write(self) -> None:
        self.content["seconds"] = round(time.monotonic() - self.began, 1)
        part = self.path.with_name(self.path.name + ".part")
        part.write_text(json.dumps(self.content, indent=1) + "\n")
        os.replace(part, self.path)

    def set(self, part: str, **values: Any) -> None:
        """Update the entry of a part."""
        self.content["parts"].setdefault(part, {"state": "not run", "results": {}}).update(values)
        self.write()

    def take(self, said: dict[str, Any]) -> None:
        """Enter a report of a process: the state of a part, or one result."""
        if "name" in said:
            self.content["parts"][said["part"]]["results"][said["name"]] = said["value"]
            self.write()
        else:
            self.set(said.pop("part"), **said)


def supervise(
    command: Sequence[str], parts: dict[str, float], report: Report, log: Path, seconds: float, environment: Any = None
) -> bool:
    """Run `command` with the names of the parts as its last arguments; return whether every part is done.

    The command prints :data:`MARK` and a JSON object when a part begins or ends and for each result. Where it dies, or
    a part takes longer than its limit, that part has failed and the command starts again with the rest.
    """
    end = time.monotonic() + seconds
    for name in parts:
        report.set(name)
    left = list(parts)
    with open(log, "a", encoding="utf-8") as file:
        while left and end - time.monotonic() > 1:
            left = _one_process(command, left, parts, report, file, end, environment)
    for name in left:
        report.set(name, state="skipped", error=f"no time was left of {seconds:g} seconds")
    return all(part["state"] == "done" for part in report.content["parts"].values())


def _one_process(
    command: Sequence[str], left: list[str], limits: dict[str, float], report: Report, log: Any, end: float, env: Any
) -> list[str]:
    """Run the parts `left` until all have ended or the process has; return those that have not begun."""
    process = subprocess.Popen(
        [*command, "--seconds", f"{end - time.monotonic():.0f}", *left],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=env,
        start_new_session=True,
    )
    assert process.stdout is not None
    stopped = []

    def stop() -> None:
        stopped.append(True)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)

    current, began, timer, left = None, time.monotonic(), threading.Timer(end - time.monotonic(), stop), list(left)
    timer.start()
    try:
        for line in process.stdout:
            log.write(line)
            log.flush()
            if not line.startswith(MARK):
                continue
            said = json.loads(line.removeprefix(MARK))
            report.take(dict(said))
            if said.get("state") == "running":
                current, began = said["part"], time.monotonic()
                left.remove(current)
                timer.cancel()
                timer = threading.Timer(min(limits[current], end - began), stop)
                timer.start()
            elif "state" in said:
                report.set(said["part"], seconds=round(time.monotonic() - began, 1))
                print(f"{said['part']}: {said['state']}, {time.monotonic() - began:.0f} s", flush=True)
                current = None
        code = process.wait()
    finally:
        timer.cancel()
        stop()
    if current is None and code and left:  # it died before the next part began
        current = left.pop(0)
    if current is not None:
        took = time.monotonic() - began
        why = f"stopped after {took:.0f} seconds" if len(stopped) > 1 else f"the process ended with code {code}"
        report.set(current, state="failed", error=f"{why}; see the log", seconds=round(took, 1))
        print(f"{current}: failed, {why}", flush=True)
    return left


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("gpu-check"), help="folder of the JSON and the log")
    parser.add_argument("--seconds", type=float, default=470, help="time that all parts may take together")
    parser.add_argument("--dry-run", action="store_true", help="run on the CPU at tiny sizes")
    parser.add_argument("parts", nargs="*", help=f"all where none is given: {' '.join(PARTS)}")
    options = parser.parse_args(given)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown parts {sorted(unknown)}; choose from {', '.join(PARTS)}")
    options.out.mkdir(parents=True, exist_ok=True)
    log = options.out / "gpu_check.log"
    log.write_text("")
    command = [sys.executable, "-u", str(HERE / "gpu_parts.py"), *(["--dry-run"] if options.dry_run else [])]
    started = time.strftime("%Y-%m-%d %H:%M:%S %z")
    report = Report(options.out / "gpu_check.json", started=started, dry_run=options.dry_run, budget=options.seconds)
    environment = {**os.environ, "TQDM_DISABLE": "1", "HF_HUB_OFFLINE": "1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
    if options.dry_run:
        environment["OMP_NUM_THREADS"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE.parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    slower = 4 if options.dry_run else 1  # other processes may hold the machine
    chosen = {name: slower * limit for name, limit in PARTS.items() if not options.parts or name in options.parts}
    done = supervise(command, chosen, report, log, options.seconds, environment)
    print(f"{report.path}: {'every part is done' if done else 'not every part is done'}, {report.content['seconds']} s")
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
