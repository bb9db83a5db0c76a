"""Tiled encoding and decoding of a 2048x1536 image: memory, time, and the errors at the seams.

    python benchmarks/tiling.py TOKENIZER IMAGE              # writes results/tiling.json

Each measurement runs in its own process, so that its peak memory is its own: the largest resident size during the work
minus the size before it. Errors are against the same image or codes without tiles. The step over a seam is the mean
absolute difference of neighbouring pixels across the middle of each overlap. A visible seam makes it larger than the
same step in the decode without tiles, which the table shows as well.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from budget import machine, versions

from maskgen.data.pixels import load_image
from maskgen.evaluation.reconstruction.measures import psnr
from maskgen.images import save, to_pil
from maskgen.pipelines.store import load_tokenizer
from maskgen.tokenizer.tiling import _spans, tiled_decode, tiled_encode

HERE = Path(__file__).parent
SIZE = (1536, 2048)  # h, w
TILES = [(64, 0), (64, 16), (128, 32)]  # tokens: tile, overlap


def resident(field: str) -> int:
    """``VmRSS``, the resident size of this process, or ``VmHWM``, its largest since :func:`forget`, in MiB (Linux)."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) // 1024


def forget() -> None:
    """Reset the largest resident size."""
    Path("/proc/self/clear_refs").write_text("5")


def work(options: argparse.Namespace) -> dict[str, Any]:
    """One encode and decode, whole or in tiles; codes and pixels go to ``work/NAME.pt``."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(options.tokenizer)
    pixels = load_image(options.image, SIZE)[None]
    factor = SIZE[0] // tokenizer.grid(SIZE)[0]
    tile, overlap = options.tile
    with torch.no_grad():
        forget()
        before, start = resident("VmRSS"), time.perf_counter()
        codes = tiled_encode(tokenizer, pixels, tile * factor, overlap * factor) if tile else tokenizer.encode(pixels)
        encoded, middle = resident("VmHWM"), time.perf_counter()
        shared = codes if options.codes is None else torch.load(options.codes, weights_only=True)["codes"]
        made = tiled_decode(tokenizer, shared, tile, overlap) if tile else tokenizer.decode(codes)
    found = {
        "encode_mib": encoded - before,
        "peak_mib": resident("VmHWM") - before,
        "encode_s": round(middle - start, 2),
        "decode_s": round(time.perf_counter() - middle, 2),
    }
    torch.save({"codes": codes, "made": made, "pixels": pixels}, options.work)
    return found


def seam_step(made: torch.Tensor, spans: list[range], factor: int, axis: int) -> torch.Tensor:
    """Mean absolute difference of the pixels on both sides of the middle of each overlap."""
    cuts = [(a.stop + b.start) * factor // 2 for a, b in pairwise(spans)]
    line = made.movedim(axis, -1)
    return torch.stack([(line[..., cut] - line[..., cut - 1]).abs().mean() for cut in cuts]).mean()


def compare(tile: int, overlap: int, scratch: Path) -> dict[str, Any]:
    """What tiles changed: codes, pixels decoded from the same codes, and steps over the seams."""
    whole, tiled = (torch.load(scratch / f"{name}.pt", weights_only=True) for name in ("whole", f"{tile}-{overlap}"))
    factor = SIZE[0] // whole["codes"].shape[1]
    steps = []
    for axis, length in ((2, SIZE[0] // factor), (3, SIZE[1] // factor)):
        spans = _spans(length, tile, overlap)
        steps.append([float(seam_step(x["made"], spans, factor, axis)) for x in (tiled, whole)])
    return {
        "codes_changed": float((whole["codes"] != tiled["codes"]).double().mean()),
        "psnr_to_whole": float(psnr(tiled["made"], whole["made"])[0]),
        "largest_error": float((tiled["made"] - whole["made"]).abs().max()),
        "psnr": float(psnr(tiled["made"], whole["pixels"])[0]),
        "psnr_whole": float(psnr(whole["made"], whole["pixels"])[0]),
        "seam_step": max(a for a, _ in steps),
        "seam_step_whole": max(b for _, b in steps),
    }


def measure(options: argparse.Namespace) -> None:
    scratch = options.scratch
    scratch.mkdir(parents=True, exist_ok=True)
    entries = []
    for tile, overlap in [(0, 0), *TILES]:
        name = f"{tile}-{overlap}" if tile else "whole"
        command = [sys.executable, __file__, options.tokenizer, options.image, "--tile", str(tile), str(overlap)]
        command += ["--work", str(scratch / f"{name}.pt"), *(["--codes", str(scratch / "whole.pt")] if tile else [])]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        entries.append({"tile": tile, "overlap": overlap, **found, **(compare(tile, overlap, scratch) if tile else {})})
        print(entries[-1], file=sys.stderr, flush=True)
    result = {
        "command": shlex.join(["python", "benchmarks/tiling.py", *sys.argv[1:]]),
        "size": SIZE,
        "image": Path(options.image).name,
        "machine": machine(),
        "versions": versions("torch"),
        "entries": entries,
    }
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    made = [torch.load(scratch / f"{name}.pt", weights_only=True)["made"] for name in ("whole", "64-16")]
    for name, x in zip(("whole", "tiled"), made):
        save(to_pil(x)[0], scratch / f"{name}.png")


def table(result: dict[str, Any]) -> str:
    head = ["tile (overlap), tokens", "peak memory, MiB", "encode, s", "decode, s", "codes changed"]
    head += ["PSNR to the whole, dB", "largest error", "step over the seams (without tiles)"]
    lines = [head, ["---", *["---:"] * (len(head) - 1)]]
    for e in result["entries"]:
        row = [f"{e['tile']} ({e['overlap']})" if e["tile"] else "whole", f"{e['peak_mib']:,}"]
        row += [f"{e['encode_s']:.1f}", f"{e['decode_s']:.1f}"]
        row += (
            [f"{e['codes_changed']:.1%}", f"{e['psnr_to_whole']:.1f}", f"{e['largest_error']:.2f}"]
            + [f"{e['seam_step']:.4f} ({e['seam_step_whole']:.4f})"]
            if e["tile"]
            else ["-"] * 4
        )
        lines.append(row)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer", nargs="?")
    parser.add_argument("image", nargs="?")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "tiling.json")
    parser.add_argument("--scratch", type=Path, default=Path("/tmp/tiling"))
    parser.add_argument("--tile", type=int, nargs=2, help="one measurement, in tokens (for the script itself)")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--codes")
    arguments = parser.parse_args()
    if not arguments.image:
        parser.error("give a tokenizer and an image")
    elif arguments.tile is not None:
        print(json.dumps(work(arguments)))
    else:
        measure(arguments)
        print(table(json.loads(arguments.out.read_text())))
