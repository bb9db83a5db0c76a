"""Tokenizers of earlier versions, whose weights were numbered, load with the same function, codes and fingerprint.

tests/golden/numbered_tokenizers was made at commit 38e6442: for each case the options of that version, the names and
shapes of its state and the order of its parameters, two fingerprints, and the outputs for seeded weights.
"""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.optim import AdamW
from torch.optim.swa_utils import AveragedModel

from maskgen.pipelines.store import fingerprint, load_tokenizer
from maskgen.tokenizer.model import PARTS, Tokenizer
from maskgen.tokenizer.numbered import upgraded
from maskgen.training.checkpoint import load_checkpoint
from maskgen.training.loop import Training, _optimizer
from recorded import GOLDEN

FOLDER = GOLDEN / "numbered_tokenizers"
CASES = json.loads((FOLDER / "tokenizers.json").read_text())
OUTPUTS = load_file(FOLDER / "outputs.safetensors")
cases = pytest.mark.parametrize("name", CASES)


def fresh(name):
    """The tokenizer of an earlier configuration, with its initial weights."""
    torch.manual_seed(0)
    return Tokenizer(**upgraded(CASES[name]["options"], PARTS)).eval()


def recorded(name):
    """The earlier state, and the inputs of the recorded outputs; the values are seeded."""
    generator, state = torch.Generator().manual_seed(0), {}
    for key, (dtype, shape) in sorted(CASES[name]["state"].items()):
        if dtype.startswith("float") and not key.endswith("nothing"):
            state[key] = 0.3 * torch.randn(shape, generator=generator)
        else:
            state[key] = torch.zeros(shape, dtype=getattr(torch, dtype))
    image = torch.rand(1, 3, 8, 8, generator=generator) * 2 - 1
    if name.startswith("causal"):
        image = torch.rand(1, 3, 3, 8, 8, generator=generator) * 2 - 1
    text = torch.randn(1, 4, 5, generator=generator) if name == "ta-titok" else None
    return state, image, text


def check(name, tokenizer):
    _, image, text = recorded(name)
    with torch.no_grad():
        found = tokenizer(image, text)
    assert torch.equal(found.codes, OUTPUTS[f"{name}/codes"]) or not tokenizer.codebook_size
    torch.testing.assert_close(found.codes, OUTPUTS[f"{name}/codes"])
    torch.testing.assert_close(found.pixels, OUTPUTS[f"{name}/pixels"])
    assert fingerprint(tokenizer) == CASES[name]["fingerprint"]


@pytest.mark.parametrize("name", [name for name in CASES if CASES[name]["state"]])  # diffusers saves no others
def test_a_saved_tokenizer_loads(name, tmp_path):
    state, *_ = recorded(name)
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "Tokenizer", **CASES[name]["options"]}))
    save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
    tokenizer = load_tokenizer(tmp_path)
    check(name, tokenizer)
    tokenizer.save_pretrained(tmp_path / "again")
    check(name, load_tokenizer(tmp_path / "again"))
    half = Tokenizer.from_pretrained(tmp_path, torch_dtype=torch.bfloat16)
    assert half.dtype == (torch.bfloat16 if list(half.encoder.parameters()) else torch.float32)
    floats = [value for value in half.quantizer.state_dict().values() if value.is_floating_point()]
    assert all(value.dtype == torch.float32 for value in floats)


@cases
def test_initial_weights_are_those_of_the_earlier_version(name):
    assert fingerprint(fresh(name)) == CASES[name]["initial_fingerprint"]


@cases
def test_a_checkpoint_loads_with_its_average_and_its_optimizer(name, tmp_path):
    state, *_ = recorded(name)
    model, case = fresh(name), CASES[name]
    averaged, optimizer = AveragedModel(fresh(name)), _optimizer(model, Training(steps=1))
    shapes = {key: case["state"][key][1] for key in case["parameters"]}
    words = ("embedding", "token", "codebook")
    decayed = [k for k, shape in shapes.items() if len(shape) >= 2 and not any(word in k for word in words)]
    groups = [decayed, [k for k in shapes if k not in decayed]]
    parameters = {key: torch.nn.Parameter(state[key].clone()) for key in shapes}
    earlier = AdamW([{"params": [parameters[key] for key in group]} for group in groups])
    for parameter in parameters.values():
        parameter.grad = parameter.detach().clone()  # moments that tell which parameter they are of
    earlier.step()
    save_file(state, tmp_path / "model.safetensors")
    average = {f"module.{key}": value for key, value in state.items()} | {"n_averaged": torch.tensor(3)}
    save_file(average, tmp_path / "ema.safetensors")
    torch.save({"model": earlier.state_dict()}, tmp_path / "optimizers.pt")
    (tmp_path / "state.json").write_text('{"step": 7}')

    assert load_checkpoint(tmp_path, {"model": model, "ema": averaged}, {"model": optimizer}) == 7
    check(name, model)
    check(name, averaged.module)
    assert len(optimizer.state) == sum(p.requires_grad for p in model.parameters())
    for parameter, moments in optimizer.state.items():
        torch.testing.assert_close(moments["exp_avg"], 0.1 * parameter)
        assert moments["step"] == 1
