"""Images a second of parallel decoding (tokens only, no picture decoder), beside public implementations.

Networks of one size with random weights: the same width, depth, heads, tokens, codes and steps. All sides run in one
process, in turn, round after round; a ratio is taken within a round. README.md says what the sides are.

    python benchmarks/decode.py                           # the main sides, all cases -> results/decode.json
    python benchmarks/decode.py --set savings --batch 8 --steps 12 --schedule linear   # -> results/decode-savings.json
    python benchmarks/decode.py --dtype bf16 --batch 8                                 # -> results/decode-bf16.json
    python benchmarks/decode.py --batch 8 --steps 8 --guidance 1 --rounds 2 --out /tmp/quick.json   # a minute
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from budget import machine, versions
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from maskgen.decoding.autoregressive import decode_raster
from maskgen.decoding.loop import Step, decode
from maskgen.pipelines.predictor import NextPredictor, Predictor
from maskgen.transformer.autoregressive import CausalTransformer
from maskgen.transformer.model import MaskTransformer

HERE = Path(__file__).parent
RESULTS = HERE / "results"


@dataclass(frozen=True)
class Size:
    """Of every side's network."""

    width: int = 256
    depth: int = 8
    heads: int = 8
    side: int = 16  # tokens along an edge of the picture
    codes: int = 1024


@dataclass(frozen=True)
class Case:
    """What is asked of every side. Guidance is ``u + s (c - u)``: 1 is none; its schedule only our sides know."""

    batch: int
    steps: int
    guidance: float
    schedule: str = "constant"


@dataclass(frozen=True)
class Side:
    """generate: a case to codes (batch, tokens). network: whose `method` it calls, for counting."""

    about: str
    network: nn.Module
    generate: Callable[[Case], Tensor]
    method: str = "forward"


# ---------------------------------------------------------------- maskgen


def our_network(size: Size, place: dict, **options: Any) -> MaskTransformer:
    shape = {"width": size.width, "depth": size.depth, "heads": size.heads, **options}
    return awake(MaskTransformer(size.codes, (size.side, size.side), num_classes=1000, **shape), place)


def awake(network: Any, place: dict) -> Any:
    """Heads and gates start at zero; a trained network's do not stay there."""
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.02)
    return network.to(**place).eval()


def complete(predict: Callable[[Step], Tensor], size: Size, case: Case, place: dict) -> Tensor:
    canvas = torch.zeros(case.batch, size.side**2, dtype=torch.long, device=place["device"])
    options: Any = {"guidance_scale": case.guidance, "guidance_schedule": case.schedule}
    return decode(predict, canvas, canvas == 0, steps=case.steps, **options)


def all_places(predict: Callable[[Step], Tensor], step: Step) -> Tensor:
    """The last block and the head at every token, known ones too."""
    everywhere = torch.arange(step.tokens.shape[1], device=step.tokens.device).expand_as(step.tokens)
    logits = predict(replace(step, positions=everywhere))
    return logits.gather(1, step.positions[..., None].expand(-1, -1, logits.shape[-1]))


def own_first_step(predict: Callable[[Step], Tensor], step: Step) -> Tensor:
    """The blank canvas computed for every row."""
    return predict(replace(step, blank=False))


def both_passes(predict: Callable[[Step], Tensor], step: Step) -> Tensor:
    """The unconditional pass where guidance is none, too; the scale rounds to 1 again."""
    return predict(replace(step, guidance_scale=math.nextafter(step.guidance_scale, 2)))


Saving = Callable[[Callable[[Step], Tensor], Step], Tensor]
OFF: list[Saving] = [all_places, own_first_step, both_passes]


def ours(size: Size, place: dict, same_label: bool = False, off: Saving | None = None) -> Side:
    """`off`: undoes one of the savings."""
    network = our_network(size, place)

    def generate(case: Case) -> Tensor:
        labels = [7] * case.batch if same_label else list(range(case.batch))
        predict = Predictor(network, labels, (size.side, size.side))
        return complete(predict if off is None else partial(off, predict), size, case, place)

    about = "one class for all rows" if same_label else "each row its own class"
    return Side(about if off is None else str(off.__doc__).split(".")[0].lower(), network, generate)


def dropping(size: Size, place: dict, drop: bool) -> Side:
    """MAGE's shape, 5 blocks in the encoder and 3 in the decoder of 8; with `drop` the encoder sees known tokens only.

    Not exact: the network computes something else, and must be trained so (`masking.dropping`)."""
    decoder = 3 * size.depth // 8 or 1
    shape = {"depth": size.depth - decoder, "decoder_depth": decoder, "registers": 1, "pad": "class_token"}
    network = our_network(size, place, **shape)
    grid = (size.side, size.side)

    def generate(case: Case) -> Tensor:
        labels = torch.arange(case.batch, device=place["device"])
        both = torch.cat([labels, torch.full_like(labels, network.null_class)])

        @torch.no_grad()
        def predict(step: Step) -> Tensor:
            copies = 1 if step.guidance_scale == 1 else 2
            tokens, hidden, positions = (torch.cat([x] * copies) for x in (step.tokens, step.hidden, step.positions))
            keep = None
            if drop:  # as many in every row
                keep = hidden.long().argsort(dim=1, stable=True)[:, : tokens.shape[1] - positions.shape[1]]
            logits = network(
                tokens.unflatten(1, grid),
                hidden.unflatten(1, grid),
                both[: len(tokens)],
                predict_at=positions,
                keep=keep,
            ).predictions
            c, u = (logits, logits) if copies == 1 else logits.chunk(2)
            return c if copies == 1 else torch.lerp(u, c, step.guidance_scale)

        return complete(predict, size, case, place)

    return Side(
        f"encoder of {shape['depth']} blocks over {'known' if drop else 'all'} tokens, decoder of {decoder}",
        network,
        generate,
    )


def autoregressive(size: Size, place: dict) -> Side:
    """One token after the other with cached keys and values, on the same blocks."""
    shape: Any = {"width": size.width, "depth": size.depth, "heads": size.heads}
    network = awake(CausalTransformer(size.codes, (size.side, size.side), num_classes=1000, **shape), place)

    def generate(case: Case) -> Tensor:
        canvas = torch.zeros(case.batch, size.side**2, dtype=torch.long, device=place["device"])
        predict = NextPredictor(network, list(range(case.batch)), guided=case.guidance != 1)
        return decode_raster(predict, canvas, canvas == 0, guidance_scale=case.guidance)

    return Side("one token after the other, keys and values cached", network, generate, "step")


def plain(size: Size, place: dict) -> Side:
    """Our network without our savings: every token's logits, all rows, both passes, at every step."""
    network = our_network(size, place)

    def generate(case: Case) -> Tensor:
        labels = torch.arange(case.batch, device=place["device"])

        def logits_of(step: Step, labels: Tensor) -> Tensor:
            shape = (case.batch, size.side, size.side)
            logits = network(step.tokens.view(shape), step.hidden.view(shape), labels).predictions
            return logits.gather(1, step.positions[..., None].expand(-1, -1, size.codes))

        def predict(step: Step) -> Tensor:
            c = logits_of(step, labels)
            if step.guidance_scale == 1:
                return c
            u = logits_of(step, torch.full_like(labels, network.null_class))
            return u + step.guidance_scale * (c - u)

        return complete(predict, size, case, place)

    return Side("the same network and loop; all tokens, rows and passes at every step", network, generate)


# ---------------------------------------------------------------- peers


def amused(size: Size, place: dict, res_blocks: int = 3) -> Side:
    """diffusers: UVit2DModel and AmusedScheduler, called as AmusedPipeline does, with one text token.

    `res_blocks`: convolution and attention blocks at either end of the transformer; aMUSEd has 3.
    """
    width, device = size.width, place["device"]
    network = diffusers.UVit2DModel(
        hidden_size=width,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        intermediate_size=width * 8 // 3,  # gated: as many weights as a plain MLP four times as wide
        codebook_size=size.codes,
        vocab_size=size.codes + 64,
        in_channels=width,
        block_out_channels=width,
        block_num_heads=size.heads,
        num_res_blocks=res_blocks,
        encoder_hidden_size=width,
        cond_embed_dim=width,
        micro_cond_encode_dim=width,
        micro_cond_embed_dim=5 * width,
        sample_size=size.side,
    )
    network = network.to(**place).eval()
    scheduler = diffusers.AmusedScheduler(mask_token_id=size.codes)

    @torch.no_grad()
    def generate(case: Case) -> Tensor:
        guided = case.guidance > 1
        rows = 2 * case.batch if guided else case.batch
        conditions = {
            "encoder_hidden_states": torch.randn(rows, 1, width, **place),
            "pooled_text_emb": torch.randn(rows, width, **place),
            "micro_conds": torch.tensor([[256.0, 256.0, 0.0, 0.0, 6.0]], **place).expand(rows, -1),
        }
        latents = torch.full((case.batch, size.side, size.side), size.codes, device=device)
        scheduler.set_timesteps(case.steps, temperature=(2, 0), device=device)
        for timestep in scheduler.timesteps:
            logits = network(torch.cat([latents] * 2) if guided else latents, **conditions)
            if guided:
                u, c = logits.chunk(2)
                logits = u + case.guidance * (c - u)
            latents = scheduler.step(logits, timestep, latents).prev_sample
        return latents.flatten(1)

    return Side(f"UVit2DModel, {res_blocks} residual blocks at either end; AmusedScheduler", network, generate)


def muse(size: Size, place: dict, flash: bool | None = None) -> Side:
    """muse-maskgit-pytorch: MaskGitTransformer and MaskGit.generate, with one text token; no T5, no picture decoder.

    `flash`: as it is shipped, True; False in bfloat16, where that attention raises: it multiplies bfloat16 values by
    weights that its float32 maxima made float32, and under autocast fills bfloat16 scores with float32's lowest number.
    """
    from muse_maskgit_pytorch import MaskGit, MaskGitTransformer, VQGanVAE, muse_maskgit_pytorch, t5

    class NoDecoder(VQGanVAE):
        """Returns the codes."""

        def __init__(self):
            nn.Module.__init__(self)
            self.codebook_size = size.codes

        def copy_for_eval(self):
            return self

        def get_encoded_fmap_size(self, image_size):
            return size.side

        def decode_from_ids(self, ids):
            return ids

    flash = place["dtype"] == torch.float32 if flash is None else flash
    muse_maskgit_pytorch.tqdm = lambda steps, total: steps
    t5.T5_CONFIGS["none"] = {"config": SimpleNamespace(d_model=size.width)}
    network = MaskGitTransformer(
        num_tokens=size.codes,
        seq_len=size.side**2,
        dim=size.width,
        depth=size.depth,
        heads=size.heads,
        dim_head=size.width // size.heads,
        flash=flash,
        t5_name="none",
    )
    network.encode_text = lambda texts: torch.randn(len(texts), 1, size.width, **place)
    model = MaskGit(image_size=16 * size.side, transformer=network, vae=NoDecoder()).to(**place).eval()

    def generate(case: Case) -> Tensor:
        return model.generate([""] * case.batch, timesteps=case.steps, cond_scale=case.guidance).flatten(1)

    return Side(f"MaskGitTransformer(flash={flash}), MaskGit.generate", network, generate)


OURS = "maskgen"
RASTER = "autoregressive"
DROPPED, UNDROPPED = "hidden tokens dropped", "none dropped"
MAIN: dict[str, Callable[[Size, dict], Side]] = {OURS: ours, "diffusers": amused, "muse-maskgit-pytorch": muse}
VARIANTS: dict[str, Callable[[Size, dict], Side]] = {
    OURS: ours,
    "maskgen, one class": lambda size, place: ours(size, place, same_label=True),
    "maskgen, plain": plain,
    "diffusers, no residual blocks": lambda size, place: amused(size, place, res_blocks=0),
    "muse-maskgit-pytorch, flash=False": lambda size, place: muse(size, place, flash=False),
}


# What each saving gives, for pictures of one class: all of them, and all but one.
SAVINGS: dict[str, Callable[[Size, dict], Side]] = {
    OURS: lambda size, place: ours(size, place, same_label=True),
    "head and last block at every token": lambda size, place: ours(size, place, True, all_places),
    "first step row by row": lambda size, place: ours(size, place, True, own_first_step),
    "no pass skipped": lambda size, place: ours(size, place, True, both_passes),
    "maskgen, plain": plain,
}
DROPPING: dict[str, Callable[[Size, dict], Side]] = {
    OURS: ours,
    DROPPED: lambda size, place: dropping(size, place, True),
    UNDROPPED: lambda size, place: dropping(size, place, False),
}
SETS = {"main": MAIN, "variants": VARIANTS, "savings": SAVINGS, "dropping": DROPPING}
SETS["raster"] = {OURS: ours, RASTER: autoregressive}
EVERY = {name: make for sides in SETS.values() for name, make in sides.items()}


def build(names: list[str], size: Size, place: dict, chosen: str = "main") -> tuple[dict[str, Side], dict[str, str]]:
    """The sides that can be built here, and why the others cannot."""
    sides, missing = {}, {}
    for name in names:
        torch.manual_seed(0)
        try:
            sides[name] = {**EVERY, **SETS[chosen]}[name](size, place)
        except ImportError as error:
            missing[name] = str(error)
    return sides, missing


# ---------------------------------------------------------------- measuring


def count(side: Side, case: Case, size: Size) -> dict:
    """Calls of the network, rows in them, arithmetic an image. Checks that codes come out; it is the warm-up too."""
    rows, called = [], getattr(side.network, side.method)

    def counted(x: Tensor | None, *rest, **named):
        rows.append(case.batch if x is None else len(x))  # a raster decode begins with no code
        return called(x, *rest, **named)

    setattr(side.network, side.method, counted)
    with FlopCounterMode(display=False) as flops:
        codes = side.generate(case)
    setattr(side.network, side.method, called)
    assert codes.shape == (case.batch, size.side**2), codes.shape
    assert 0 <= codes.min().item() <= codes.max().item() < size.codes, "these are not codes"
    return {
        "calls": len(rows),
        "rows": sum(rows),
        "gflop_per_image": round(flops.get_total_flops() / case.batch / 1e9, 2),
        "distinct_codes": codes.unique().numel(),
    }


def seconds(side: Side, case: Case, device: str) -> tuple[float, float]:
    """Wall and processor time of one generation."""
    wait = torch.cuda.synchronize if device == "cuda" else lambda: None
    wait()
    wall, cpu = time.perf_counter(), time.process_time()
    side.generate(case)
    wait()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(sides: dict[str, Side], case: Case, size: Size, rounds: int, device: str) -> dict:
    """All sides in turn, `rounds` times, after a round that only warms up and counts."""
    found = {name: count(side, case, size) | {"seconds": [], "cpu_seconds": []} for name, side in sides.items()}
    for _ in range(rounds):
        for name, side in sides.items():
            wall, cpu = seconds(side, case, device)
            found[name]["seconds"].append(round(wall, 4))
            found[name]["cpu_seconds"].append(round(cpu, 4))
    for result in found.values():
        result["images_per_second"] = round(case.batch / statistics.median(result["seconds"]), 3)
    peers = [name for name in found if name != OURS] if OURS in found else []
    return asdict(case) | {"sides": found, "ratios": {name: ratio(found[OURS], found[name]) for name in peers}}


def ratio(our: dict, peer: dict) -> dict:
    """How many times as fast as the peer we are, from the rounds' own ratios; by processor time beside the wall's."""
    each = [p / o for o, p in zip(our["seconds"], peer["seconds"])]
    cpu = [p / o for o, p in zip(our["cpu_seconds"], peer["cpu_seconds"])]
    return {
        "median": round(statistics.median(each), 3),
        "min": round(min(each), 3),
        "max": round(max(each), 3),
        "cpu_median": round(statistics.median(cpu), 3),
    }


def run(options: argparse.Namespace, size: Size) -> dict:
    place = {"device": options.device, "dtype": {"fp32": torch.float32, "bf16": torch.bfloat16}[options.dtype]}
    sides, missing = build(options.sides or list(SETS[options.set]), size, place, options.set)
    parameters = {name: sum(p.numel() for p in side.network.parameters()) for name, side in sides.items()}
    results = {
        "command": options.command,
        "machine": machine(options.device),
        "versions": versions("torch", "diffusers", "muse-maskgit-pytorch"),
        "dtype": options.dtype,
        "size": asdict(size),
        "sides": {name: {"about": side.about, "parameters": parameters[name]} for name, side in sides.items()},
        "missing": missing,
        "cases": [],
    }
    for batch, steps, guidance in itertools.product(options.batch, options.steps, options.guidance):
        results["cases"].append(
            measure(sides, Case(batch, steps, guidance, options.schedule), size, options.rounds, options.device)
        )
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(results, indent=1) + "\n")
        print(table(results).splitlines()[-3], file=sys.stderr, flush=True)
    return results


# ---------------------------------------------------------------- showing


def table(results: dict) -> str:
    """Markdown: images a second of each side and how many times as fast we are: median (smallest to largest)."""
    names = list(results["sides"])
    lines = [["batch", "steps", "guidance", *names], ["---:"] * 3 + ["---"] * len(names)]
    for case in results["cases"]:
        lines.append([str(case["batch"]), str(case["steps"]), f"{case['guidance']:g}"])
        for name in names:
            cell = f"{case['sides'][name]['images_per_second']:.2f}"
            if r := case["ratios"].get(name):
                cell += f"; **{r['median']:.2f}x** ({r['min']:.2f} to {r['max']:.2f})"
            lines[-1].append(cell)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n\n" + footnote(results)


def processor_table(results: dict) -> str:
    """Markdown: a row a side; passes, latency and throughput apart, in processor time: what an idle core takes."""
    lines = [
        "| batch | guidance | | passes | rows in them | GFLOP a picture | seconds to the end | pictures a second | |",
        "| ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    for case in results["cases"]:
        for name, side in case["sides"].items():
            seconds = statistics.median(side["cpu_seconds"])
            passes = side["calls"] if name == RASTER else case["steps"]  # rows may go through in parts
            cells = [f"{case['batch']}", f"{case['guidance']:g}", name, f"{passes}", f"{side['rows']}"]
            cells += [f"{side['gflop_per_image']:.1f}", f"{seconds:.2f}", f"{case['batch'] / seconds:.2f}"]
            r = case["ratios"].get(name)
            cells.append(f"{OURS} **{r['cpu_median']:.2f}x** as fast" if r else "")
            lines.append(f"| {' | '.join(cells)} |")
    sizes = "; ".join(f"{n}: {s['about']}, {s['parameters'] / 1e6:.1f} M weights" for n, s in results["sides"].items())
    steps = f"{results['cases'][0]['steps']} steps" + (", guidance linear" if "linear" in results["command"] else "")
    rounds = len(results["cases"][0]["sides"][OURS]["cpu_seconds"])
    m = results["machine"]
    foot = (
        f"{steps}, {rounds} rounds. {m['cpu']}, {m['threads']} thread(s), {results['dtype']}; `{results['command']}`."
    )
    return "\n".join(lines) + f"\n\n{sizes}. {foot}"


def footnote(results: dict) -> str:
    where = results["machine"]
    first = results["cases"][0]
    sizes = "; ".join(
        f"{name} ({side['about']}): {side['parameters'] / 1e6:.1f} M weights, "
        f"{first['sides'][name]['gflop_per_image']:.0f} GFLOP an image in the first line"
        for name, side in results["sides"].items()
    )
    software = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return f"{sizes}. {where['gpu'] or where['cpu']}, {where['threads']} thread(s), {results['dtype']}; {software}."


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--batch", type=int, nargs="+", default=[8, 16], help="pictures at once (default: 8 16)")
    add("--steps", type=int, nargs="+", default=[8, 12], help="decoding steps (default: 8 12)")
    add("--guidance", type=float, nargs="+", default=[1.0, 3.0], help="guidance scales, 1 is none (default: 1 3)")
    add("--rounds", type=int, default=5, help="measured rounds after the warm-up (default: 5)")
    add("--schedule", default="constant", help="of guidance; our sides only (default: constant)")
    about = "; ".join(f"{name}: {', '.join(sides)}" for name, sides in SETS.items())
    add("--set", choices=list(SETS), default="main", help=f"which sides. {about} (default: main)")
    add("--sides", nargs="+", choices=list(EVERY), metavar="SIDE", help="these sides alone, by name")
    add("--dtype", choices=["fp32", "bf16"], default="fp32", help="of weights and activations (default: fp32)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    add("--threads", type=int, default=1, help="of PyTorch on the processor (default: 1)")
    add("--out", type=Path, help="the JSON (default: benchmarks/results/decode.json, or decode-SET-DTYPE.json)")
    options = parser.parse_args(arguments)
    name = "-".join(["decode", *[x for x in (options.set, options.dtype) if x not in ("main", "fp32")]])
    options.out = options.out or RESULTS / f"{name}.json"
    options.command = shlex.join(["python", "benchmarks/decode.py", *arguments])
    return options


def main(arguments: list[str]) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    diffusers.utils.logging.set_verbosity_error()
    results = run(options, Size())
    print(table(results))


if __name__ == "__main__":
    main(sys.argv[1:])
