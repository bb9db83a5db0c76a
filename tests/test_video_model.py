"""A transformer of videos: actions beside frames, positions of time and space, masks of the future."""

import numpy as np
import pytest
import torch

import flat
from maskgen import MaskedImagePipeline, MaskedVideoPipeline, MaskScheduler, Tokenizer
from maskgen.config import configs_folder, load
from maskgen.data.augment import Augmentation
from maskgen.mim.core import Learner, MaskedModeling
from maskgen.pipelines.store import save_tokenizer
from maskgen.registry import build
from maskgen.training.loop import Training, train
from maskgen.training.metrics import read_metrics
from maskgen.training.run import STAGE
from maskgen.training.stages.generator import GeneratorStage

GRID = (3, 2, 4)


def model(**options):
    settings = {"codebook_size": 16, "grid": GRID, "width": 16, "depth": 2, "heads": 2, "action_dim": 2}
    made = flat.transformer(**{**settings, **options}).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return made


def told(network, actions):
    return network.conditioner({"actions": actions}, len(actions), GRID)


def inputs(batch=2):
    return torch.randint(16, (batch, *GRID)), torch.rand(batch, *GRID) < 0.5


def test_an_action_is_added_to_the_tokens_of_its_frame():
    """In windows of single frames each frame's predictions know of its own action alone."""
    network, (codes, masked) = model(windows=[[1, 0, 0]]), inputs()
    actions = torch.randn(2, 3, 2)
    other = actions.clone()
    other[:, 1] += 1
    a, b = (network(codes, masked, told(network, x)).predictions.unflatten(1, GRID) for x in (actions, other))
    assert torch.equal(a[:, [0, 2]], b[:, [0, 2]])
    assert ((a[:, 1] - b[:, 1]).abs().amax(-1) > 1e-4).all()


def test_actions_and_pruning_go_together():
    network, (codes, masked) = model(windows=[[1, 0, 0], [0, 1, 1]]), inputs()
    actions, at = torch.randn(2, 3, 2), torch.tensor([[1, 9, 20], [0, 3, 23]])
    given = told(network, actions)
    whole = network(codes, masked, given).predictions[torch.arange(2)[:, None], at]
    torch.testing.assert_close(network(codes, masked, given, predict_at=at).predictions, whole)


def test_layers_know_the_actions_too():
    network, (codes, _) = model(), inputs()
    given = told(network, torch.randn(2, 3, 2))
    shown = network(codes, torch.zeros_like(codes, dtype=torch.bool), given)
    torch.testing.assert_close(network.layers(codes, given)[-1], shown.features)


@pytest.mark.parametrize("actions", [torch.zeros(2, 2, 2), torch.zeros(2, 3, 1)])
def test_actions_that_do_not_fit_are_refused(actions):
    with pytest.raises(ValueError, match=r"reads 2 numbers for each of 3 frames: give \(batch, 3, 2\)"):
        told(model(), actions)


def test_actions_that_a_network_reads_are_needed():
    message = "this network reads actions, one per frame of the tokens: give actions"
    with pytest.raises(ValueError, match=message):
        model()(*inputs())
    with pytest.raises(ValueError, match=message):
        model().layers(inputs()[0])


def test_actions_that_nobody_reads_are_refused():
    with pytest.raises(ValueError, match="takes no actions: it is unconditional; leave actions out"):
        told(model(action_dim=0), torch.zeros(2, 3, 2))


def test_positions_are_the_sum_of_time_and_space():
    network = model(positions="learned_sum", rope=False, action_dim=0)
    whole = model(positions="learned", rope=False, action_dim=0)
    state = network.state_dict()
    time, space = state.pop("first_embedding"), state.pop("position_embedding")
    state["position_embedding"] = time[:, :, None, None] + space[:, None]
    whole.load_state_dict(state)
    codes, masked = inputs()
    torch.testing.assert_close(network(codes, masked).predictions, whole(codes, masked).predictions)
    with pytest.raises(ValueError, match="needs a grid of 2 axes or more"):
        model(grid=(6,), positions="learned_sum")


# --------------------------------------------------------------------------------------------------------- training


class Squares:
    """A square that goes right or left by a pixel a frame, as its action says, around the edges."""

    def __init__(self, count=16, frames=4, size=8, channels=1, side=2):
        self.class_names, self.labels = ["square"], [0] * count
        self.shape, self.side = (channels, frames, size, size), side

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        noise = torch.Generator().manual_seed(index)
        _, frames, size, _ = self.shape
        steps = torch.randint(2, (frames,), generator=noise) * 2 - 1
        x, y = torch.randint(size, (2,), generator=noise).tolist()
        pixels = -torch.ones(self.shape)
        for t in range(frames):
            rows, columns = ((torch.arange(self.side) + at) % size for at in (y, x))
            pixels[:, t, rows[:, None], columns] = 1
            x += int(steps[t])
        return {"pixels": pixels, "actions": steps[:, None].float(), "label": 0}


SIZES = {
    "width": 16,
    "heads": 2,
    "depth": 2,
    "blocks": 1,
    "middle_blocks": 1,
    "multipliers": [1, 2],
    "temporal": 1,
    "patch": 2,
    "codebook_size": 16,
    "bits": 4,
    "dim": 4,
    "windows": [[1, 0, 0], [0, 1, 1]],
    "context": 1,
    "decoder_depth": 1,
    "decoder_width": 16,
    "decoder_heads": 2,
    "unit": (1, 1, 1),
}
HIERA = {
    "width": 16,
    "heads": 2,
    "stages": [1, 1],
    "stem": {"stride": [2, 1, 1], "kernel": [3, 3, 3]},
    "pooling": {"pool": [1, 2, 2], "pools": 1, "unit": [1, 1, 1]},
}
COARSE = {"width": 8, "multipliers": [1, 2], "blocks": 1, "patch": 2}


def shrunk(part):
    if isinstance(part, list):
        return [shrunk(each) for each in part]
    if not isinstance(part, dict):
        return part
    small = {key: SIZES.get(key, shrunk(value)) for key, value in part.items()}
    if part.get("type") in ("prediction", "interpolation"):
        small["frames"] = 1
    return {**small, **HIERA} if part.get("type") == "hiera" else small


def trained(stage, data, folder):
    built = build(STAGE, stage, dataset=data, holdout=data)
    train(built, data, Training(steps=2, batch_size=4, log_every=1, precision="fp32"), folder, Augmentation())
    lines = read_metrics(folder / "metrics.jsonl")
    assert len(lines) == 2
    assert all(np.isfinite(value) for line in lines for value in line.values() if isinstance(value, float))
    return folder


@pytest.mark.train
@pytest.mark.parametrize("name", sorted(path.stem for path in (configs_folder() / "video").glob("*.yaml")))
def test_every_configuration_takes_two_steps(name, tmp_path):
    config = load(f"video/{name}", [])
    stage, channels = shrunk(config["stage"]), config["data"].get("channels", 3)
    if stage["type"] == "tokenizer":
        stage["perceptual"] = 0.0
        if "adversarial" in stage:
            stage["adversarial"] = {"start": 0, "width": 8, "layers": 1}
    elif stage["type"] == "generator":
        coder = {**COARSE, "channels": channels}
        stage["tokenizer"] = str(tmp_path / "tokenizer")
        save_tokenizer(Tokenizer(coder, {"codebook_size": 16, "dim": 4}, coder), tmp_path / "tokenizer")
        stage["scheduler"]["num_inference_steps"] = 2
    frames = 5 if name in ("causal_tokenizer", "magvit_tokenizer") else min(config["data"].get("frames", 4), 4)
    folder = trained(stage, Squares(4, frames, channels=channels), tmp_path / "run")
    if stage["type"] == "generator":
        assert MaskedVideoPipeline.from_pretrained(folder).size == (4, 8, 8)
        with pytest.raises(ValueError, match="use MaskedVideoPipeline"):
            MaskedImagePipeline.from_pretrained(folder)


def binary_tokenizer():
    """A pixel is a code: -1 is 0, and 1 is 1."""
    part = {"type": "patch", "patch": 1, "channels": 1}
    tokenizer = Tokenizer(part, {"codebook_size": 2, "dim": 1}, part).eval()
    tokenizer.quantizer.codebook.data.copy_(torch.tensor([[-1.0], [1.0]]))
    return tokenizer


def test_actions_reach_the_model_in_training_and_the_future_alone_is_hidden(tmp_path):
    save_tokenizer(binary_tokenizer(), tmp_path / "tokenizer")
    masking = {"ratio": {"type": "uniform", "low": 0.5}, "sampler": {"type": "frames", "context": 2}}
    model = {"width": 16, "depth": 1, "block": {"heads": 2}}
    settings = {"model": model, "masking": masking, "conditioning": ["actions"]}
    data = Squares(frames=4, size=4)
    stage = GeneratorStage(str(tmp_path / "tokenizer"), data, **settings)
    seen, told = [], []
    network = stage.modules["model"].network
    network.register_forward_pre_hook(lambda module, args: seen.append(args[1:]))
    network.conditioner.register_forward_pre_hook(lambda module, args: told.append(args[0]["actions"]))
    batch = torch.utils.data.default_collate([data[i] for i in range(8)])
    ((_, terms),) = stage.losses(batch, 0)
    (((masked, conditioning),), (actions,)) = seen, told
    assert torch.equal(actions, batch["actions"])
    vectors = network.conditioner["actions"].embedding(actions).repeat_interleave(16, 1)
    assert torch.equal(conditioning.features, vectors)
    assert not masked[:, :2].any()
    share = masked[:, 2:].float().flatten(1).mean(1)
    assert ((share >= 0.5) & (share <= 1)).all()
    assert terms["mask_ratio"] == pytest.approx(float(share.mean()) / 2)
    with pytest.raises(ValueError, match="reads 'actions'"):
        next(iter(stage.losses({"pixels": batch["pixels"]}, 0)))


@pytest.mark.train
def test_a_small_model_predicts_better_than_copying_and_reads_its_actions():
    """MaskViT's recipe: where the square goes only the actions say."""
    data, tokenizer = Squares(256, 3, 5), binary_tokenizer()
    everything = torch.utils.data.default_collate([data[i] for i in range(256)])
    codes = tokenizer.encode(everything["pixels"])
    torch.manual_seed(0)
    network = flat.transformer(2, (3, 5, 5), width=32, depth=2, heads=2, action_dim=1)
    sampler = {"type": "frames", "context": 1}
    core = MaskedModeling(
        {"type": "uniform", "low": 0.5}, sampler, objective={"type": "cross_entropy", "label_smoothing": 0.0}
    )
    learner = Learner(network, core)
    optimizer, noise = torch.optim.Adam(learner.parameters(), 5e-3), torch.Generator().manual_seed(0)
    for _ in range(120):
        rows = torch.randint(224, (32,), generator=noise)
        loss = learner(codes[rows], {"actions": everything["actions"][rows]}, generator=noise)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    pipeline = MaskedVideoPipeline(
        tokenizer, network.eval(), MaskScheduler(num_inference_steps=6, choice_temperature=0.0, temperature=0.0)
    )
    pipeline.set_progress_bar_config(disable=True)
    known, truth, actions = (everything[k][224:] for k in ("pixels", "pixels", "actions"))

    def error(actions):
        made = pipeline.predict(known[:, :, :1], 2, actions=actions, generator=torch.Generator(), output_type="pt")
        return float((made.frames.transpose(1, 2) * 2 - 1 - truth)[:, :, 1:].square().mean())

    copied = float((known[:, :, :1] - truth)[:, :, 1:].square().mean())
    assert error(actions) < 0.6 * copied
    assert error(-actions) > 1.5 * error(actions)


def test_videos_with_several_codes_a_place_are_predicted(tmp_path):
    coder = {**COARSE, "channels": 3}
    quantizer = {"type": "multichannel", "chunks": 2, "quantizer": {"codebook_size": 16, "dim": 2}}
    save_tokenizer(Tokenizer(coder, quantizer, coder), tmp_path / "tokenizer")
    stage = {
        "type": "generator",
        "tokenizer": str(tmp_path / "tokenizer"),
        "model": {
            "width": 16,
            "depth": 2,
            "tokens": {"codes_per_position": 2},
            "block": {"heads": 2, "windows": [[1, 0, 0], [0, 1, 1]]},
        },
        "masking": {"ratio": {"type": "uniform", "low": 0.5}, "sampler": {"type": "frames", "context": 2}},
        "conditioning": [],
    }
    pipeline = MaskedVideoPipeline.from_pretrained(trained(stage, Squares(4, 4, channels=3), tmp_path / "run"))
    clip = Squares(1, 4, channels=3)[0]["pixels"][None]
    made = pipeline.predict(clip[:, :, :2], 2, num_inference_steps=3, output_type="pt").frames
    assert made.shape == (1, 4, 3, *clip.shape[3:])
    assert torch.equal(made[:, :2].transpose(1, 2), (clip[:, :, :2] + 1) / 2)


def test_code_vectors_are_the_tokenizers_and_are_saved(tmp_path):
    coder = {**COARSE, "channels": 3}
    tokenizer = Tokenizer(coder, {"codebook_size": 16, "dim": 4}, coder)
    save_tokenizer(tokenizer, tmp_path / "tokenizer")
    stage = {"type": "generator", "tokenizer": str(tmp_path / "tokenizer"), "conditioning": [], "code_vectors": True}
    stage["model"] = {"width": 16, "depth": 2, "block": {"heads": 2}}
    folder = trained(stage, Squares(4, 4, channels=3), tmp_path / "run")
    network = MaskedVideoPipeline.from_pretrained(folder).transformer
    found, codebook = network.code_vectors.vectors, tokenizer.quantizer.codebook.detach()
    torch.testing.assert_close(found.mean(0), torch.zeros(4), atol=1e-5, rtol=0)
    torch.testing.assert_close(found.std(0), torch.ones(4), atol=1e-4, rtol=0)
    torch.testing.assert_close(found * codebook.std(0) + codebook.mean(0), codebook, atol=1e-4, rtol=1e-4)


def test_codes_of_one_vector_are_one_to_the_network():
    """But for its own table, which tells them apart as it learns to."""
    network = flat.transformer(8, (2, 2), width=16, depth=1, heads=2, code_dim=3).eval()
    vectors = torch.randn(8, 3)
    vectors[5] = vectors[2]
    network.code_vectors.take(vectors)
    torch.nn.init.zeros_(network.embedding.codes.weight)
    masked = torch.tensor([[[False, False], [False, True]]])
    a, b, c = (network(torch.tensor([[[k, 1], [0, 0]]]), masked).predictions for k in (2, 5, 3))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)
    assert torch.equal(a[..., 2], a[..., 5])
    with pytest.raises(
        ValueError, match=r"tokens\.code_dim needs one code per position .* set tokens\.codes_per_position: 1"
    ):
        flat.transformer(8, (2, 2), width=16, depth=1, heads=2, code_dim=3, groups=2)
