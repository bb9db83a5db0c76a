"""The training loop of every stage."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from tqdm import tqdm

from maskgen.data.augment import Augmentation, Views
from maskgen.training.batches import BatchPlan, MapDataset, loader, mix
from maskgen.training.checkpoint import checkpoints, load_checkpoint, save_checkpoint
from maskgen.training.metrics import Means, MetricsFile, all_finite, plot_curves

logger = logging.getLogger(__name__)


@runtime_checkable
class Stage(Protocol):
    """What the loop trains. ``modules["model"]`` is averaged (EMA), sampled from and exported.

    A stage may have four more attributes: ``state``, modules that are in the checkpoints and are not trained (an EMA
    teacher); ``stepped()``, which is called after each optimizer step; ``progress``, which the loop sets before each
    step to the share of the training that is then done; and ``takes_views``, which is true if the stage learns from
    several views of an image.
    """

    modules: dict[str, nn.Module]

    def losses(self, batch: dict[str, Any], step: int) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield the name and the terms (with ``loss``) of each module; the loop steps a module before the next one."""

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Compute metrics of the averaged model."""

    def image(self, model: nn.Module) -> Image.Image:
        """Make an image that shows what the averaged model does."""

    def export(self, model: nn.Module, folder: Path) -> None:
        """Write the pipeline that all other commands load."""


@dataclass
class Training:
    """Settings of the loop.

    `batch_size` is global, over all processes and accumulated micro-batches. `precision` ``auto`` is bf16 where the
    hardware computes in it, else fp32. `ema` is the decay of the averaged weights, reached as (1 + n) / (10 + n). Every
    `log_every` steps a line goes to ``metrics.jsonl``. Every `sample_every` steps images are sampled and metrics
    evaluated; 0 does so only at the end.
    """

    steps: int
    batch_size: int = 64
    accumulation: int = 1
    learning_rate: float = 3e-4
    warmup_steps: int = 100
    decay: Literal["cosine", "constant"] = "cosine"
    betas: tuple[float, float] = (0.9, 0.96)
    weight_decay: float = 0.045
    clip: float = 1.0
    ema: float = 0.999
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    seed: int = 0
    workers: int = 0
    log_every: int = 50
    sample_every: int = 0
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    trackers: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        counts = ("steps", "batch_size", "accumulation", "log_every", "checkpoint_every", "keep_checkpoints")
        rules = [
            (counts, lambda x: x >= 1, "at least 1"),
            (("warmup_steps", "sample_every", "workers", "weight_decay"), lambda x: x >= 0, "at least 0"),
            (("learning_rate", "clip"), lambda x: x > 0, "above 0"),
            (("ema",), lambda x: 0 <= x < 1, "at least 0 and below 1"),
        ]
        wrong = [
            f"training.{name} must be {words}, got {getattr(self, name)}"
            for names, right, words in rules
            for name in names
            if not right(getattr(self, name))
        ]
        if wrong:
            raise ValueError("\n".join(wrong))

    def rate(self, step: int) -> float:
        """The learning rate of a step, counted from 0: a linear warm-up, then a cosine to 0 or a constant."""
        if step < self.warmup_steps:
            return self.learning_rate * (step + 1) / self.warmup_steps
        if self.decay == "constant":
            return self.learning_rate
        done = (step - self.warmup_steps) / max(1, self.steps - self.warmup_steps)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * done))


def bf16_supported() -> bool:
    """Whether the hardware computes in bfloat16 and does not only emulate it."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def train(
    stage: Stage,
    dataset: MapDataset,
    settings: Training,
    folder: Path,
    augmentation: Augmentation | Views | None = None,
) -> int:
    """Train `stage` on `dataset` in `folder`, from its newest checkpoint on; return the step reached.

    Batches, augmentation, masks and dropout of a step depend only on the settings, the seed and the step, so a run that
    was killed and resumed ends with exactly the same weights.

    Raises:
        ValueError: the processes cannot share a batch evenly, or the stage cannot learn from views.
        FloatingPointError: a loss is not finite.
        SystemExit: SIGINT or SIGTERM arrived; a checkpoint was saved first.
    """
    if isinstance(augmentation, Views) and not getattr(stage, "takes_views", False):
        raise ValueError(
            "augment.type=views makes several images of each, which only stages generator and representation learn "
            "from; set augment.type=standard for this stage"
        )
    s = settings
    precision = ("bf16" if bf16_supported() else "fp32") if s.precision == "auto" else s.precision
    accelerator = _accelerator(precision, s.trackers, folder)
    shares = s.accumulation * accelerator.num_processes
    if s.batch_size % shares:
        raise ValueError(
            f"training.batch_size {s.batch_size} cannot be shared by {accelerator.num_processes} processes x "
            f"accumulation {s.accumulation}; make it a multiple of {shares}"
        )
    if s.trackers:
        accelerator.init_trackers("maskgen")
    bare = dict(stage.modules)
    state: dict[str, nn.Module] = getattr(stage, "state", {})
    stepped: Callable[[], None] | None = getattr(stage, "stepped", None)
    for module in (*bare.values(), *state.values()):
        module.to(accelerator.device).train()
    averaged = _average(bare["model"], s.ema)
    optimizers = {name: accelerator.prepare(_optimizer(module, s)) for name, module in bare.items()}
    saved = {**bare, **state, "ema": averaged}
    done = checkpoints(folder / "checkpoints")
    start = load_checkpoint(done[-1], saved, optimizers, accelerator.scaler) if done else 0
    for parameter in (p for module in bare.values() for p in module.parameters() if p.numel() == 0):
        parameter.requires_grad_(False)  # DistributedDataParallel would wait for its gradient
    stage.modules = {name: accelerator.prepare(module) for name, module in bare.items()}
    plan = BatchPlan(
        dataset,
        s.batch_size,
        start,
        s.steps,
        s.seed,
        s.accumulation,
        accelerator.process_index,
        accelerator.num_processes,
    )
    batches = iter(loader(dataset, augmentation or Augmentation(), plan, s.workers, accelerator.device.type == "cuda"))
    main = accelerator.is_main_process
    metrics, means = MetricsFile(folder / "metrics.jsonl", start) if main else None, Means()
    bar = tqdm(total=s.steps, initial=start, desc=folder.name, unit="step", disable=not main, mininterval=1.0)
    clock = time.perf_counter()

    def save(step: int) -> None:
        if main:  # the pipeline comes first, so that it exists when the last checkpoint does
            stage.export(averaged.module, folder / "pipeline")
            save_checkpoint(folder / "checkpoints", step, saved, optimizers, s.keep_checkpoints, accelerator.scaler)
        accelerator.wait_for_everyone()

    with _signals() as stopped:
        for step in range(start, s.steps):
            torch.manual_seed(mix(s.seed, 2, step, accelerator.process_index))
            stage.progress = (step + 1) / s.steps  # type: ignore[attr-defined]
            for micro in range(s.accumulation):
                batch = {k: v.to(accelerator.device, non_blocking=True) for k, v in next(batches).items()}
                _micro_step(accelerator, stage, batch, step, s, micro == s.accumulation - 1, optimizers, means)
            if stepped is not None:
                stepped()
            averaged.update_parameters(bare["model"])
            reached, values = step + 1, {}
            stop = _anyone(accelerator, bool(stopped), reached)
            saving = stop or reached % s.checkpoint_every == 0 or reached == s.steps
            logging_now = reached % s.log_every == 0 or reached == s.steps
            if (saving or logging_now) and not all_finite(means.read()):  # never a checkpoint of broken weights
                raise FloatingPointError(
                    f"step {reached}: a loss is not finite: {means.read()}; lower training.learning_rate or check the "
                    "data; the same command continues from the last checkpoint"
                )
            if logging_now:
                values = {**means.take(), "learning_rate": s.rate(step), "seconds": time.perf_counter() - clock}
                bar.set_postfix({k.split("/")[-1]: f"{v:.3f}" for k, v in values.items() if k.startswith("model/")})
            if main and (reached == s.steps or (s.sample_every and reached % s.sample_every == 0)):
                values |= _look(stage, averaged.module, folder, reached)
            if metrics is not None and values:
                metrics.write(reached, values)
                if s.trackers:
                    accelerator.log(values, step=reached)
            bar.update()
            if saving:
                save(reached)
            if stop:
                bar.close()
                logger.warning("stopped at step %d of %d; the same command continues from there", reached, s.steps)
                raise SystemExit(128 + (stopped[0] if stopped else signal.SIGTERM))
    bar.close()
    if main:
        plot_curves(folder / "metrics.jsonl", folder / "curves.png")
    if s.trackers:
        accelerator.end_training()
    return s.steps


def _accelerator(precision: str, trackers: list[str], folder: Path) -> Accelerator:
    """A new accelerator. One process may train several runs in turn, each in its own precision.

    Raises:
        ValueError: several processes were started, but accelerate did not join them.
    """
    AcceleratorState._reset_state()
    accelerator = Accelerator(
        mixed_precision={"fp32": "no"}.get(precision, precision),
        cpu=not getattr(torch, "accelerator", torch.cuda).is_available(),
        log_with=trackers or None,
        project_dir=str(folder),
    )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if started != accelerator.num_processes:
        raise ValueError(f"{started} processes were started, but accelerate joined {accelerator.num_processes} of them")
    return accelerator


def _micro_step(
    accelerator: Accelerator,
    stage: Stage,
    batch: dict[str, Any],
    step: int,
    s: Training,
    last: bool,
    optimizers: dict[str, Any],
    means: Means,
) -> None:
    """Run the backward pass of one micro-batch for each module; the optimizers step at the last micro-batch."""
    modules = stage.modules
    with contextlib.ExitStack() as stack:
        if not last:
            for module in modules.values():
                stack.enter_context(accelerator.no_sync(module))
        stack.enter_context(accelerator.autocast())
        for name, terms in stage.losses(batch, step):
            means.add(name, terms)
            accelerator.backward(terms["loss"] / s.accumulation)
            if last:
                optimizer = optimizers[name]
                for group in optimizer.param_groups:
                    group["lr"] = s.rate(step)
                norm = torch.as_tensor(accelerator.clip_grad_norm_(modules[name].parameters(), s.clip))
                optimizer.step()
                # A scaler skips the step where scaled fp16 gradients overflow; `step_was_skipped` does not see that of
                # a fused optimizer, which skips inside its kernel.
                if accelerator.scaler is None or bool(norm.isfinite()):
                    means.add(name, {"gradient_norm": norm})
                optimizer.zero_grad()


def _average(model: nn.Module, decay: float) -> AveragedModel:
    """An exponential moving average of the parameters; buffers are copied from the model."""

    @torch.no_grad()
    def update(averaged: Any, current: Any, count: Any) -> None:
        n = int(count)
        torch._foreach_lerp_(averaged, current, 1 - min(decay, (1 + n) / (10 + n)))

    model_average = AveragedModel(model, multi_avg_fn=update)
    return model_average.eval()


def _optimizer(module: nn.Module, s: Training) -> torch.optim.Optimizer:
    """AdamW, without weight decay of biases, norms, embeddings and single tokens."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            weight = parameter.ndim >= 2 and not any(word in name for word in ("embedding", "token", "codebook"))
            (decayed if weight else plain).append(parameter)
    groups = [{"params": decayed, "weight_decay": s.weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=s.learning_rate, betas=s.betas, fused=True)


def _look(stage: Stage, model: nn.Module, folder: Path, step: int) -> dict[str, float]:
    """Evaluate the model and save its image, without a change to the random numbers of training."""
    with torch.random.fork_rng(), torch.no_grad():
        (folder / "samples").mkdir(parents=True, exist_ok=True)
        stage.image(model).save(folder / "samples" / f"step_{step:08d}.png")
        return stage.evaluate(model)


def _anyone(accelerator: Accelerator, stopped: bool, step: int) -> bool:
    """Whether any process was asked to stop; several processes agree on it every 10 steps."""
    if accelerator.num_processes == 1:
        return stopped
    if step % 10:
        return False
    flag = torch.tensor(float(stopped), device=accelerator.device)
    return bool(accelerator.reduce(flag, "sum") > 0)


@contextlib.contextmanager
def _signals() -> Iterator[list[int]]:
    """A list to which SIGINT and SIGTERM append their numbers; a second SIGINT interrupts at once."""
    received: list[int] = []

    def handle(number: int, frame: Any) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    main = threading.current_thread() is threading.main_thread()  # Python allows signal handlers only there
    previous = {n: signal.signal(n, handle) for n in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
