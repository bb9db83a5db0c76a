"""MaskScheduler and its presets: the loop with saved settings."""

import json
from functools import partial

import pytest
import torch

from decoders import CODES, canvas_and_mask, noise, oracle
from maskgen.decoding.guidance import guidance_scales
from maskgen.decoding.loop import decode
from maskgen.decoding.presets import PRESETS
from maskgen.decoding.scheduler import MaskScheduler
from maskgen.decoding.token_samplers import categorical


def test_scheduler_is_the_loop_with_saved_settings(tmp_path):
    canvas, mask = canvas_and_mask()
    scheduler = MaskScheduler("square", choice_temperature=2.0, num_inference_steps=5)
    scheduler.save_pretrained(tmp_path)
    loaded = MaskScheduler.from_pretrained(tmp_path)
    expected = decode(
        noise(),
        canvas,
        mask,
        steps=5,
        schedule="square",
        choice_temperature=2.0,
        generator=torch.Generator().manual_seed(3),
    )
    assert loaded.decode(noise(), canvas, mask, generator=torch.Generator().manual_seed(3)).equal(expected)
    swapped = MaskScheduler.from_config(loaded.config, mask_schedule="linear")
    assert (swapped.config.mask_schedule, swapped.config.choice_temperature) == ("linear", 2.0)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_save_load_and_decode(name, tmp_path):
    scheduler = MaskScheduler.preset(name, num_inference_steps=3)
    scheduler.save_pretrained(tmp_path)
    loaded = MaskScheduler.from_pretrained(tmp_path)
    canvas, mask = canvas_and_mask()
    answer = torch.randint(CODES, canvas.shape)
    assert loaded.decode(oracle(answer), canvas, mask, grid=(4, 6)).equal(torch.where(mask, answer, canvas))
    assert {k: loaded.config[k] for k in scheduler.config if k[0] != "_"} == {
        k: v for k, v in scheduler.config.items() if k[0] != "_"
    }
    with pytest.raises(ValueError, match="did you mean 'mage'"):
        MaskScheduler.preset("magee")


def test_a_configuration_from_before_the_options_still_loads(tmp_path):
    old = {
        "_class_name": "MaskScheduler", "guidance_scale": 1.5, "guidance_schedule": "linear", "mask_schedule": "cosine",
        "num_inference_steps": 16, "temperature": 1.0,
    }  # fmt: skip
    (tmp_path / "scheduler_config.json").write_text(json.dumps(old))
    config = MaskScheduler.from_pretrained(tmp_path).config
    assert (config.choice_temperature, config.order, config.counting, config.top_p) == (
        1.0,
        "confidence",
        "maskgit",
        1.0,
    )


def test_a_configuration_with_the_old_names_still_loads(tmp_path):
    """`draw_temperature` was the temperature of token sampling, and `temperature` the noise on the confidence."""
    old = {
        "_class_name": "MaskScheduler", "temperature": [9.5, 1.0], "anneal": "linspace", "draw_temperature": 2.0,
        "draw_anneal": "linear", "mask_schedule": "arccos",
    }  # fmt: skip
    (tmp_path / "scheduler_config.json").write_text(json.dumps(old))
    scheduler = MaskScheduler.from_pretrained(tmp_path)
    found = {name: scheduler.config[name] for name in ("choice_temperature", "choice_anneal", "temperature")}
    assert found == {"choice_temperature": [9.5, 1.0], "choice_anneal": "linspace", "temperature": 2.0}
    assert (scheduler.config.temperature_anneal, scheduler.config.mask_schedule) == ("linear", "arccos")
    scheduler.save_pretrained(tmp_path / "again")
    assert MaskScheduler.from_pretrained(tmp_path / "again").config.choice_temperature == [9.5, 1.0]


def test_the_scheduler_hands_every_setting_on():
    canvas, mask = canvas_and_mask()
    scheduler = MaskScheduler(
        "arccos", (2.0, 0.5), "power", 4, 3.0, 2.0, "halton", "confidence", False, "logit", "linspace", (3.0, 1.0),
        "linear", 6, 0.9, "rescale", 0.7,
    )  # fmt: skip
    seen = []

    def predict(step):
        seen.append(step.guidance_scale)
        return noise()(step)

    ours = scheduler.decode(predict, canvas, mask, generator=torch.Generator().manual_seed(3))
    assert seen == guidance_scales(3.0, "power", 4, 2.0)
    expected = decode(
        noise(), canvas, mask, steps=4, schedule="arccos", counting="halton", choice_temperature=(2.0, 0.5),
        choice_anneal="linspace", sample_tokens=partial(categorical, top_k=6, top_p=0.9, confidence="logit"),
        temperature=(3.0, 1.0), temperature_anneal="linear", remask="rescale", remask_eta=0.7,
        generator=torch.Generator().manual_seed(3),
    )  # fmt: skip
    assert ours.equal(expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"choice_temperature": -1.0}, "temperature at least 0"),
        ({"temperature": -1.0}, "temperature at least 0"),
        ({"top_p": 2.0}, "top_p"),
        ({"top_k": -2}, "top_k"),
        ({"remask_eta": -0.5}, "remask_eta"),
        ({"guidance_power": -1.0}, "guidance_power"),
        ({"guidance_scale": -1.0}, "negative"),
    ],
)
def test_the_scheduler_refuses_bad_settings_when_made(options, message):
    with pytest.raises(ValueError, match=message):
        MaskScheduler(**options)


@pytest.mark.parametrize(
    ("wrong", "remedy"), [("draw_temperature", "'temperature'"), ("choice_temp", "'choice_temperature'")]
)
def test_a_change_that_is_no_setting_is_an_error(wrong, remedy):
    with pytest.raises(ValueError, match=f"{wrong}.*{remedy}"):
        MaskScheduler.from_config(MaskScheduler().config, **{wrong: 2.0})
