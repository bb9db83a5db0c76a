"""The token critic and the autoregressive stage: what they learn, that their runs decode, and what they refuse."""

import json

import numpy as np
import pytest
import torch

import flat
from maskgen import MaskedImagePipeline, MaskScheduler, Tokenizer
from maskgen.config import load
from maskgen.data.tokens import write_token_cache
from maskgen.decoding.loop import decode
from maskgen.pipelines.predictor import CriticScores, by_rows
from maskgen.pipelines.raster import sample_raster
from maskgen.pipelines.store import fingerprint, load_tokenizer
from maskgen.training.loop import Training
from maskgen.training.metrics import read_metrics
from maskgen.training.run import run
from maskgen.training.stages.autoregressive import NextCode
from maskgen.training.stages.critic import Critic, CriticStage, ranking, started_from
from maskgen.transformer.autoregressive import CausalTransformer

CONV = {"width": 8, "multipliers": [1, 2], "blocks": 1}
MODEL = {"width": 32, "depth": 2, "block": {"heads": 2}}
SETTINGS = {
    "batch_size": 32,
    "learning_rate": 5e-3,
    "warmup_steps": 5,
    "ema": 0.9,
    "log_every": 10,
    "precision": "fp32",
}


def generator(num_classes=2, groups=1, quantizer=None):
    """A pipeline with an untrained transformer, which draws any code with one probability."""
    torch.manual_seed(0)
    tokenizer = Tokenizer(encoder=CONV, quantizer=quantizer or {"codebook_size": 16, "dim": 4}, decoder=CONV).eval()
    codes = 16 if groups == 1 else 8
    transformer = flat.transformer(codes, (4, 4), num_classes=num_classes, groups=groups, **MODEL).eval()
    names = ["low", "high"] if num_classes else None
    return MaskedImagePipeline(tokenizer, transformer, MaskScheduler(choice_temperature=0.5), names)


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    """Images of codes 0 and 1, or of 2 and 3, by class; and a generator that draws all 16 alike."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("toy"))
        pipeline = generator()
        pipeline.save_pretrained("generator")
        labels = np.arange(64) % 2
        codes = 2 * torch.from_numpy(labels)[:, None, None] + torch.randint(2, (64, 4, 4))
        mark = fingerprint(pipeline.vqvae)
        write_token_cache("tokens", [codes], labels, (4, 4), 16, ["low", "high"], mark)
        yield {"type": "tokens", "path": "tokens"}


@pytest.fixture(scope="module")
def trained(toy):
    stage = {"type": "critic", "generator": "generator", "model": MODEL}
    return run("critic", stage, toy, Training(40, **SETTINGS), holdout=8)


def test_a_critic_tells_wrong_tokens_from_right_ones(trained):
    pipeline = MaskedImagePipeline.from_pretrained(trained)
    assert read_metrics(trained / "metrics.jsonl")[-1]["holdout/ranking"] > 0.8
    wrong = torch.rand(4, 16) < 0.3
    tokens = torch.where(wrong, torch.randint(4, 16, (4, 16)), torch.tensor([[0], [2], [1], [3]]))
    for labels in ([0, 1, 0, 1], [2, 2, 2, 2]):
        scores = CriticScores(pipeline.critic, (4, 4), {"label": torch.tensor(labels)}, 4)(tokens, wrong)
        assert scores.shape == (4, 16)
        assert ranking(scores, wrong) > 0.9


def test_decoding_by_a_critic_takes_wrong_tokens_back(trained):
    """The generator draws any code; the critic keeps what it saw in images, the generator's confidence does not."""
    pipeline = MaskedImagePipeline.from_pretrained(trained)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.order == "critic"

    def right():
        options = {"num_inference_steps": 16, "generator": torch.Generator().manual_seed(0), "output_type": "codes"}
        return (pipeline([0, 1] * 8, **options).images < 4).float().mean()

    by_critic = right()
    pipeline.scheduler = MaskScheduler.from_config(pipeline.scheduler.config, order="confidence")
    assert right() < 0.4  # 4 codes of 16
    assert by_critic > 0.6


def test_the_drawn_are_the_generators_and_the_rest_is_real(toy):
    from maskgen.data.tokens import TokenCache

    data = TokenCache("tokens")
    stage = CriticStage("generator", data, model=MODEL)
    batch = torch.utils.data.default_collate([data[i] for i in range(16)])
    tokens, drawn, given = stage.examples(batch, torch.Generator().manual_seed(3))
    again = stage.examples(batch, torch.Generator().manual_seed(3))
    assert tokens.equal(again[0])
    assert drawn.equal(again[1])
    assert given["label"].equal(batch["label"])
    real = batch["codes"].flatten(1)
    assert tokens.flatten(1)[~drawn].equal(real[~drawn])
    assert (tokens.flatten(1)[drawn] != real[drawn]).float().mean() > 0.8  # 15 of 16
    assert drawn.any(1).all()
    assert len(drawn.sum(1).unique()) > 4  # by the schedule, row by row


@pytest.mark.parametrize("groups", [1, 2])
def test_without_a_model_it_starts_as_the_generator(toy, tmp_path, groups):
    pipeline = generator(groups=groups, quantizer={"codebook_size": 64, "dim": 4} if groups > 1 else None)
    torch.nn.init.normal_(pipeline.transformer.head.weight)
    network = started_from(pipeline.transformer, groups).eval()
    tokens = torch.randint(8, (2, 4, 4) if groups == 1 else (2, 4, 4, 2))
    nothing = torch.zeros(tokens.shape, dtype=torch.bool)
    mine, theirs = (
        model(tokens, nothing, model.conditioner({"label": torch.tensor([0, 1])}, 2, (4, 4)))
        for model in (network, pipeline.transformer.eval())
    )
    assert mine.features.equal(theirs.features)
    assert not mine.predictions.any()
    assert mine.predictions[0].numel() == tokens[0].numel()
    if groups == 1:
        stage = {"type": "critic", "generator": "generator"}
        folder = run("like", stage, toy, Training(20, **SETTINGS), holdout=8)
        assert read_metrics(folder / "metrics.jsonl")[-1]["holdout/ranking"] > 0.8


def test_the_loss_is_the_cross_entropy_of_all_tokens():
    network = flat.transformer(16, (4, 4), predictions=1, **MODEL).eval()
    torch.nn.init.normal_(network.head.weight, std=0.1)
    tokens, drawn = torch.randint(16, (3, 4, 4)), torch.rand(3, 16) < 0.4
    p = network(tokens, torch.zeros(3, 4, 4, dtype=torch.bool)).predictions[..., 0].sigmoid()
    by_hand = -torch.where(drawn, (1 - p).log(), p.log()).mean()
    torch.testing.assert_close(Critic(network)(tokens, drawn)["loss"], by_hand)


def test_ranking_counts_pairs_within_a_image():
    drawn = torch.tensor([[True, False, False, True], [False, False, False, False]])
    scores = torch.tensor([[0.0, 1.0, -1.0, -1.0], [5.0, 5.0, 5.0, 5.0]])
    assert ranking(scores, drawn) == pytest.approx((1 + 1 + 0 + 0.5) / 4)
    assert ranking(scores[1:], drawn[1:]).isnan()


def test_a_pipeline_with_and_without_a_critic_is_saved_and_loaded(tmp_path):
    plain = generator()
    plain.save_pretrained(tmp_path / "plain")
    assert MaskedImagePipeline.from_pretrained(tmp_path / "plain").critic is None
    old = json.loads((tmp_path / "plain" / "model_index.json").read_text())
    del old["critic"]  # saved before there were critics
    (tmp_path / "plain" / "model_index.json").write_text(json.dumps(old))
    loaded = MaskedImagePipeline.from_pretrained(tmp_path / "plain")
    assert loaded.critic is None
    critic = flat.transformer(16, (4, 4), num_classes=2, predictions=1, **MODEL)
    with_critic = MaskedImagePipeline(loaded.vqvae, loaded.transformer, loaded.scheduler, ["low", "high"], critic)
    with_critic.save_pretrained(tmp_path / "with")
    again = MaskedImagePipeline.from_pretrained(tmp_path / "with").critic
    assert again.config.out_dim == 1
    assert all(a.equal(b) for a, b in zip(critic.state_dict().values(), again.state_dict().values()))


def test_order_critic_without_a_critic_says_what_to_do():
    pipeline = generator()
    pipeline.scheduler = MaskScheduler(order="critic")
    with pytest.raises(ValueError, match="this pipeline has no critic: train one"):
        pipeline("high")


def test_known_tokens_stay_under_a_critic(trained):
    pipeline = MaskedImagePipeline.from_pretrained(trained)
    pipeline.set_progress_bar_config(disable=True)
    canvas, mask = torch.randint(16, (2, 4, 4)), torch.rand(2, 4, 4) < 0.5
    made = pipeline.complete(canvas, mask, [0, 1], 5, generator=torch.Generator().manual_seed(0))
    assert made[~mask].equal(canvas[~mask])
    assert not made.equal(canvas)


@pytest.mark.parametrize("classes", [None, 2])
def test_groups_of_bits_and_models_without_classes_are_judged(classes, toy):
    """Of 64 codes in two groups of 8: a score a group."""
    pipeline = generator(classes, groups=2, quantizer={"type": "lfq", "bits": 6})
    pipeline.save_pretrained("groups")
    mark, labels = fingerprint(pipeline.vqvae), np.arange(8) % 2
    write_token_cache("groups-tokens", [torch.randint(64, (8, 4, 4))], labels, (4, 4), 64, ["low", "high"], mark)
    stage = {"type": "critic", "generator": "groups", "model": MODEL}
    settings = Training(2, **{**SETTINGS, "batch_size": 4})
    folder = run(f"of-{classes}-classes", stage, {"type": "tokens", "path": "groups-tokens"}, settings, holdout=4)
    made = MaskedImagePipeline.from_pretrained(folder)
    assert made.critic.config.out_dim == 2
    assert made([0, 1] if classes else None, num_images_per_prompt=2, output_type="pt").images.shape[1:] == (3, 8, 8)


def test_a_critic_of_other_data_is_refused(toy):
    mark = fingerprint(load_tokenizer("generator"))
    for classes, tokenizer, message in (
        (["one", "two"], mark, "train the critic on the generator's data"),
        (["low", "high"], "0" * 16, "the token cache was made by tokenizer 0000000000000000"),
    ):
        write_token_cache("other", [torch.zeros(4, 4, 4).long()], np.arange(4) % 2, (4, 4), 16, classes, tokenizer)
        with pytest.raises(ValueError, match=message):
            run("wrong", {"type": "critic", "generator": "generator"}, {"type": "tokens", "path": "other"}, Training(1))


def test_a_critic_of_continuous_tokens_is_refused(toy, tmp_path):
    quantizer = {"type": "gaussian", "dim": 3}
    tokenizer = Tokenizer(encoder=CONV, quantizer=quantizer, decoder=CONV)
    transformer = flat.transformer(0, (4, 4), token_dim=3, predictions=14, **MODEL)
    MaskedImagePipeline(tokenizer, transformer, MaskScheduler()).save_pretrained("givt")
    with pytest.raises(ValueError, match="continuous tokens; use a generator of codes"):
        run("wrong", {"type": "critic", "generator": "givt"}, toy, Training(1))


# ---------------------------------------------------------------- the autoregressive baseline


def test_the_baseline_learns_and_draws(toy):
    """What it can know is the class's two codes: one bit a token."""
    stage = {"type": "autoregressive", "tokenizer": "generator", "model": MODEL}
    folder = run("raster", stage, toy, Training(40, **SETTINGS), holdout=8)
    assert read_metrics(folder / "metrics.jsonl")[-1]["holdout/loss"] == pytest.approx(np.log(2), abs=0.1)
    assert (folder / "samples" / "step_00000040.png").is_file()
    network, tokenizer = CausalTransformer.from_pretrained(folder / "pipeline" / "transformer"), load_tokenizer(folder)
    assert fingerprint(tokenizer) == fingerprint(load_tokenizer("generator"))
    seeds = [torch.Generator().manual_seed(i) for i in range(4)]
    made = sample_raster(tokenizer, network, [0, 1, 0, 1], seeds, guidance_scale=2.0)
    assert made.shape == (4, 3, 8, 8)
    alone = sample_raster(tokenizer, network, [1], [torch.Generator().manual_seed(3)], 2.0)
    torch.testing.assert_close(made[3:], alone, rtol=1e-4, atol=1e-4)


def test_the_baselines_loss_is_the_cross_entropy_of_every_code():
    network = flat.causal(16, (4, 4), **MODEL).eval()
    torch.nn.init.normal_(network.head.weight)
    codes = torch.randint(16, (2, 4, 4))
    p = network(codes).softmax(-1).gather(-1, codes.flatten(1)[..., None])
    terms = NextCode(network)(codes)
    torch.testing.assert_close(terms["loss"], -p.log().mean())
    assert 0 <= terms["accuracy"] < 0.5


def test_the_baseline_draws_without_classes(toy):
    stage = {"type": "autoregressive", "tokenizer": "generator", "model": MODEL, "conditioning": []}
    folder = run("free", stage, toy, Training(1, **SETTINGS))
    network = CausalTransformer.from_pretrained(folder / "pipeline" / "transformer")
    assert sample_raster(load_tokenizer(folder), network, None, count=3).shape == (3, 3, 8, 8)


def test_the_baseline_needs_one_code_a_place(toy):
    quantizer = {"type": "multichannel", "chunks": 2, "quantizer": {"codebook_size": 16, "dim": 2}}
    Tokenizer(encoder=CONV, quantizer=quantizer, decoder=CONV).save_pretrained("two/tokenizer")
    with pytest.raises(ValueError, match="must have one code per position"):
        run("wrong", {"type": "autoregressive", "tokenizer": "two"}, toy, Training(1))


@pytest.mark.parametrize("name", ["critic_emoji", "critic_imagenet256", "autoregressive_emoji"])
def test_the_configurations_train(name, toy):
    config = load(f"generation/{name}", [])
    stage = config["stage"]
    if "model" in stage:
        stage["model"] = {**stage["model"], **MODEL}
    stage["generator" if "generator" in stage else "tokenizer"] = "generator"
    folder = run(name, stage, toy, Training(1, **SETTINGS))
    assert np.isfinite(read_metrics(folder / "metrics.jsonl")[-1]["model/loss"])


def test_few_rows_at_a_time_are_all_rows_at_once(monkeypatch):
    """And one step of decode is one draw of every hidden token, which is what a critic is trained on."""
    network = flat.transformer(16, (4, 4), **MODEL).eval()
    torch.nn.init.normal_(network.head.weight)
    tokens, hidden = torch.randint(16, (5, 16)), torch.rand(5, 16) < 0.5
    whole = by_rows(network, tokens, hidden, None, None, (4, 4))
    monkeypatch.setattr("maskgen.pipelines.predictor.CACHED", 2 * 16 * 32)
    torch.testing.assert_close(by_rows(network, tokens, hidden, None, None, (4, 4)), whole)
    asked = []
    decode(lambda step: asked.append(step) or whole.gather(1, step.positions[..., None].expand(-1, -1, 16)),
           tokens, hidden, steps=1, choice_temperature=0.0)  # fmt: skip
    assert len(asked) == 1
    assert asked[0].hidden.equal(hidden)
