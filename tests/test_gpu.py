"""What needs a GPU: CUDA, xformers, half precision. scripts/gpu_check.py runs these; its dry run does so on the CPU."""

import json
import os

import pytest
import torch

import flat
from every_task import contents, every_task
from maskgen.mim.core import MaskedModeling
from maskgen.training.checkpoint import checkpoints
from maskgen.training.loop import Training, train
from maskgen.training.metrics import read_metrics
from maskgen.training.stages.tokenizer import TokenizerStage
from maskgen.transformer.attention import Ragged, attend
from runs import TOKENIZER, Images, scaled_on_cpu

DEVICE = torch.device(os.environ.get("MASKGEN_TEST_DEVICE", "cuda"))
HALVES = [torch.bfloat16, torch.float16]
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
pytestmark = pytest.mark.gpu


@pytest.fixture
def xformers():
    pytest.importorskip("xformers")
    if DEVICE.type != "cuda":
        pytest.skip("xformers runs on CUDA")


def queries(dtype, n=9, heads=4, dim=32):
    return [torch.randn(3, n, heads, dim, device=DEVICE).to(dtype).requires_grad_() for _ in range(3)]


def agree(ours, expected):
    torch.testing.assert_close(ours.float(), expected.float(), rtol=2e-2, atol=2e-2)


# ---------------------------------------------------------------------------------------------------------- attention


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("causal", [False, True])
def test_xformers_agrees_with_sdpa_forwards_and_backwards(xformers, dtype, causal):
    inputs = queries(dtype)
    made = [attend(*inputs, backend, causal=causal) for backend in ("xformers", "sdpa")]
    agree(*made)
    gradients = [torch.autograd.grad(x.float().square().sum(), inputs) for x in made]
    for ours, theirs in zip(*gradients):
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("backend", ["xformers", "sdpa", "packed"])
def test_rows_of_different_lengths_are_packed(backend, dtype, request):
    if backend == "xformers":
        request.getfixturevalue("xformers")
    q, k, v = queries(dtype)
    keys = Ragged.of([5, 2, 9], DEVICE)
    agree(attend(q, k, v, backend, keys), attend(q.float(), k.float(), v.float(), "explicit", keys))


@pytest.mark.parametrize("lengths", [None, [5, 2, 9]])
@pytest.mark.parametrize("backend", ["xformers", "sdpa"])
def test_a_bias_is_added_to_the_scores(backend, lengths, request):
    if backend == "xformers":
        request.getfixturevalue("xformers")
    q, k, v = queries(torch.float16)
    bias = torch.randn(1, 4, 9, 9, device=DEVICE)
    keys = None if lengths is None else Ragged.of(lengths, DEVICE)
    agree(
        attend(q, k, v, backend, keys, bias=bias), attend(q.float(), k.float(), v.float(), "explicit", keys, bias=bias)
    )


def masked_transformer(backend, dropping):
    torch.manual_seed(0)
    decoder = {"decoder_depth": 1} if dropping != "none" else {}
    model = flat.transformer(32, (4, 6), width=64, depth=2, heads=2, registers=1, backend=backend, **decoder)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.to(DEVICE)


@pytest.mark.parametrize("dropping", ["none", "all"])
@pytest.mark.parametrize("backend", ["auto", "xformers", "sdpa"])
def test_a_training_step_is_the_same_with_every_attention(backend, dropping, request):
    """Loss and gradients under bfloat16 autocast, where rows keep different numbers of tokens too."""
    if backend == "xformers":
        request.getfixturevalue("xformers")
    tokens, found = torch.randint(32, (5, 4, 6), generator=torch.Generator().manual_seed(0)).to(DEVICE), []
    for kind in (backend, "explicit"):
        model, masking = masked_transformer(kind, dropping), MaskedModeling(ratio="cosine", dropping=dropping)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            loss = masking.losses(model, tokens, generator=torch.Generator().manual_seed(0))["loss"]
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
        found.append((loss.detach(), gradient))
    (loss, gradient), (expected, wanted) = found
    torch.testing.assert_close(loss, expected, rtol=1e-2, atol=1e-2)
    assert (gradient - wanted).norm() < 0.05 * wanted.norm()


# ----------------------------------------------------------------------------------------------------------- training


@pytest.fixture
def exact(monkeypatch):
    """Only kernels that give the same bits each time."""
    if DEVICE.type == "cpu":
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
        scaled_on_cpu(monkeypatch)
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_run_learns_and_goes_on_with_the_very_same_weights(precision, exact, tmp_path):
    """A tokenizer with its discriminator, in one go and in two."""
    if DEVICE.type == "cpu" and precision == "fp32":
        pytest.skip("tests/test_resume.py does this on the CPU")

    def run(steps, folder):
        torch.manual_seed(0)
        coder, adversarial = TOKENIZER["stage"]["tokenizer"], {"start": 3, "width": 4, "layers": 1}
        stage = TokenizerStage(Images(), tokenizer=coder, l2=1.0, adversarial=adversarial)
        settings = {"batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2, "decay": "constant", "log_every": 1}
        train(stage, Images(), Training(steps=steps, precision=precision, checkpoint_every=10, **settings), folder)
        return checkpoints(folder / "checkpoints")[-1]

    whole, _, parts = run(30, tmp_path / "whole"), run(20, tmp_path / "parts"), run(30, tmp_path / "parts")
    states = [json.loads((path / "state.json").read_text()) for path in (whole, parts)]
    assert states[0] == states[1]
    assert ("scaler" in states[0]) == (precision == "fp16")
    for name in ("model", "discriminator", "ema"):
        assert (whole / f"{name}.safetensors").read_bytes() == (parts / f"{name}.safetensors").read_bytes(), name
    losses = [line["model/l1"] for line in read_metrics(tmp_path / "whole/metrics.jsonl")]
    assert sum(losses[-5:]) < sum(losses[:5])


# -------------------------------------------------------------------------------------------------------------- tasks

EVERY = [name for name in every_task() if "," not in name]  # one order of decoding


@pytest.fixture(scope="module")
def pipelines():
    return {}


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", EVERY)
def test_every_task_runs_in_half_precision(name, dtype, pipelines):
    make, task = every_task()[name]
    if (make, dtype) not in pipelines:
        pipelines[make, dtype] = make().to(DEVICE, dtype)
    made = contents(task(pipelines[make, dtype], generator=torch.Generator().manual_seed(0), output_type="pt"))
    assert made.float().isfinite().all()
    assert 0 <= made.min() < made.max() <= 1
