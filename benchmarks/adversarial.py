"""Speed and safety of the adversarial step of tokenizer training, compared with taming-transformers' formulation.

    python benchmarks/adversarial.py                # speed -> results/adversarial.json
    python benchmarks/adversarial.py --guards       # does it ruin a run? -> results/adversarial-guards.json

Speed: one process runs both sides in turn, on modules with the same weights, and a ratio compares times of the same
round. VGG-16 in LPIPS has random weights, which take the same time and need no download.

Guards: a tiny tokenizer trains on the bundled emoji for some hundred steps with several seeds. The benchmark compares
the PSNR of held-out images without a discriminator, with one whose constant weight is far too large, with this weight
and each guard alone, and with all guards.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import os
import shlex
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from budget import machine, versions
from timing import as_text, in_turn, ratio
from torch import Tensor, nn
from torchvision.models.vgg import cfgs, make_layers

from maskgen.data.emoji import Emoji
from maskgen.tokenizer.losses import discriminator_loss, generator_loss
from maskgen.tokenizer.perceptual import Lpips
from maskgen.training.batches import mix
from maskgen.training.loop import Training, train
from maskgen.training.metrics import read_metrics
from maskgen.training.run import split
from maskgen.training.stages.tokenizer import TokenizerStage

HERE = Path(__file__).parent
RESULTS = HERE / "results"
FILES = {"speed": RESULTS / "adversarial.json", "guards": RESULTS / "adversarial-guards.json"}

# ---------------------------------------------------------------- speed

WEIGHT = 0.8  # taming-transformers' disc_weight
CODER = {"width": 64, "multipliers": [1, 2, 4], "blocks": 2}
TOKENIZER = {"encoder": CODER, "decoder": CODER, "quantizer": {"codebook_size": 1024, "dim": 64, "learned": True}}
CRITIC = {"width": 64, "layers": 3}


class Noise:
    """Images, for the stage to know their size."""

    class_names: tuple[str, ...] = ()

    def __init__(self, size: int):
        self.pixels, self.labels = torch.rand(1, 3, size, size) * 2 - 1, [0]

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixels": self.pixels[index], "label": 0}


def make_stage(size: int, tokenizer: dict = TOKENIZER, critic: dict = CRITIC) -> TokenizerStage:
    """L1 + LPIPS + quantizer + hinge with the adaptive weight: what taming-transformers has."""
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        convolutions = make_layers(cfgs["D"], batch_norm=False).state_dict()
        torch.save({f"features.{key}": value for key, value in convolutions.items()}, Path(folder) / "vgg16.pth")
        lpips = Lpips(str(Path(folder) / "vgg16.pth"))
    return TokenizerStage(
        Noise(size),
        tokenizer=tokenizer,
        perceptual=1.0,
        perceptual_network=lpips,
        adversarial={"weight": WEIGHT, **critic},
    )


class Ours:
    """The stage's own step, as the training loop takes it."""

    def __init__(self, stage: TokenizerStage):
        self.stage = stage
        self.modules = stage.modules
        self.optimizers = {name: torch.optim.Adam(m.parameters(), 1e-5) for name, m in self.modules.items()}

    def step(self, pixels: Tensor, update: bool = True) -> None:
        for name, terms in self.stage.losses({"pixels": pixels}, 0):
            terms["loss"].backward()
            if update:
                _update(self.optimizers[name])


class Taming:
    """taming-transformers' training_step for its two optimizers, on our modules (arXiv:2012.09841's code).

    An autoencoder pass and LPIPS for each of them; the adaptive weight by differentiating both losses down to the last
    layer, before the sum of the losses is differentiated. As Lightning does, the other optimizer's weights take no
    gradient meanwhile, so that the second autoencoder pass keeps no graph.
    """

    def __init__(self, stage: TokenizerStage):
        self.modules = stage.modules
        self.model, self.critic = stage.modules["model"], stage.modules["discriminator"]
        self.lpips = stage.perceptual_network
        self.trained = {name: [p for p in m.parameters() if p.requires_grad] for name, m in self.modules.items()}
        self.optimizers = {name: torch.optim.Adam(m.parameters(), 1e-5) for name, m in self.modules.items()}

    def step(self, pixels: Tensor, update: bool = True) -> None:
        for name in ("model", "discriminator"):
            self._toggle(name)
            output = self.model(pixels)
            nll = (pixels - output.pixels).abs().mean() + self.lpips(pixels, output.pixels.clamp(-1, 1))  # ours clips
            if name == "model":
                fooled = generator_loss(self.critic(output.pixels), "hinge")
                weight = WEIGHT * self._adaptive_weight(nll, fooled)
                loss = nll + weight * fooled + output.loss
            else:
                real, fake = self.critic(pixels), self.critic(output.pixels.detach())
                loss = discriminator_loss(real, fake, "hinge")
            loss.backward()
            if update:
                _update(self.optimizers[name])
        for parameters in self.trained.values():
            for parameter in parameters:
                parameter.requires_grad_(True)

    def _toggle(self, active: str) -> None:
        for name, parameters in self.trained.items():
            for parameter in parameters:
                parameter.requires_grad_(name == active)

    def _adaptive_weight(self, nll: Tensor, fooled: Tensor) -> Tensor:
        last = self.model.decoder.last_layer.weight
        norms = [torch.autograd.grad(x, last, retain_graph=True)[0].norm() for x in (nll, fooled)]
        return (norms[0] / (norms[1] + 1e-4)).clamp(0, 1e4).detach()


def _update(optimizer: torch.optim.Optimizer) -> None:
    optimizer.step()
    optimizer.zero_grad()


def build_sides(size: int, tokenizer: dict = TOKENIZER, critic: dict = CRITIC) -> dict[str, Any]:
    stage = make_stage(size, tokenizer, critic)
    stage.modules["model"].quantizer.initialised.fill_(True)  # the first batch sets the codes at random
    return {"maskgen": Ours(stage), "taming": Taming(copy.deepcopy(stage))}


def gradient_difference(sides: dict[str, Any], pixels: Tensor) -> float:
    """Largest over modules of |ours - theirs| / |theirs|, all weights of a module as one vector.

    In evaluation mode, where the codes do not move between their two passes of the autoencoder.
    """
    found = {}
    for name, side in sides.items():
        for module in side.modules.values():
            module.eval()
        side.step(pixels, update=False)
        found[name] = {k: _flat(m) for k, m in side.modules.items()}
        for module in side.modules.values():
            module.train().zero_grad()
    return max(float((a - b).norm() / b.norm()) for a, b in zip(found["maskgen"].values(), found["taming"].values()))


def _flat(module: nn.Module) -> Tensor:
    return torch.cat([p.grad.flatten() for p in module.parameters() if p.grad is not None])


def measure_speed(sides: dict[str, Any], batch: int, size: int, rounds: int) -> dict[str, Any]:
    pixels = torch.rand(batch, 3, size, size) * 2 - 1
    difference = gradient_difference(sides, pixels)
    for side in sides.values():
        side.step(pixels)
    found = in_turn({name: partial(side.step, pixels) for name, side in sides.items()}, rounds)
    return {
        "batch": batch,
        "size": size,
        "gradient_difference": difference,
        "sides": found,
        "ratio": ratio(found["maskgen"]["seconds"], found["taming"]["seconds"]),
        "cpu_ratio": ratio(found["maskgen"]["cpu_seconds"], found["taming"]["cpu_seconds"]),
    }


def speed(options: argparse.Namespace) -> dict[str, Any]:
    results = _head(options) | {"tokenizer": TOKENIZER, "discriminator": CRITIC, "cases": []}
    for size in options.size:
        sides = build_sides(size)
        results["parameters"] = {
            name: sum(p.numel() for p in m.parameters()) for name, m in sides["maskgen"].modules.items()
        }
        results["cases"].append(measure_speed(sides, options.batch, size, options.rounds))
        print(results["cases"][-1]["ratio"], file=sys.stderr, flush=True)
    return results


# ---------------------------------------------------------------- guards

SMALL = {"width": 16, "multipliers": [1, 2], "blocks": 1, "patch": 2}
TINY = {"encoder": SMALL, "decoder": SMALL, "quantizer": {"codebook_size": 128, "dim": 8, "decay": 0.9}}
UNGUARDED = {"weight": 1.0, "adaptive": False, "width": 16, "layers": 2}
LECAM, R1 = {"lecam": 0.01, "lecam_decay": 0.99}, {"r1": 1.0}


def variants(steps: int) -> dict[str, dict[str, Any] | None]:
    """Of `stage.adversarial`."""
    late = {"start": steps // 2, "warmup": steps // 4}
    return {
        "no discriminator": None,
        "no guard": UNGUARDED,
        "late start and warm-up alone": {**UNGUARDED, **late},
        "adaptive weight alone": {**UNGUARDED, "adaptive": True},
        "LeCAM alone": {**UNGUARDED, **LECAM},
        "R1 alone": {**UNGUARDED, **R1},
        "all but the late start": {**UNGUARDED, "adaptive": True, **LECAM, **R1},
        "all guards": {**UNGUARDED, **late, "adaptive": True, **LECAM, **R1},
    }


def train_guarded(adversarial: dict[str, Any] | None, steps: int, seed: int, data: tuple[Any, Any]) -> dict[str, Any]:
    """PSNR at the end, and what the discriminator says there; of the averaged weights, in dB."""
    kept, held = data
    settings = Training(
        steps=steps,
        batch_size=16,
        learning_rate=1.5e-3,
        warmup_steps=20,
        weight_decay=0.01,
        ema=0.98,
        precision="fp32",
        seed=seed,
        checkpoint_every=10**9,
    )
    torch.manual_seed(mix(seed, 3))
    stage = TokenizerStage(kept, held, tokenizer=TINY, l1=1.0, l2=1.0, adversarial=adversarial)
    begun = time.process_time()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        try:
            train(stage, kept, settings, Path(folder))
        except FloatingPointError:
            return {"seed": seed, "diverged": True, "cpu_seconds": round(time.process_time() - begun, 1)}
        last = read_metrics(Path(folder) / "metrics.jsonl")[-1]
    names = ("holdout/psnr", "train/psnr", "codebook/use", "discriminator/real", "discriminator/fake")
    values = {name: round(last[name], 3) for name in names if name in last}
    return {"seed": seed, **values, "cpu_seconds": round(time.process_time() - begun, 1)}


def guards(options: argparse.Namespace) -> dict[str, Any]:
    results = _head(options) | {"tokenizer": TINY, "steps": options.steps, "variants": []}
    data = split(Emoji(), 256)
    for name, adversarial in variants(options.steps).items():
        runs = [train_guarded(adversarial, options.steps, seed, data) for seed in range(options.seeds)]
        results["variants"].append({"name": name, "adversarial": adversarial, "runs": runs})
        print(name, [run.get("holdout/psnr") for run in runs], file=sys.stderr, flush=True)
    return results


# ---------------------------------------------------------------- showing


def _head(options: argparse.Namespace) -> dict[str, Any]:
    return {"command": options.command, "machine": machine(), "versions": versions("torch", "torchmetrics")}


def _foot(results: dict[str, Any]) -> str:
    where = results["machine"]
    software = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"{where['cpu']}, {where['threads']} thread(s), fp32; {software}; `{results['command']}`."


def speed_table(results: dict[str, Any]) -> str:
    """Markdown: seconds per step, and how many times as fast our step is: median (smallest to largest)."""
    lines = [
        "| images | maskgen, s per step | taming's formulation | faster | by processor time | gradients differ by |",
        "| --- | ---: | ---: | --- | --- | ---: |",
    ]
    for case in results["cases"]:
        ours, theirs = case["sides"]["maskgen"], case["sides"]["taming"]
        cells = [
            f"{case['batch']} of {case['size']}x{case['size']}",
            *(f"{statistics.median(side['seconds']):.2f}" for side in (ours, theirs)),
            *(as_text(case[which]) for which in ("ratio", "cpu_ratio")),
            f"{case['gradient_difference']:.0e}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    sizes = ", ".join(f"{name} {count / 1e6:.1f} M weights" for name, count in results["parameters"].items())
    rounds = len(results["cases"][0]["sides"]["maskgen"]["seconds"])
    return "\n".join(lines) + f"\n\n{sizes}; {rounds} rounds. {_foot(results)}"


def guards_table(results: dict[str, Any]) -> str:
    """Markdown: held-out PSNR of each variant, mean (smallest to largest), and its loss against no discriminator."""
    lines = ["| run | held-out PSNR, dB | against none |", "| --- | --- | ---: |"]
    base = _psnrs(results["variants"][0])
    for variant in results["variants"]:
        found = _psnrs(variant)
        if not found:
            lines.append(f"| {variant['name']} | not finite | |")
            continue
        mean = statistics.mean(found)
        gap = "" if variant["adversarial"] is None else f"{mean - statistics.mean(base):+.2f}"
        lines.append(f"| {variant['name']} | {mean:.2f} ({min(found):.2f} to {max(found):.2f}) | {gap} |")
    seeds, cpu = len(base), sum(run["cpu_seconds"] for v in results["variants"] for run in v["runs"])
    foot = f"{results['steps']} steps, {seeds} seeds, {cpu / 60:.0f} minutes of one core in all. {_foot(results)}"
    return "\n".join(lines) + "\n\n" + foot


def _psnrs(variant: dict[str, Any]) -> list[float]:
    return [run["holdout/psnr"] for run in variant["runs"] if "holdout/psnr" in run]


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"speed": speed_table, "guards": guards_table}


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--batch", type=int, default=4, help="images of a step (default: 4)")
    add("--size", type=int, nargs="+", default=[64, 128], help="their sides (default: 64 128)")
    add("--rounds", type=int, default=7, help="measured rounds after the warm-up (default: 7)")
    add("--guards", action="store_true", help="instead of speed: does the discriminator ruin a run?")
    add("--steps", type=int, default=400, help="of a run of --guards (default: 400)")
    add("--seeds", type=int, default=3, help="of each variant of --guards (default: 3)")
    add("--threads", type=int, default=1, help="of PyTorch (default: 1)")
    add("--out", type=Path, help="the JSON (default: in benchmarks/results)")
    options = parser.parse_args(arguments)
    options.command = shlex.join(["python", "benchmarks/adversarial.py", *arguments])
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    os.environ["ACCELERATE_USE_CPU"] = "true"
    torch.set_num_threads(options.threads)
    kind = "guards" if options.guards else "speed"
    results = (guards if options.guards else speed)(options)
    out = options.out or FILES[kind]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(results, indent=1) + "\n")
    print(TABLES[kind](results))


if __name__ == "__main__":
    main(sys.argv[1:])
