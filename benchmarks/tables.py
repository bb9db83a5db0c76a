"""Update the tables in the documents from the committed results.

    python benchmarks/tables.py

A document marks a table by ``<!-- table of NAME -->`` ... ``<!-- end -->``, and this script writes what is between.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import adversarial
import collapse
import decode
import inpainting
import prediction
import representation
import sampling_table
import tiling
import tokenizer_families
import train_step
import video_cost
import video_findings
import video_tasks
import video_world
import yaml

HERE = Path(__file__).parent
DOCUMENTS = [
    HERE / "README.md",
    *(
        HERE.parent / "docs" / f"{name}.md"
        for name in ("decoding", "tokenizers", "methods", "editing", "video", "video-findings")
    ),
]


def results(name: str) -> Any:
    return json.loads((HERE / "results" / f"{name}.json").read_text())


def families(data: str) -> str:
    """A table of the tokenizers with results on `data`, in the order of tokenizer_families.yaml."""
    found = results("tokenizers")
    order = yaml.safe_load((HERE / "tokenizer_families.yaml").read_text())
    return tokenizer_families.table([found[f"{data}/{name}"] for name in order if f"{data}/{name}" in found])


TABLES: dict[str, Callable[[], str]] = {
    "decode": lambda: decode.table(results("decode")),
    **{
        f"decode-{name}": lambda name=name: decode.processor_table(results(f"decode-{name}"))
        for name in ("bf16", "variants", "savings", "dropping", "raster")
    },
    **{
        f"sampling-{name}": lambda name=name: sampling_table.table(results("sampling"), name)
        for name in sampling_table.TABLES
    },
    "sampling-raster": lambda: sampling_table.raster_table(results("sampling")),
    "adversarial": lambda: adversarial.speed_table(results("adversarial")),
    "adversarial-guards": lambda: adversarial.guards_table(results("adversarial-guards")),
    "tokenizers-emoji": lambda: families("emoji"),
    "tokenizers-photos": lambda: families("photos"),
    "collapse": lambda: collapse.table([e for n in collapse.VARIANTS if (e := results("collapse").get(n))]),
    "representation": lambda: representation.table(results("representation")),
    "train-step": lambda: train_step.table(results("train_step")),
    **{
        f"inpainting-{mask}": lambda mask=mask: inpainting.table(results("inpainting"), mask)
        for mask in inpainting.MASKS
    },
    "inpainting-fills": lambda: inpainting.fills_table(results("inpainting-fills")),
    **{
        f"prediction-{name}": lambda name=name: prediction.table(results(f"prediction-{name}"))
        for name in ("moving-mnist", "street")
    },
    "video-tasks": lambda: video_tasks.table(results("video-tasks")),
    "tiling": lambda: tiling.table(results("tiling")),
    **{
        f"video-{name}": lambda table=table, script=script: table(results(script))
        for script, tables in (
            ("video-world", video_world.TABLES),
            ("video-cost", video_cost.TABLES),
            ("video-findings", video_findings.TABLES),
        )
        for name, table in tables.items()
    },
}
MARK = re.compile(r"<!-- table of (\S+) -->\n.*?<!-- end -->", re.DOTALL)


def filled(text: str) -> str:
    """`text` with every table made from the results."""
    return MARK.sub(lambda mark: f"<!-- table of {mark[1]} -->\n{TABLES[mark[1]]()}\n<!-- end -->", text)


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(filled(document.read_text()))
