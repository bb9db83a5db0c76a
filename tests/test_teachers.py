"""Teachers: one that follows the student, a run that is frozen, and what they are asked for."""

import numpy as np
import pytest
import torch

from flat import spec, transformer
from maskgen.pipelines.backbone import save_backbone
from maskgen.training.loop import Training
from maskgen.training.metrics import read_metrics
from maskgen.training.run import run
from maskgen.training.stages.representation import patches
from maskgen.training.teachers import EMATeacher, RunTeacher

MODEL = spec(width=16, depth=2, heads=2, registers=1)
IBOT = {
    "type": "representation",
    "tokens": {"type": "patches", "patch": 4},
    "model": {**MODEL, "head": {"type": "projector", "hidden": 8, "bottleneck": 4}, "cls_token_head": True},
    "teacher": {"type": "ema", "momentum": 0.9},
    "masking": {
        "ratio": {"type": "mixture"},
        "sampler": {"type": "attention", "least": 0},
        "target": {"type": "centred_softmax", "dim": 10},
        "objective": {"type": "soft_cross_entropy"},
        "auxiliary": [{"type": "class_distillation", "prototypes": 10}],
    },
}
VIEWS = {"type": "views", "small": 2, "small_size": 8}
SETTINGS = {"batch_size": 8, "log_every": 1, "precision": "fp32", "checkpoint_every": 3, "decay": "constant"}


def network(**options):
    return transformer(0, (4, 4), token_dim=48, width=16, depth=3, heads=2, **options)


@pytest.fixture
def data(colours):
    return colours(side=16, noise=70)


def test_the_average_follows_the_student_by_its_momentum():
    student = network(registers=1)
    teacher = EMATeacher(0.9, 1.0)
    teacher.follow(student)
    before = teacher.network.head.weight.clone()
    with torch.no_grad():
        student.head.weight += 1
    teacher.update(student, 0.0)
    torch.testing.assert_close(teacher.network.head.weight, before + 0.1)
    teacher.update(student, 1.0)  # momentum 1 at the end
    torch.testing.assert_close(teacher.network.head.weight, before + 0.1)
    assert not any(p.requires_grad for p in teacher.parameters())
    with pytest.raises(ValueError, match="0 <= momentum <= final <= 1"):
        EMATeacher(0.99, 0.9)


def test_a_run_with_a_teacher_goes_on_exactly_where_it_was_stopped(data, monkeypatch):
    """Teacher, centres and their counts come back from the checkpoint."""
    from maskgen.training import loop

    whole = run("whole", IBOT, data, Training(steps=6, **SETTINGS), augment=VIEWS)
    saved, save = [], loop.save_checkpoint

    def stop_after_three(folder, step, *rest):
        saved.append(step)
        found = save(folder, step, *rest)
        if step == 3:
            raise KeyboardInterrupt
        return found

    monkeypatch.setattr(loop, "save_checkpoint", stop_after_three)
    with pytest.raises(KeyboardInterrupt):
        run("halves", IBOT, data, Training(steps=6, **SETTINGS), augment=VIEWS)
    monkeypatch.setattr(loop, "save_checkpoint", save)
    halves = run("halves", IBOT, data, Training(steps=6, **SETTINGS), augment=VIEWS)
    for name in ("model", "teacher", "ema"):
        files = [(f / "checkpoints/step_00000006" / f"{name}.safetensors").read_bytes() for f in (whole, halves)]
        assert files[0] == files[1], name


def test_the_teacher_lags_behind_the_student_and_views_reach_the_terms(data):
    from safetensors.torch import load_file

    folder = run("ibot", IBOT, data, Training(steps=3, **SETTINGS), augment=VIEWS)
    last = folder / "checkpoints" / "step_00000003"
    student, teacher = load_file(last / "model.safetensors"), load_file(last / "teacher.safetensors")
    name = "blocks.0.mlp.fc2.weight"
    assert not torch.equal(student[f"network.{name}"], teacher[f"network.{name}"])
    assert student["masking.target.calls"] == 3
    assert student["masking.auxiliary.class_distillation.softmax.calls"] == 3
    line = read_metrics(folder / "metrics.jsonl")[-1]
    assert np.isfinite(line["model/class_distillation/loss"])


def test_a_frozen_run_is_a_teacher(data):
    mae = {**IBOT, "model": MODEL, "teacher": None}
    mae["masking"] = {"target": {"type": "pixels", "patch": 4}, "objective": "mse"}
    folder = run("mae", mae, data, Training(steps=1, **SETTINGS))
    teacher = RunTeacher(str(folder), layers=2)
    sources = teacher.sources(torch.rand(2, 3, 16, 16), (4, 4))
    assert [x.shape for x in sources["features"]] == [(2, 16, 4, 4)] * 2
    assert [x.shape for x in sources["class_features"]] == [(2, 16, 1, 1)] * 2
    assert sources["attention"].shape == (2, 16)
    finer = teacher.sources(torch.rand(2, 3, 16, 16), (8, 8))
    assert finer["features"][0].shape == (2, 16, 8, 8)
    assert finer["attention"].shape == (2, 64)
    with pytest.raises(ValueError, match=r"teacher\.layers is 3; .*from 1 to 2"):
        RunTeacher(str(folder), layers=3)


@pytest.mark.parametrize("model", [{"registers": 1}, {}], ids=["register", "no prefix"])
def test_a_run_whose_classes_modulate_it_is_a_teacher_of_features(data, tmp_path, model):
    """Its class token would not be one, and without a prefix there is none."""
    save_backbone(patches(4), network(num_classes=3, **model), tmp_path / "taught" / "pipeline")
    sources = RunTeacher(str(tmp_path / "taught")).sources(torch.rand(2, 3, 16, 16), (4, 4))
    assert set(sources) == {"features"}
    assert sources["features"][0].shape == (2, 16, 4, 4)


def test_samplers_say_which_teacher_they_need(data):
    lost = {**IBOT, "model": MODEL, "teacher": None}
    lost["masking"] = {"sampler": "loss", "target": {"type": "pixels", "patch": 4}, "objective": "mse"}
    with pytest.raises(ValueError, match="teacher's losses: set stage"):
        run("lost", lost, data, Training(steps=1, **SETTINGS))
