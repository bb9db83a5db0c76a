"""Configuration: every problem in one message, with its path and the nearest valid name."""

from functools import partial
from typing import Annotated, Any, Literal

import pytest

from maskgen.config import ConfigError, check, configs_folder, find, load, parameters, parse
from maskgen.data.source import open_dataset
from maskgen.registry import Part, build, choose, nearest
from maskgen.training.loop import Training
from maskgen.training.run import run, run_config

GOOD = """
name: good
stage:
  type: generator
  tokenizer: runs/tokenizer
  masking: {ratio: cosine}
data: {type: emoji, classes: [flags]}
training: {steps: 10}
"""


@pytest.fixture
def write(tmp_path):
    def write(text, name="run.yaml"):
        file = tmp_path / name
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    return write


def problems_of(file, *overrides):
    """The lines of the one message that a wrong configuration gives, the training never begun."""
    with pytest.raises(ConfigError) as error:
        run_config(file, list(overrides))
    head, *lines = str(error.value).splitlines()
    assert head == f"{file}: {len(lines)} problem{'s' * (len(lines) != 1)}"
    assert lines == [f"  - {problem}" for problem in error.value.problems]
    return error.value.problems


# --------------------------------------------------------------------------------------- five files, five messages


def test_unknown_keys_at_every_depth_name_the_nearest(write):
    file = write("""
name: wrong
stage:
  type: tokenizer
  l_1: 1.0
  tokenizer:
    encoder: {widht: 48, blocks: 1}
    quantiser: {codebook_size: 256}
data: {type: emoji, klasses: [flags]}
training: {steps: 10, learning-rate: 1.0e-3}
augmentation: {flip: 0.5}
""")
    found = problems_of(file)
    assert len(found) == 6
    assert "stage.l_1: unknown key; did you mean 'l1'? allowed: tokenizer, l1, l2, perceptual," in found[0]
    assert found[1].startswith("stage.tokenizer.encoder.widht: unknown key; did you mean 'width'? allowed: channels,")
    assert found[2] == (
        "stage.tokenizer.quantiser: unknown key; did you mean 'quantizer'? allowed: encoder, quantizer, decoder, target"
    )
    known = "classes, size, groups, variants, text_dim"
    assert found[3] == f"data.klasses: unknown key; did you mean 'classes'? allowed: {known}"
    assert found[4].startswith("training.learning-rate: unknown key; did you mean 'learning_rate'? allowed: steps,")
    assert found[5].startswith("augmentation: unknown key; did you mean 'augment'? allowed: name, stage, data,")


def test_wrong_types_are_told_with_what_was_found(write):
    file = write("""
name: [a, b]
stage:
  type: tokenizer
  l1: much
  tokenizer: {encoder: {multipliers: [1, two], width: true}, decoder: 5}
data: {type: emoji, size: 32.5}
training: {steps: ten, betas: [0.9], batch_size: null, learning_rate: 1e-3, ema: yes}
augment: [flip]
holdout: []
""")
    assert problems_of(file) == [
        "name: ['a', 'b']: input should be a valid string",
        "stage.l1: 'much': input should be a valid number, unable to parse string as a number",
        "stage.tokenizer.encoder.multipliers: [1, 'two']: item 2: input should be a valid integer, unable to parse "
        "string as an integer",
        "stage.tokenizer.encoder.width: True: input should be a number",
        "stage.tokenizer.decoder: a name or a mapping with 'type' is needed, found 5",
        "data.size: 32.5: input should be a valid integer, got a number with a fractional part",
        "training.steps: 'ten': input should be a valid integer, unable to parse string as an integer",
        "training.betas: [0.9]: item 2: field required",
        "training.batch_size: None: input should be a valid integer",
        "training.ema: True: input should be a number",
        "augment: a name or a mapping with 'type' is needed, found ['flip']",
        "holdout: []: input should be a valid integer",
    ]


def test_unknown_parts_name_the_nearest_and_all(write):
    file = write("""
name: wrong
stage:
  type: generator
  tokenizer: runs/tokenizer
  model: mask_transfomer
  masking: {ratio: cosin, sampler: {type: randon}, objective: {type: [cross_entropy]}, target: 3}
data: {type: emojis}
training: {steps: 10}
""")
    found = problems_of(file)
    assert (
        found[0] == "stage.model: unknown 'mask_transfomer'; did you mean 'mask_transformer'? allowed: mask_transformer"
    )
    assert found[1].startswith("stage.masking.ratio: unknown 'cosin'; did you mean 'cosine'? allowed: fixed, uniform,")
    assert found[2].startswith("stage.masking.sampler: unknown 'randon'; did you mean 'random'? allowed: random")
    assert found[3].startswith("stage.masking.objective: unknown ['cross_entropy']; allowed: cross_entropy, ")
    assert found[4] == "stage.masking.target: a name or a mapping with 'type' is needed, found 3"
    assert found[5].startswith(
        "data: unknown 'emojis'; did you mean 'emoji'? allowed: emoji, image_folder, tar_shards,"
    )
    assert len(found) == 6


def test_missing_and_repeated_keys_are_told_together(write):
    file = write("""
name: wrong
stage:
  type: generator
  model: {width: 64, depth: 2, width: 128}
data: {path: images}
name: again
training: {batch_size: 8}
""")
    found = problems_of(file)
    assert found[:2] == [
        "line 5: key 'width' is given twice; remove one",
        "line 7: key 'name' is given twice; remove one",
    ]
    assert found[2:] == [
        "stage.tokenizer: is required",
        "data.type: is required; allowed: emoji, image_folder, tar_shards, npz, idx, fashion_mnist, videos, tokens",
        "training.steps: is required",
    ]


def test_wrong_words_and_arguments_that_the_run_supplies_are_told(write):
    file = write("""
name: wrong
stage:
  type: generator
  tokenizer: runs/tokenizer
  dataset: emoji
  conditioning: [{type: class, count: 9}]
  model:
    tokens: {codebook_size: 512}
    block: {norm: layers, mlp: swiglou}
    conditioning: {pooled: 1, inputs: {}}
  scheduler: {mask_schedule: cosin, guidance_schedule: constant}
  masking: {ratio: {type: cosine, schedule: arccos}}
data: {type: emoji, groups: categories}
training: {steps: 10, precision: bf15, decay: null}
""")
    found = problems_of(file)
    assert found[0] == "stage.dataset: is known from the other parts of the run; remove it"
    assert found[1] == "stage.conditioning[0].count: is known from the other parts of the run; remove it"
    assert found[2] == "stage.model.tokens.codebook_size: is known from the other parts of the run; remove it"
    assert found[3] == "stage.model.block.norm: 'layers' is not allowed; did you mean 'layer'? allowed: layer, rms"
    assert found[4] == "stage.model.block.mlp: 'swiglou' is not allowed; did you mean 'swiglu'? allowed: swiglu, gelu"
    assert found[5] == "stage.model.conditioning.pooled: 1 is not allowed; allowed: adaln, adaln_shared, in_context"
    assert found[6] == "stage.model.conditioning.inputs: is known from the other parts of the run; remove it"
    assert found[7].startswith("stage.scheduler.mask_schedule: 'cosin' is not allowed; did you mean 'cosine'?")
    assert found[8] == "stage.masking.ratio.schedule: unknown key; allowed: none"
    assert (
        found[9] == "data.groups: 'categories' is not allowed; did you mean 'category'? allowed: category, subcategory"
    )
    assert found[10].startswith("training.precision: 'bf15' is not allowed; did you mean 'bf16'? allowed: auto, fp32,")
    assert found[11] == "training.decay: None is not allowed; allowed: cosine, constant"
    assert len(found) == 12


def test_options_of_earlier_versions_name_the_present_ones(write):
    model = "model: {heads: 2, groups: 2, condition: adaln, class_dropout: 0.2}"
    found = problems_of(
        write(GOOD.replace("masking: {ratio: cosine}", f"{model}\n  conditional: false\n  actions: true"))
    )
    wanted = [
        ("stage.conditional", "stage.conditioning (a list of conditioners: [class], or [] for none)"),
        ("stage.actions", "stage.conditioning (a list of conditioners: [actions])"),
        ("stage.model.heads", "stage.model.block.heads"),
        ("stage.model.groups", "stage.model.tokens.codes_per_position"),
        ("stage.model.condition", "stage.model.conditioning.pooled"),
    ]
    told = {problem.split(":")[0]: problem for problem in found}
    assert set(told) == {"stage.model.class_dropout", *(old for old, _ in wanted)}
    for old, new in wanted:
        assert told[old] == f"{old}: is now called {new}; rename it"
    assert "stage.conditioning: [{type: class, dropout: ...}]" in told["stage.model.class_dropout"]


def test_impossible_settings_of_the_loop_are_told_with_the_rest(write):
    found = problems_of(write(GOOD.replace("steps: 10", "steps: 0, clip: 0") + "oh: no\n"))
    assert found[:2] == ["training.steps must be at least 1, got 0", "training.clip must be above 0, got 0.0"]
    assert found[2].startswith("oh: unknown key; ")


# ---------------------------------------------------------------------------------------------------- malformed files


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "a mapping of settings (key: value) is needed, the file is empty"),
        ("# only a comment\n", "a mapping of settings (key: value) is needed, the file is empty"),
        ("null\n", "a mapping of settings (key: value) is needed, the file is empty"),
        ("- name: a\n- name: b\n", "a mapping of settings (key: value) is needed, found a list"),
        ("name\n", "a mapping of settings (key: value) is needed, found a str"),
        ("name: x\n\tstage: y\n", "found character '\\t' that cannot start any token (line 2, column 1); indent with"),
        ("name: [a\n", "not valid YAML: while parsing a flow sequence, expected ',' or ']'"),
        ("a: b: c\n", "not valid YAML: mapping values are not allowed here (line 1, column 5)"),
        ("a: *b\n", "found undefined alias 'b' (line 1, column 4)"),
        ("? [1]\n: 2\n", "found unhashable key (line 1, column 3)"),
        (
            "a: 1\n---\nb: 2\n",
            "expected a single document in the stream, but found another document (line 2, column 1)",
        ),
        ("a: !!python/object/apply:os.system [ls]\n", "could not determine a constructor for the tag"),
        (b"name: \xff\xfe\n", "not a text file in UTF-8"),
        ("name: \x00\n", "not valid YAML: unacceptable character"),
    ],
)
def test_files_that_are_no_settings_are_told_in_one_line(write, text, problem):
    (found,) = problems_of(write(text))
    assert problem in found


def test_empty_and_odd_values_are_told(write):
    assert problems_of(write("name:\nstage:\ndata:\ntraining:\n1: 2\n")) == [
        "name: None: input should be a valid string",
        "stage: a name or a mapping with 'type' is needed, found None",
        "data: a name or a mapping with 'type' is needed, found None",
        "training: a mapping of settings is needed, found None",
        "1: unknown key; allowed: name, stage, data, training, augment, holdout, folder",
    ]


def test_numbers_may_be_written_as_people_do(write):
    text = GOOD.replace(
        "steps: 10", "steps: 1e4, learning_rate: 3e-4, weight_decay: -0.0, clip: 1.E+2, warmup_steps: '5'"
    )
    training = check(run, load(write(text)), "x")["training"]
    assert (training.steps, training.learning_rate, training.clip, training.warmup_steps) == (10_000, 3e-4, 100.0, 5)
    assert isinstance(training.steps, int)
    assert isinstance(training, Training)
    assert parse("[1e-3, 1e3, -2E+1, 1.5e2, 12, 1e, e3, 1e3x, 1.2.3e4]") == (
        [1e-3, 1000.0, -20.0, 150.0, 12, "1e", "e3", "1e3x", "1.2.3e4"],
        [],
    )


def test_repeated_keys_are_found_in_lists_and_beside_anchors_and_merges_are_no_repetition():
    value, problems = parse("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {<<: *a}\n")
    assert value["b"] == {"x": 3, "y": 2}
    assert problems == []
    _, problems = parse("- {x: 1, 'x': 2}\n- {1: a, '1': b}\n")
    assert problems == ["line 1: key 'x' is given twice; remove one"]


# ------------------------------------------------------------------------------------------------- names, overrides


def test_overrides_are_laid_on_the_file(write):
    file = write(GOOD)
    config = load(
        file,
        ["training.steps=20", "stage.model.width=64", "data.classes=[flags, food]", "holdout=3", "name=a=b",
         "stage.masking.ratio.type=uniform", "stage.masking.ratio.low=0.5", "augment={flip: 0.5}", "training.clip=1e1"],
    )  # fmt: skip
    checked = check(run, config, file)
    assert checked["training"] == Training(steps=20, clip=10.0)
    assert checked["stage"]["model"] == {"type": "mask_transformer", "width": 64}
    assert checked["data"] == {"type": "emoji", "classes": ["flags", "food"]}
    assert checked["holdout"] == 3
    assert checked["name"] == "a=b"
    assert checked["augment"] == {"type": "standard", "flip": 0.5}
    assert checked["stage"]["masking"]["ratio"] == {"type": "uniform", "low": 0.5}
    assert load(file) == load(file, []) != config


def test_an_override_below_a_short_form_keeps_its_name(write):
    """`ratio: cosine` is short for `ratio: {type: cosine}`, in the file and in an earlier override alike."""
    assert load(write(GOOD), ["stage.masking.ratio.x=1"])["stage"]["masking"]["ratio"] == {"type": "cosine", "x": 1}
    short = ["stage.masking.ratio=truncated_normal", "stage.masking.ratio.mean=0.6"]
    checked = check(run, load(write(GOOD), short), "x")
    assert checked["stage"]["masking"]["ratio"] == {"type": "truncated_normal", "mean": 0.6}
    wrong = problems_of(write(GOOD), "stage.masking.ratio.low=0.5")
    assert wrong == ["stage.masking.ratio.low: unknown key; allowed: none"]


def test_an_override_fills_an_empty_section(write):
    assert load(write("training:\nname: x\n"), ["training.steps=3"])["training"] == {"steps": 3}


def test_wrong_overrides_are_told_together_with_the_rest(write):
    file = write(GOOD)
    assert problems_of(
        file, "training", "=3", "training.steps.x=1", "data.classes=[flags", "training.stepps=4", "--steps=5"
    ) == [
        "training: an override is written key.sub=value",
        "=3: an override is written key.sub=value",
        "training.steps.x=1: training.steps is a value, not a mapping, so it has no 'x'",
        "data.classes=[flags: not valid YAML: while parsing a flow sequence, expected ',' or ']', but got "
        "'<stream end>' (line 1, column 7)",
        *problems_of(file, "training.stepps=4"),
        "--steps: unknown key; did you mean 'stage'? allowed: name, stage, data, training, augment, holdout, folder",
    ]


def test_the_nearest_of_the_configurations_that_come_with_maskgen_is_named(tmp_path, monkeypatch):
    assert find("tokenizer/quickstart") == find("tokenizer/quickstart.yaml") == find(str(find("tokenizer/quickstart")))
    monkeypatch.chdir(tmp_path)
    (found,) = problems_of("tokenizer/quickstrat")
    known = ["generation/quickstart", "tokenizer/emoji", "tokenizer/quickstart"]
    assert found.startswith("no such file; did you mean 'tokenizer/quickstart'? maskgen comes with: ")
    assert all(name in found for name in known)
    (tmp_path / "folder.yaml").mkdir()
    assert problems_of("folder.yaml")[0].startswith("no such file; ")


CONFIGS = sorted(str(path.relative_to(configs_folder())) for path in configs_folder().rglob("*.yaml"))


@pytest.mark.parametrize("name", CONFIGS)
def test_every_configuration_that_comes_with_maskgen_is_right(name):
    config = load(name)
    checked = check(run, config, name)
    assert set(checked) == set(config)
    assert isinstance(checked["training"], Training)


# ------------------------------------------------------------------------------------------------------------ parts


class Wheel:
    def __init__(self, size: int = 1, tyre: Literal["soft", "hard"] = "soft"):
        self.size, self.tyre = size, tyre


class Car:
    def __init__(
        self,
        seats: int,
        wheel: Annotated[Any, Part({"wheel": Wheel, "big": partial(Wheel, size=9)}, default="wheel")] = {},  # noqa: B006
        spare: Annotated[Any, Part({"wheel": Wheel})] | None = None,
        names: list[str] | None = None,
    ):
        self.seats, self.wheel, self.spare = seats, wheel, spare


def test_check_gives_defaults_to_parts_and_types_to_leaves():
    assert check(Car, {"seats": "4", "wheel": {}, "spare": None, "names": ["a"]}, "x") == {
        "seats": 4,
        "wheel": {"type": "wheel"},
        "spare": None,
        "names": ["a"],
    }
    assert check(Car, {"seats": 4.0, "wheel": "big", "spare": "wheel"}, "x") == {
        "seats": 4,
        "wheel": {"type": "big"},
        "spare": {"type": "wheel"},
    }


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"seats": 1, "wheel": {"type": "big", "size": 3}}, "wheel.size: unknown key; allowed: tyre"),
        ({"seats": 1, "spare": {"size": 2}}, "spare.type: is required; allowed: wheel"),
        ({"seats": 1, "wheel": {"tyre": "hart"}}, "wheel.tyre: 'hart' is not allowed; did you mean 'hard'? "),
        ({}, "seats: is required"),
        ({"seats": 1, "names": ["a", 2]}, "names: ['a', 2]: item 2: input should be a valid string"),
    ],
)  # fmt: skip
def test_check_reads_the_constructors_own_signatures(config, problem):
    with pytest.raises(ConfigError) as error:
        check(Car, config, "x")
    assert len(error.value.problems) == 1
    assert error.value.problems[0].startswith(problem)


def test_parameters_leave_out_what_a_partial_has_bound():
    assert parameters(partial(Wheel, size=9)) == {"tyre": (Literal["soft", "hard"], False)}
    assert parameters(Car)["seats"] == (int, True)


def test_build_takes_names_mappings_and_ready_made_parts():
    part = Part({"wheel": Wheel, "big": partial(Wheel, size=9)}, given=("tyre",), default="wheel")
    ready = Wheel()
    assert build(part, ready, tyre="hard") is ready
    assert build(part, "big", tyre="hard").size == 9
    made = build(part, {"size": 3}, tyre="hard")
    assert (made.size, made.tyre) == (3, "hard")
    with pytest.raises(ValueError, match=r"unknown part 'wheal': did you mean 'wheel'\? choose one of wheel, big"):
        build(part, {"type": "wheal"})
    with pytest.raises(ValueError, match="unknown part None: choose one of wheel"):
        build(Part({"wheel": Wheel}), {"size": 3})


def test_nearest_is_silent_where_nothing_is_near():
    assert nearest("cosin", ["cosine", "linear"]) == "did you mean 'cosine'? "
    assert nearest("zzz", ["cosine", "linear"]) == ""
    assert nearest(3, ["cosine"]) == ""
    with pytest.raises(ValueError, match="unknown colour 'zzz': choose one of red, blue"):
        choose({"red": 1, "blue": 2}, "zzz", "colour")


# ----------------------------------------------------------------------------------------- data sets by what is typed


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("emojo", "unknown 'emojo'; did you mean 'emoji'? allowed: emoji,"),
        ("no/such/folder", "no such file or folder"),
        ("{type: emoji", "not valid YAML: while parsing a flow mapping"),
        ("{type: emoji, classes: 3, sise: 8}", "data.sise: unknown key; did you mean 'size'?"),
        ("{type: tokens, path: cache}", "its data are codes already; name the images with --data"),
        ("{}", "data.type: is required; allowed: emoji,"),
    ],
)
def test_data_that_cannot_be_opened_is_told_in_words(text, problem):
    with pytest.raises(ConfigError) as error:
        open_dataset(text)
    assert problem in str(error.value)


def test_data_by_name_by_mapping_and_by_run(tmp_path):
    assert open_dataset("emoji", size=16)[0]["pixels"].shape == (3, 16, 16)
    assert open_dataset("{type: emoji, classes: [flags]}").class_names == ["flags"]
    (tmp_path / "config.yaml").write_text("data: {type: emoji, classes: [food, flags]}\n")
    assert open_dataset(str(tmp_path)).class_names == ["food", "flags"]
    (tmp_path / "config.yaml").write_text("stage: nothing\n")
    with pytest.raises(ConfigError, match="names no data; is this a run of maskgen"):
        open_dataset(str(tmp_path))
    image = tmp_path / "a.png"
    image.write_bytes(b"")
    with pytest.raises(ConfigError, match=r"must be \.npz, \.tar or \.zip; give others as"):
        open_dataset(str(image))
    (tmp_path / "config.yaml").unlink()
    with pytest.raises(ConfigError, match="a folder of images needs a size: --size 256"):
        open_dataset(str(tmp_path))
