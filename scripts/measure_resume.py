"""Kill an evaluation of 2,000 samples of the bundled pipeline twice and resume it: docs/results/evaluation_resume.json.

python scripts/measure_resume.py [WORK]
The features are those of a small classifier trained on the bundled images, so nothing is downloaded.
"""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from maskgen.data import Emoji
from maskgen.evaluation.classifier import save_classifier, train_classifier

WORK = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/resume")
OUT = Path(__file__).parents[1] / "docs/results/evaluation_resume.json"
COUNT, KILLS = 2000, (3, 6)  # the process is killed when this many of 8 files are there


def command(name: str) -> list[str]:
    arguments = f"evaluate bundled emoji --metrics fid,is,kid -n {COUNT} --steps 4 --classifier {WORK}/classifier"
    places = ["--work", str(WORK / name), "--out", str(WORK / f"{name}.json")]
    return [sys.executable, "-m", "maskgen", *arguments.split(), *places]


def finished(name: str) -> int:
    """Return the number of files with finished samples."""
    for settings in (WORK / name).glob("*/settings.json"):
        if json.loads(settings.read_text())["count"] == COUNT:
            return len(list(settings.parent.glob("*.npz")))
    return 0


if __name__ == "__main__":
    classifier, facts = train_classifier(Emoji(), steps=200, progress=False)
    save_classifier(classifier, WORK / "classifier", **facts)
    start = time.perf_counter()
    subprocess.run(command("whole"), check=True)
    seconds = time.perf_counter() - start
    killed = []
    for files in KILLS:
        process = subprocess.Popen(command("killed"))
        while process.poll() is None and finished("killed") < files:
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        killed.append(finished("killed"))
    subprocess.run(command("killed"), check=True)
    whole, resumed = (json.loads((WORK / f"{name}.json").read_text()) for name in ("whole", "killed"))
    report = {
        "command": "python scripts/measure_resume.py",
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "seconds_uninterrupted": round(seconds, 1),
        "files_of_8_when_killed": killed,
        "reports_are_equal": whole == resumed,
        "whole": whole,
        "resumed": {"metrics": resumed["metrics"], "pixels_sha256": resumed["samples"]["pixels_sha256"]},
    }
    OUT.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))
