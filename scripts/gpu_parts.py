"""The parts of gpu_check.py: each yields its results by name. gpu_check.py starts this file and reads its output."""

from __future__ import annotations

import argparse
import contextlib
import importlib.metadata
import itertools
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
import torch._dynamo
import yaml
from gpu_check import MARK, PARTS
from torch import Tensor

from maskgen.decoding.scheduler import MaskScheduler
from maskgen.mim.core import Learner, MaskedModeling
from maskgen.pipelines.base import given_of
from maskgen.pipelines.predictor import Predictor
from maskgen.tokenizer.model import Tokenizer
from maskgen.transformer.model import MaskTransformer

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests")]
Results = Iterator[tuple[str, Any]]
PACKAGES = ("torch", "torchvision", "triton", "xformers", "diffusers", "accelerate", "transformers", "timm", "numpy")
CLASSES = 1000
# What waits for the device, by the names that the profiler gives it.
WAITS = (
    *("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy"),
    *("aten::item", "aten::_local_scalar_dense", "aten::is_nonzero", "aten::nonzero"),
)


@dataclass
class Place:
    """Where the parts run and at what size.

    dry: tiny sizes on the CPU; end: the monotonic time at which no further measurement begins.
    """

    dry: bool
    end: float

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.dry else "cuda")

    @property
    def left(self) -> float:
        return self.end - time.monotonic()

    @property
    def batches(self) -> tuple[int, ...]:
        return (1, 2) if self.dry else (1, 8, 64)

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the square token grids."""
        return (4, 6) if self.dry else (16, 32)

    @property
    def widths(self) -> tuple[int, ...]:
        return (16, 32) if self.dry else (768, 1024)

    @property
    def steps(self) -> int:
        return 2 if self.dry else 12

    def synchronize(self) -> None:
        if not self.dry:
            torch.cuda.synchronize()


# ------------------------------------------------------------------------------------------------------------- models


def transformer(place: Place, width: int, side: int, backend: str = "auto") -> MaskTransformer:
    """Make a network with random weights. The head is not zero, so the distributions of the codes differ."""
    heads, depth = (2, 2) if place.dry else (width // 64, 24)
    with place.device:
        model = MaskTransformer(
            (side, side),
            width=width,
            depth=depth,
            tokens={"codebook_size": codes(place)},
            block={"heads": heads, "backend": backend},
            conditioning={"inputs": {"label": {"type": "class", "count": CLASSES}}, "pooled": "adaln_shared"},
        )
        torch.nn.init.normal_(model.head.weight, std=0.02)
    return model.to(place.device)


def tokenizer(place: Place, side: int) -> Tokenizer:
    """Make MaskGIT's convolutional network for 256 x 256 pixels, with 16 or 8 pixels per token."""
    multipliers = [1, 2] if place.dry else [1, 1, 2, 2, 4] if side == 16 else [1, 2, 2, 4]
    coder = {"width": 8 if place.dry else 128, "multipliers": multipliers, "blocks": 1 if place.dry else 2}
    with place.device:
        return Tokenizer(coder, {"codebook_size": codes(place), "dim": 8 if place.dry else 256}, coder).eval()


def codes(place: Place) -> int:
    return 32 if place.dry else 1024


def compiled(place: Place, model: MaskTransformer) -> None:
    """Compile each block in place. The blocks share one graph, so this takes seconds and not minutes."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch._dynamo.config.recompile_limit = 64  # several batches, and the last block's numbers of positions
    for block in model.blocks:
        block.compile(backend="eager" if place.dry else "inductor")


def backends(place: Place) -> list[str]:
    with contextlib.suppress(ImportError):
        import xformers.ops  # noqa: F401

        return ["sdpa"] if place.dry else ["xformers", "sdpa"]
    return ["sdpa"]


# ---------------------------------------------------------------------------------------------------------- measuring


def timed(place: Place, work: Callable[[], Any], count: int) -> dict[str, Any]:
    """Measure seconds of `work`, images per second for `count` images, and peak memory, after a warm-up run."""
    if not place.dry:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    try:
        took = [_once(place, work)]
        first, most, enough = took[0], 3 if place.dry else 12, 0.05 if place.dry else 0.7
        if first < 8:
            took = []
            while len(took) < most and (len(took) < 3 or sum(took) < enough) and place.left > 2:
                took.append(_once(place, work))
        seconds = statistics.median(took or [first])
    except torch.OutOfMemoryError:
        return {"error": "out of memory"}
    found = {
        "seconds": round(seconds, 5),
        "from_to": [round(min(took or [first]), 5), round(max(took or [first]), 5)],
        "runs": len(took),
        "first_seconds": round(first, 3),
        "images_per_second": round(count / seconds, 2),
    }
    return found if place.dry else found | {"peak_gib": round(torch.cuda.max_memory_allocated() / 2**30, 3)}


def _once(place: Place, work: Callable[[], Any]) -> float:
    place.synchronize()
    began = time.perf_counter()
    work()
    place.synchronize()
    return time.perf_counter() - began


def decoding(place: Place, model: MaskTransformer, batch: int, **options: Any) -> Tensor:
    """Sample codes (batch, n) with the default schedule, one class per row, without guidance."""
    side = model.grid[0]
    scheduler = MaskScheduler(num_inference_steps=place.steps)
    predict = Predictor(model.eval(), (side, side), given_of([i % CLASSES for i in range(batch)]), batch)
    blank = torch.zeros(batch, side * side, dtype=torch.long, device=place.device)
    generator = torch.Generator(place.device).manual_seed(0)
    wrapped = options.pop("wrap", lambda predict: predict)(predict)
    return scheduler.decode(wrapped, blank, torch.ones_like(blank, dtype=torch.bool), generator=generator, **options)


def training(place: Place, model: MaskTransformer, batch: int, dtype: torch.dtype) -> Callable[[], None]:
    """Make a training step of masked modeling on codes: forward, backward and AdamW."""
    learner, optimizer = Learner(model, MaskedModeling()), torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.randint(codes(place), (batch, *model.grid), device=place.device)
    labels = torch.arange(batch, device=place.device) % CLASSES

    def step() -> None:
        with torch.autocast(place.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            loss = learner(tokens, {"label": labels})["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    model.train()
    return step


def sizes(place: Place) -> list[tuple[int, int]]:
    """Return pairs (side, width), the most valuable first."""
    return list(itertools.product(place.sides, place.widths))


def name_of(width: int, side: int, dtype: torch.dtype, *rest: Any) -> str:
    short = {torch.bfloat16: "bf16", torch.float32: "fp32"}[dtype]
    return ", ".join([f"width {width}", f"{side}x{side}", short, *map(str, rest)])


# -------------------------------------------------------------------------------------------------------------- parts


def environment(place: Place) -> Results:
    yield "python", platform.python_version()
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    yield "packages", found
    yield "attention", backends(place)
    if place.dry:
        return
    properties = torch.cuda.get_device_properties(0)
    yield "device", {"name": properties.name, "gib": round(properties.total_memory / 2**30, 1)}
    yield "cuda", {"runtime": torch.version.cuda, "capability": torch.cuda.get_device_capability()}
    n = 8192
    a, b = (torch.randn(n, n, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    product = timed(place, lambda: a @ b, 1)["seconds"]
    yield "bf16_tflops", round(2 * n**3 / product / 1e12)
    there = torch.empty(2**30, device="cuda", dtype=torch.uint8)
    from_here = torch.randint_like(there, 255)
    yield (
        "copy_gb_per_second",
        round(2 * there.numel() / timed(place, lambda: there.copy_(from_here), 1)["seconds"] / 1e9),
    )
    yield "tf32", {"matmul": torch.backends.cuda.matmul.allow_tf32, "cudnn": torch.backends.cudnn.allow_tf32}


def tests(place: Place) -> Results:
    """Run tests/test_gpu.py in its own process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-p", "no:cacheprovider", "--junitxml", str(file)]
        where = {**os.environ, "MASKGEN_TEST_DEVICE": place.device.type}
        code = subprocess.run([*command, str(ROOT / "tests/test_gpu.py")], cwd=ROOT, env=where).returncode
        if file.is_file():
            for case in ElementTree.parse(file).iter("testcase"):
                outcome = next((child for child in case if child.tag in ("failure", "error", "skipped")), None)
                result = "passed" if outcome is None else f"{outcome.tag}: {outcome.get('message', '')[:300]}"
                yield case.get("name", "?"), result
    if code:
        raise RuntimeError(f"pytest ended with code {code}")


def tasks(place: Place) -> Results:
    """Run every task on the device and on the CPU with the same random numbers, in fp32 without TF32.

    The generator is the CPU's on both sides, so :class:`maskgen.decoding.noise.Noise` hands both the same numbers.
    Rounding may still flip a code at a near tie, so there are several seeds, and most of them must be equal.
    """
    from every_task import contents, every_task

    unlike: list[str] = []
    made: dict[Any, tuple[Any, Any]] = {}
    flags = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    for name, (make, task) in every_task().items():
        try:
            if make not in made:
                made[make] = make(), make().to(place.device)
            here, there = made[make]
            differ, total = [], 0
            for seed in range(1 if place.dry else 3):
                options = [{"generator": torch.Generator().manual_seed(seed), "output_type": "codes"} for _ in range(2)]
                a, b = (contents(task(p, **o)).cpu() for p, o in zip((here, there), options))
                differ.append(int((a != b).sum()))
                total += a.numel()
        except Exception as error:
            unlike.append(name)
            yield name, {"error": f"{type(error).__name__}: {error}"[:500]}
            _stop_if_broken(error)
            continue
        equal = differ.count(0)
        if equal * 2 <= len(differ):
            unlike.append(name)
        yield name, {"seeds": len(differ), "seeds_equal": equal, "codes": total, "codes_that_differ": sum(differ)}
    torch.backends.cudnn.allow_tf32 = flags
    if unlike:
        raise RuntimeError(f"not equal to the CPU's: {', '.join(unlike)}")


def host_waits(place: Place) -> Results:
    """Count host waits in the decode steps, after the first call of the network, and in training steps."""
    width, side = place.widths[0], place.sides[0]
    model, batch = transformer(place, width, side), place.batches[1]
    if not place.dry:
        model.to(torch.bfloat16)
    with torch.no_grad():
        decoding(place, model, batch)  # loads the kernels
        found, steps = waits_of(place, lambda **options: decoding(place, model, batch, **options))
    yield "decode", {"steps": steps, "waits": found}
    if not place.dry:
        with warnings.catch_warnings(record=True) as caught, torch.no_grad():
            warnings.simplefilter("always")
            decoding(place, model, batch, wrap=partial(_alarmed, place))
            torch.cuda.set_sync_debug_mode("default")
        yield "decode, by torch.cuda.set_sync_debug_mode", sum("synchroniz" in str(w.message) for w in caught)
    model = transformer(place, width, side)
    step = training(place, model, batch, torch.bfloat16)
    step()
    with torch.profiler.profile(activities=_activities(place)) as profile:
        for _ in range(3):
            step()
    yield "training", {"steps": 3, "waits": dict(Counter(e.name for e in profile.events() if e.name in WAITS))}
    if found:
        raise RuntimeError(f"decode steps wait for the device: {found}")


def waits_of(place: Place, decode: Callable[..., Any]) -> tuple[dict[str, int], int]:
    """Count the events of :data:`WAITS` within the steps, by name, and the steps.

    A step reaches from the call of the network to the loop's callback, or to the next call.
    """
    spans: list[Any] = []

    def begin(predict: Callable[..., Any]) -> Callable[..., Any]:
        def call(step: Any) -> Tensor:
            spans.append(torch.profiler.record_function("gpu_check: step"))
            spans[-1].__enter__()
            return predict(step)

        return call

    def finish(*_: Any) -> None:
        spans[-1].__exit__(None, None, None)

    with torch.profiler.profile(activities=_activities(place)) as profile:
        decode(wrap=begin, callback=finish)
    events = profile.events()
    steps = [
        e.time_range for e in events if e.name == "gpu_check: step" and e.device_type == torch.autograd.DeviceType.CPU
    ]
    inside = [e for e in events if e.name in WAITS and any(s.start <= e.time_range.start <= s.end for s in steps)]
    return dict(Counter(e.name for e in inside)), len(steps)


def _alarmed(place: Place, predict: Callable[..., Any]) -> Callable[..., Any]:
    """Warn about every synchronisation after the first call."""

    def call(step: Any) -> Tensor:
        torch.cuda.set_sync_debug_mode("warn")
        return predict(step)

    return call


def _activities(place: Place) -> list[Any]:
    kinds = torch.profiler.ProfilerActivity
    return [kinds.CPU] if place.dry else [kinds.CPU, kinds.CUDA]


def tokenizer_step(place: Place) -> Results:
    """Time a step of configs/tokenizer/vqgan.yaml on 256 x 256 pixels with discriminator and a random LPIPS."""
    batches = (1,) if place.dry else (4, 8, 16)
    for batch, dtype in [(b, torch.bfloat16) for b in batches] + [(batches[0], torch.float32)]:
        name = f"{'bf16' if dtype is torch.bfloat16 else 'fp32'}, batch {batch}"
        yield name, timed(place, vqgan(place, batch, dtype), batch)
        if place.left < 5:
            return


def vqgan(place: Place, batch: int, dtype: torch.dtype) -> Callable[[], None]:
    """Run forward, backward and AdamW of the autoencoder and of the discriminator."""
    from torchvision.models.vgg import cfgs, make_layers

    from maskgen.tokenizer.perceptual import Lpips
    from maskgen.training.stages.tokenizer import TokenizerStage

    side = 32 if place.dry else 256
    pixels = torch.rand(batch, 3, side, side, device=place.device) * 2 - 1
    settings = yaml.safe_load((ROOT / "configs/tokenizer/vqgan.yaml").read_text())["stage"]
    del settings["type"]
    settings["adversarial"] |= {"start": 0, "warmup": 0}
    perceptual: Any = None
    if place.dry:
        coder = {"width": 8, "multipliers": [1, 2], "blocks": 1}
        settings["tokenizer"] = {"encoder": coder, "quantizer": {"codebook_size": 32, "dim": 4}, "decoder": coder}
        settings |= {"perceptual": 0.0, "adversarial": {"width": 4, "layers": 1}}
    else:
        with tempfile.TemporaryDirectory() as folder:
            layers = make_layers(cfgs["D"], batch_norm=False).state_dict()
            torch.save({f"features.{key}": value for key, value in layers.items()}, Path(folder) / "vgg16.pth")
            perceptual = Lpips(str(Path(folder) / "vgg16.pth"))
        settings["perceptual_network"] = perceptual
    stage = TokenizerStage([{"pixels": pixels[0].cpu(), "label": 0}], **settings)  # type: ignore[arg-type]
    for module in stage.modules.values():
        module.to(place.device).train()
    optimizers = {n: torch.optim.AdamW(m.parameters(), lr=1e-4, fused=True) for n, m in stage.modules.items()}

    def step() -> None:
        with torch.autocast(place.device.type, torch.bfloat16, enabled=dtype is torch.bfloat16):
            for name, terms in stage.losses({"pixels": pixels}, 1):
                terms["loss"].backward()
                optimizers[name].step()
                optimizers[name].zero_grad()

    return step


def speed(place: Place, dtype: torch.dtype = torch.bfloat16, compile_blocks: bool = False) -> Results:
    """Time decoding and training for every size, attention backend and batch. A dry run compiles one size."""
    some = sizes(place)[: 1 if place.dry and compile_blocks else None]
    for (side, width), backend in itertools.product(some, backends(place)):
        for kind in ("decode", "train"):
            torch.manual_seed(0)
            model = transformer(place, width, side, backend)
            if compile_blocks:
                compiled(place, model)
            for batch in place.batches:
                name = name_of(width, side, dtype, backend, f"{kind}, batch {batch}")
                if place.left < 3:
                    yield name, {"skipped": "no time was left"}
                    continue
                if kind == "decode":
                    with torch.no_grad():
                        yield name, timed(place, partial(decoding, place, model.to(dtype), batch), batch)
                else:
                    yield name, timed(place, training(place, model, batch, dtype), batch)
            if compile_blocks:
                counters = torch._dynamo.utils.counters
                seen = {"graphs": counters["stats"]["unique_graphs"], "breaks": sum(counters["graph_break"].values())}
                yield name_of(width, side, dtype, backend, kind, "graphs"), seen
            del model


def pixels(place: Place) -> Results:
    """Time decoding to codes and to 256 x 256 pixels with the convolutional decoder, and the decoder alone."""
    for dtype, (side, width) in itertools.product((torch.bfloat16, torch.float32), sizes(place)):
        model, decoder = transformer(place, width, side).to(dtype), tokenizer(place, side).to(dtype)

        def both(model: Any, decoder: Any, batch: int) -> Tensor:
            return decoder.decode(decoding(place, model, batch).unflatten(1, model.grid))

        for batch in place.batches:
            name = name_of(width, side, dtype)
            if place.left < 3:
                yield f"{name}, batch {batch}", {"skipped": "no time was left"}
                continue
            with torch.no_grad():
                yield f"{name}, batch {batch}", timed(place, partial(both, model, decoder, batch), batch)
                if width == place.widths[0]:
                    grid = torch.randint(codes(place), (batch, side, side), device=place.device)
                    yield f"{name}, decoder alone, batch {batch}", timed(place, partial(decoder.decode, grid), batch)


RUN: dict[str, Callable[[Place], Results]] = {
    "environment": environment,
    "tests": tests,
    "tasks": tasks,
    "host_waits": host_waits,
    "tokenizer_step": tokenizer_step,
    "speed": speed,
    "pixels": pixels,
    "compiled": partial(speed, compile_blocks=True),
    "speed_fp32": partial(speed, dtype=torch.float32),
    "compiled_fp32": partial(speed, dtype=torch.float32, compile_blocks=True),
}


# --------------------------------------------------------------------------------------------------------- the process


def say(**said: Any) -> None:
    print(MARK + json.dumps(said), flush=True)


def _stop_if_broken(error: Exception) -> None:
    """Exit if no CUDA call of this process works after `error`; gpu_check.py then starts another process."""
    if any(word in str(error) for word in ("CUDA error", "cudaError", "device-side assert")):
        traceback.print_exc()
        sys.exit(3)


def run(name: str, place: Place) -> None:
    """Run one part. An error ends this part and not the others."""
    say(part=name, state="running")
    try:
        for key, value in RUN[name](place):
            say(part=name, name=key, value=value)
    except Exception as error:
        traceback.print_exc()
        say(part=name, state="failed", error=f"{type(error).__name__}: {error}"[:2000])
        _stop_if_broken(error)
    else:
        say(part=name, state="done")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--dry-run", action="store_true")
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("parts", nargs="+", choices=list(RUN))
    options = parser.parse_args()
    end = time.monotonic() + options.seconds
    for name in options.parts:
        run(name, Place(options.dry_run, end if options.dry_run else min(end, time.monotonic() + PARTS[name]) - 2))


if __name__ == "__main__":
    main()
