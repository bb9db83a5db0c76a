"""The memory of a decode of 4096 tokens with a vocabulary of 2^18 codes, above the memory of the weights.

    python benchmarks/memory.py                    # writes results/memory.json

All logits at once would take 64 GiB. The decode runs in its own process, and its memory is the largest resident size
during the decode minus the resident size before it, when the weights exist.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from budget import machine, versions
from tiling import forget, resident

from maskgen.decoding.loop import decode
from maskgen.pipelines.predictor import Predictor
from maskgen.transformer.model import MaskTransformer

OUT = Path(__file__).parent / "results" / "memory.json"


def work(side: int, codes: int, batch: int, steps: int) -> dict[str, Any]:
    """One unconditional decode with the default options, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network = MaskTransformer(
        (side, side), width=64, depth=2, block={"heads": 2}, tokens={"codebook_size": codes}
    ).eval()
    torch.nn.init.normal_(network.head.weight, std=0.02)
    weights = sum(p.numel() * p.element_size() for p in network.parameters())
    canvas = torch.zeros(batch, side**2, dtype=torch.long)
    forget()
    before, start = resident("VmRSS"), time.perf_counter()
    made = decode(Predictor(network, (side, side), rows=batch), canvas, canvas == 0, steps=steps)
    seconds = time.perf_counter() - start
    return {
        "grid": [side, side],
        "codebook_size": codes,
        "batch": batch,
        "steps": steps,
        "weights_mib": round(weights / 2**20),
        "logits_mib": batch * side**2 * codes * 4 // 2**20,
        "peak_mib": resident("VmHWM") - before,
        "seconds": round(seconds, 1),
        "codes_used": len(made.unique()),
    }


def measured(side: int, codes: int, batch: int, steps: int) -> dict[str, Any]:
    """The same in a process of its own."""
    shape = [str(n) for n in (side, codes, batch, steps)]
    command = [sys.executable, __file__, "--work", *shape]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--side", type=int, default=64, help="of the grid")
    parser.add_argument("--codes", type=int, default=2**18)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--work", type=int, nargs=4, help="one measurement (for the script itself)")
    options = parser.parse_args()
    if options.work:
        print(json.dumps(work(*options.work)))
        return
    torch.set_num_threads(1)
    result = {
        "command": shlex.join(["python", "benchmarks/memory.py", *sys.argv[1:]]),
        "machine": machine(),
        "versions": versions("torch"),
        **measured(options.side, options.codes, options.batch, options.steps),
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
