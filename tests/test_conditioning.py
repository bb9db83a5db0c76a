"""maskgen/conditioning, and a new conditioner from training to sampling that is defined here alone."""

import pytest
import torch
from torch import nn

from given import seeded
from maskgen import MaskedImagePipeline, Tokenizer
from maskgen.conditioning import (
    CONDITIONERS,
    ActionConditioner,
    ClassConditioner,
    Conditioner,
    Conditioners,
    Conditioning,
    merge,
    stack,
)
from maskgen.training.stages.generator import GeneratorStage

GRID = (4, 4)
COLOURS = torch.eye(3)
WIDTH = 16


class ColourConditioner(Conditioner):
    """The colour of an image, float (b, 3), as a pooled vector."""

    reads = "colour"
    pools = True

    def __init__(self, width, dropout=0.1):
        super().__init__(width, dropout)
        self.embedding = nn.Linear(3, width)
        self.nothing = nn.Parameter(torch.zeros(width))

    def embed(self, given, grid, dropped):
        vectors = self.embedding(given)
        if dropped is not None:
            vectors = torch.where(dropped[:, None], self.nothing, vectors)
        return Conditioning(pooled=vectors, keys=None if self.training else tuple(map(tuple, given.tolist())))

    def null(self, rows, grid):
        return Conditioning(pooled=self.nothing.expand(rows, -1), keys=None if self.training else ("no colour",) * rows)


class Painted(list):
    """Token grids of one code each, which the colour determines and the class does not."""

    class_names = ("ant", "bee")

    def __init__(self, count=24):
        self.labels = [i // 3 % 2 for i in range(count)]
        items = zip(range(count), self.labels)
        super().__init__(
            {"codes": torch.full(GRID, i % 3), "label": label, "colour": COLOURS[i % 3]} for i, label in items
        )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A stage of the conditioners class and colour, its learner, the gradient that reached the colours, the folder of
    its pipeline."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CONDITIONERS, "colour", ColourConditioner)
        torch.manual_seed(0)
        folder, small = tmp_path_factory.mktemp("colour"), {"width": 16, "multipliers": [1, 2], "blocks": 1}
        Tokenizer(encoder=small, quantizer={"codebook_size": 8, "dim": 4}, decoder=small).save_pretrained(
            folder / "tokenizer"
        )
        stage = GeneratorStage(
            str(folder / "tokenizer"),
            Painted(),
            model={"width": WIDTH, "depth": 2, "block": {"heads": 2}},
            conditioning=["class", "colour"],
            scheduler={"num_inference_steps": 3, "guidance_scale": 2.0},
        )
        learner = stage.modules["model"].train()
        optimizer = torch.optim.AdamW(learner.parameters(), lr=5e-3)
        batch = torch.utils.data.default_collate(list(stage.dataset))
        gradients = []
        for step in range(60):
            loss = next(stage.losses(batch, step))[1]["loss"]
            optimizer.zero_grad()
            loss.backward()
            gradients.append(learner.network.conditioner["colour"].embedding.weight.grad.norm())
            optimizer.step()
        stage.export(learner.eval(), folder / "pipeline")
        yield stage, learner, gradients, folder / "pipeline"


@pytest.fixture(scope="module")
def loaded(trained):
    pipeline = MaskedImagePipeline.from_pretrained(trained[-1])
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def complete(pipeline, colours, **options):
    blank = pipeline.layout.blank(len(colours), pipeline.device)
    mask = torch.ones(len(colours), *GRID, dtype=torch.bool)
    return pipeline.complete(blank, mask, conditions={"colour": colours}, generator=seeded(), **options)


def test_a_new_conditioner_is_built_by_its_name_and_learns(trained):
    stage, learner, gradients, _ = trained
    assert stage.reads == ("label", "colour")
    assert isinstance(learner.network.conditioner["colour"], ColourConditioner)
    assert max(gradients) > 0


def test_a_new_conditioner_is_saved_and_loaded(trained, loaded):
    saved = trained[1].network.state_dict()
    there = loaded.transformer.state_dict()
    assert there.keys() == saved.keys()
    assert all(there[name].equal(value) for name, value in saved.items())


def test_the_colour_changes_the_logits(loaded):
    network, hidden = loaded.transformer, torch.ones(3, *GRID, dtype=torch.bool)
    given = {"label": torch.tensor([0, 0, 0]), "colour": COLOURS}
    with torch.no_grad():
        logits = network(torch.zeros(3, *GRID, dtype=torch.long), hidden, network.conditioner(given, 3, GRID))
    assert (logits.predictions.mean(1)[:, :3].argmax(-1) == torch.arange(3)).all()


@pytest.mark.parametrize("scale", [1.0, 2.0])
@pytest.mark.parametrize("labels", [None, [0, 1, 0, 1, 0, 1]])
def test_samples_follow_the_colour(loaded, scale, labels):
    """With and without a class, with and without guidance."""
    codes = complete(loaded, COLOURS.repeat(2, 1), labels=labels, guidance_scale=scale)
    wanted = (torch.arange(6) % 3)[:, None, None]
    assert (codes == wanted).float().mean() > (0.7 if scale == 1 else 0.9)


def test_a_call_and_the_edits_take_conditions(loaded):
    """One entry per image, repeated for its copies; one class goes with all."""
    made = loaded("bee", 2, conditions={"colour": COLOURS}, generator=seeded(), output_type="codes").images
    assert len(made) == 6
    assert (made == torch.tensor([0, 0, 1, 1, 2, 2])[:, None, None]).float().mean() > 0.9
    image = torch.zeros(3, 8, 8)
    made = loaded.vary(
        image,
        1.0,
        conditions={"colour": COLOURS[1:2]},
        num_images_per_prompt=2,
        generator=seeded(),
        output_type="codes",
    ).images
    assert (made == 1).float().mean() > 0.9


def test_wrong_numbers_and_names_of_conditions_are_refused(loaded):
    with pytest.raises(ValueError, match="2 class_labels for 3 images"):
        loaded(["ant", "bee"], conditions={"colour": COLOURS})
    with pytest.raises(ValueError, match="3 entries of the condition 'colour' for 1 images"):
        loaded.vary(torch.zeros(3, 8, 8), conditions={"colour": COLOURS})
    with pytest.raises(ValueError, match="takes no size: it reads colour, label"):
        loaded(conditions={"size": COLOURS})


# --- Conditioning.


def vectors(*shape):
    return torch.randn(*shape, generator=seeded(sum(shape)))


def test_merge_adds_vectors_and_features_and_joins_sequences():
    a = Conditioning(vectors(2, 4), vectors(2, 3, 4), features=vectors(2, 5, 4), keys=("a", "b"))
    mask = torch.tensor([[True, False], [True, True]])
    b = Conditioning(vectors(2, 4) + 1, vectors(2, 2, 4), mask, keys=(0, 1))
    shown, at = torch.zeros(2, 5, dtype=torch.long), torch.ones(2, 5, dtype=torch.bool)
    c = Conditioning(features=vectors(2, 5, 4) + 1, shown=shown, shown_at=at, keys=(2, 2))
    made = merge([a, b, c])
    assert made.pooled.equal(a.pooled + b.pooled)
    assert made.tokens.equal(torch.cat([a.tokens, b.tokens], 1))
    assert made.mask.equal(torch.cat([torch.ones(2, 3, dtype=torch.bool), mask], 1))
    assert made.features.equal(a.features + c.features)
    assert made.shown is shown
    assert made.shown_at is at
    assert made.keys == (("a", 0, 2), ("b", 1, 2))


def test_merge_keeps_one_part_as_it_is_and_knows_no_keys_where_one_has_none():
    a = Conditioning(vectors(2, 4), keys=(0, 1))
    assert merge([a]) is a
    made = merge([a, Conditioning(features=vectors(2, 5, 4))])
    assert made.keys is None
    assert made.pooled is a.pooled
    assert made.tokens is made.mask is None


def test_stack_joins_rows_and_needs_the_same_fields():
    a, b = Conditioning(vectors(2, 4), keys=(0, 1)), Conditioning(vectors(3, 4), keys=(1, 2, 3))
    made = stack([a, b])
    assert made.pooled.equal(torch.cat([a.pooled, b.pooled]))
    assert made.keys == (0, 1, 1, 2, 3)
    assert made.features is None
    assert stack([a, Conditioning(vectors(1, 4))]).keys is None
    with pytest.raises(ValueError, match="have no features"):
        stack([a, Conditioning(vectors(2, 4), features=vectors(2, 5, 4))])


@pytest.mark.parametrize("index", [slice(1, 3), torch.tensor([2, 0])])
def test_rows_takes_tensors_and_keys(index):
    a = Conditioning(vectors(3, 4), features=vectors(3, 5, 4), keys=("a", "b", "c"))
    made = a.rows(index)
    assert made.pooled.equal(a.pooled[index])
    assert made.features.equal(a.features[index])
    assert made.keys == (("b", "c") if isinstance(index, slice) else ("c", "a"))
    assert made.tokens is None


# --- Conditioners.


def test_keys_are_equal_where_conditions_are_and_absent_in_training():
    part = ClassConditioner(WIDTH, 3)
    labels = torch.tensor([2, 0, 2])
    assert part(labels, GRID).keys is None
    assert part.eval()(labels, GRID).keys == (2, 0, 2)
    actions = ActionConditioner(WIDTH, 2).eval()(torch.tensor([[[0.0, 1]], [[1.0, 1]], [[0.0, 1]]]), (1, 2, 2)).keys
    assert actions[0] == actions[2] != actions[1]


def test_dropout_gives_the_null_condition_with_its_probability():
    part = ClassConditioner(WIDTH, 3, dropout=0.25)
    labels = torch.zeros(4000, dtype=torch.long)
    dropped = (part(labels, GRID).pooled == part.embedding.weight[3]).all(1)
    assert dropped.float().mean() == pytest.approx(0.25, abs=0.03)
    assert part(labels, GRID).pooled[~dropped].shape[1] == WIDTH
    assert (part.eval()(labels, GRID).pooled == part.embedding.weight[0]).all()


@pytest.mark.parametrize("dropout", [0.0, 1.0])
def test_dropout_of_no_row_and_of_every_row(dropout):
    part = ClassConditioner(WIDTH, 3, dropout=dropout)
    wanted = part.embedding.weight[3 if dropout else 1].expand(8, -1)
    assert part(torch.ones(8, dtype=torch.long), GRID).pooled.equal(wanted)


def both():
    return Conditioners({"label": ClassConditioner(WIDTH, 3), "colour": ColourConditioner(WIDTH)}).eval()


def test_what_is_missing_is_null():
    parts, labels = both(), torch.tensor([1, 2])
    label, colour = parts["label"], parts["colour"]
    assert tuple(parts) == ("label", "colour")
    for given in ({"label": labels}, {"label": labels, "colour": None}):
        assert parts(given, 2, GRID).pooled.equal(label.embedding.weight[labels] + colour.nothing)
    nothing = (label.embedding.weight[3] + colour.nothing).expand(2, -1)
    for made in (parts(None, 2, GRID), parts.null({"label": labels, "colour": COLOURS[:2]}, 2, GRID)):
        assert made.pooled.equal(nothing)
        assert made.keys == ((3, "no colour"),) * 2


def test_the_null_condition_keeps_what_cannot_be_left_out():
    parts = Conditioners({"label": ClassConditioner(WIDTH, 3), "actions": ActionConditioner(WIDTH, 2)}).eval()
    given = {"label": torch.tensor([1]), "actions": vectors(1, 2, 2)}
    grid = (2, 2, 2)
    assert parts.null(given, 1, grid).features.equal(parts(given, 1, grid).features)
    assert not parts.null(given, 1, grid).pooled.equal(parts(given, 1, grid).pooled)
    assert parts.guided
    assert not Conditioners({"actions": ActionConditioner(WIDTH, 2)}).guided
    with pytest.raises(ValueError, match="give actions"):
        parts({"label": torch.tensor([1])}, 1, grid)
    with pytest.raises(ValueError, match=r"reads 2 numbers for each of 2 frames: give \(batch, 2, 2\)"):
        parts({"actions": vectors(1, 3, 2)}, 1, grid)


def test_unknown_inputs_are_refused():
    with pytest.raises(ValueError, match="takes no size, text: it reads label, colour; leave size, text out"):
        both()({"size": COLOURS, "text": COLOURS}, 3, GRID)
    with pytest.raises(ValueError, match="takes no label: it is unconditional"):
        Conditioners()({"label": torch.tensor([0])}, 1, GRID)
    assert Conditioners()(None, 1, GRID) is None
