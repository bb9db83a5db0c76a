"""Images per second of a masked-modeling training step, compared with the step without dropping and with other code.

    pip install --no-deps --target DIR transformers tokenizers      # the one peer that is not a dependency
    PYTHONPATH=DIR python benchmarks/train_step.py
    python benchmarks/tables.py                                     # the tables of docs/methods.md

A step is a forward pass, a backward pass and AdamW. All sides run in one process and in turn, and a ratio compares
times of the same round. There are 256 tokens, an encoder of width 256 with 8 layers, where needed a decoder with 4
layers, and one thread, in fp32 and in bfloat16 autocast. MAGE's sides start from codes, as from a cache; those of MAE
and SimMIM from 64x64 pixels. The authors' MAGE is rewritten from their formulation (`mage_authors.py`), and ViTMAE is
that of transformers, with both of its attention implementations.
"""

from __future__ import annotations

import argparse
import json
import shlex
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mage_authors
import torch
from adversarial import Noise
from budget import machine, versions
from timing import Times, as_text, in_turn, spread
from torch import Tensor, nn

from maskgen.mim.core import MaskedModeling
from maskgen.mim.ratios import TruncatedNormal
from maskgen.training.stages.representation import RepresentationStage
from maskgen.transformer.model import MaskTransformer

OUT = Path(__file__).parent / "results" / "train_step.json"
SIZE = {"width": 256, "depth": 8, "heads": 8}
ENCODER: dict[str, Any] = {
    "width": SIZE["width"],
    "depth": SIZE["depth"],
    "num_registers": 1,
    "positions": {"rope": False},
    "block": {"heads": SIZE["heads"], "mlp": "gelu", "qk_norm": "none"},
}
DECODER = {"depth": 4, "heads": 8}
CODES, GRID, PATCH = 1024, (16, 16), 4
PIXELS = {"target": {"type": "pixels", "patch": PATCH, "normalise": "patch"}, "objective": "mse"}
MAE = {"ratio": {"type": "fixed", "ratio": 0.75}, **PIXELS}
MAE_MODEL = {
    **ENCODER,
    "positions": {"rope": False, "embedding": "sincos"},
    "decoder": {**DECODER, "width": 128},
}

Forward = Callable[[], Tensor]  # the loss of a batch
Side = tuple[nn.Module, Forward]


def mage(batch: int, dropping: str = "share", dropout: float = 0.0) -> Side:
    """The MIM core on codes at hand."""
    changes = {
        "tokens": {"codebook_size": CODES},
        "block": {**ENCODER["block"], "dropout": dropout},
        "decoder": {**DECODER, "pad": "class_token"},
    }
    model = MaskTransformer(GRID, **{**ENCODER, **changes})
    core = MaskedModeling(ratio="truncated_normal", dropping=dropping)
    codes = torch.randint(CODES, (batch, *GRID))
    return model, lambda: core.losses(model, codes)["loss"]


def authors_mage(batch: int, dropout: float = 0.0) -> Side:
    decoder = {f"decoder_{name}": value for name, value in DECODER.items()}
    size = {**SIZE, **decoder, "decoder_width": SIZE["width"]}
    model = mage_authors.MAGE(CODES, GRID[0] * GRID[1], **size, dropout=dropout)
    codes, ratio = torch.randint(CODES, (batch, GRID[0] * GRID[1])), TruncatedNormal()
    return model, lambda: model(codes, float(ratio(1)))


def pixels_of(batch: int) -> Tensor:
    return torch.rand(batch, 3, GRID[0] * PATCH, GRID[1] * PATCH) * 2 - 1


def representation(batch: int, model: dict[str, Any], masking: dict[str, Any]) -> Side:
    """The stage's own step, as the training loop takes it."""
    stage = RepresentationStage(Noise(GRID[0] * PATCH), tokens={"patch": PATCH}, model=model, masking=masking)
    data = {"pixels": pixels_of(batch)}
    return stage.modules["model"], lambda: next(stage.losses(data, 0))[1]["loss"]


def vit_mae(batch: int, attention: str) -> Side:
    from transformers import ViTMAEConfig, ViTMAEForPreTraining

    config = ViTMAEConfig(
        hidden_size=SIZE["width"],
        num_hidden_layers=SIZE["depth"],
        num_attention_heads=SIZE["heads"],
        intermediate_size=4 * SIZE["width"],
        image_size=GRID[0] * PATCH,
        patch_size=PATCH,
        decoder_hidden_size=MAE_MODEL["decoder"]["width"],
        decoder_num_hidden_layers=DECODER["depth"],
        decoder_num_attention_heads=DECODER["heads"],
        decoder_intermediate_size=4 * MAE_MODEL["decoder"]["width"],
        mask_ratio=MAE["ratio"]["ratio"],
        norm_pix_loss=True,
        attn_implementation=attention,
    )
    model, pixels = ViTMAEForPreTraining(config), pixels_of(batch)
    return model, lambda: model(pixels).loss


SIDES: dict[str, Callable[[int], Side]] = {
    "MAGE": mage,
    "MAGE without dropping": lambda batch: mage(batch, "none"),
    "the authors' MAGE": authors_mage,
    "MAGE, dropout 0.1": lambda batch: mage(batch, dropout=0.1),
    "the authors' MAGE, dropout 0.1": lambda batch: authors_mage(batch, 0.1),
    "MAE": lambda batch: representation(batch, MAE_MODEL, {**MAE, "dropping": "all"}),
    "MAE without dropping": lambda batch: representation(batch, MAE_MODEL, MAE),
    "SimMIM": lambda batch: representation(
        batch, ENCODER, {**MAE, "ratio": {"type": "fixed", "ratio": 0.6}, "objective": "l1"}
    ),
    "transformers' ViTMAE, sdpa": lambda batch: vit_mae(batch, "sdpa"),
    "transformers' ViTMAE, eager": lambda batch: vit_mae(batch, "eager"),
}
PAIRS = [
    ("MAGE", "MAGE without dropping"),
    ("MAGE", "the authors' MAGE"),
    ("MAGE, dropout 0.1", "the authors' MAGE, dropout 0.1"),
    ("MAE", "MAE without dropping"),
    ("MAE", "SimMIM"),
    ("MAE", "transformers' ViTMAE, sdpa"),
    ("MAE", "transformers' ViTMAE, eager"),
]


def step_of(side: Side, precision: str) -> Callable[[], None]:
    """Forward, backward and AdamW."""
    model, forward = side
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            loss = forward()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def build(batch: int) -> tuple[dict[str, Side], dict[str, str]]:
    """The sides that can be built here, and why the others cannot."""
    sides, missing = {}, {}
    for name, make in SIDES.items():
        torch.manual_seed(0)
        try:
            sides[name] = make(batch)
        except ImportError as error:
            missing[name] = str(error)
    return sides, missing


def measure(sides: dict[str, Side], precision: str, rounds: int) -> dict[str, Times]:
    """Wall and processor seconds of each side's step, round by round."""
    return in_turn({name: step_of(side, precision) for name, side in sides.items()}, rounds, warm_up=2)


def table(results: dict[str, Any]) -> str:
    """Markdown: images a second of processor time, and how many times as fast: median (smallest to largest)."""
    lines = [
        "| | images/s | against | images/s | faster | by the wall's clock |",
        "| --- | ---: | --- | ---: | --- | --- |",
    ]
    for precision, found in results["seconds"].items():
        for one, other in PAIRS:
            if one in found and other in found:
                rate = {name: results["batch"] / statistics.median(found[name]["cpu_seconds"]) for name in (one, other)}
                clocks = ("seconds", "cpu_seconds")
                wall, cpu = (as_text(spread(found[one][clock], found[other][clock])) for clock in clocks)
                name = f"{one}, {precision}" if precision != "bf16" else one
                lines.append(f"| {name} | {rate[one]:.1f} | {other} | {rate[other]:.1f} | {cpu} | {wall} |")
    weights = "; ".join(f"{name} {n / 1e6:.2f} M" for name, n in results["parameters"].items())
    where = f"{results['machine']['cpu']}, {results['machine']['threads']} thread(s)"
    software = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return "\n".join(lines) + (
        f"\n\nBatch {results['batch']}, {results['rounds']} rounds, by processor time, bf16 autocast where fp32 is not "
        f"said; other jobs ran (load {results['machine']['load_before']}). Weights: "
        f"{weights}. {where}; {software}."
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precisions", nargs="+", choices=["bf16", "fp32"], default=["bf16", "fp32"])
    parser.add_argument("--out", type=Path, default=OUT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, Any] = {"command": shlex.join(["python", "benchmarks/train_step.py", *sys.argv[1:]])}
    sides, results["missing"] = build(arguments.batch)
    results |= {"machine": machine(), "versions": versions("torch", *([] if results["missing"] else ["transformers"]))}
    results |= {"batch": arguments.batch, "rounds": arguments.rounds}
    results["parameters"] = {name: sum(p.numel() for p in model.parameters()) for name, (model, _) in sides.items()}
    results["seconds"] = {precision: measure(sides, precision, arguments.rounds) for precision in arguments.precisions}
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
