"""What a refactor must not move: losses of tiny runs and codes of seeded samples, as recorded before it.

``scripts/record_behaviour.py compare`` asks for equality to 1e-6 on the machine of the record. Other CPUs differ in the
last bits, so the losses are compared here to 1e-4, relative, and pixels to 1e-3. Codes must be equal.
"""

import importlib.util
import sys
from pathlib import Path

import pytest
from jaxtyping import config

PATH = Path(__file__).parents[1] / "scripts" / "record_behaviour.py"
SPEC = importlib.util.spec_from_file_location("record_behaviour", PATH)
behaviour = importlib.util.module_from_spec(SPEC)
sys.modules["record_behaviour"] = behaviour  # its dataclasses look for their module
SPEC.loader.exec_module(behaviour)


@pytest.fixture(scope="module")
def shop():
    """A working folder. Shapes are not checked here, which halves the time; the other tests check them."""
    checked = config.jaxtyping_disable
    config.update("jaxtyping_disable", True)
    try:
        with behaviour.workshop() as folder:
            behaviour.bring(*behaviour.SHARED)
            yield folder
    finally:
        config.update("jaxtyping_disable", checked)


def check(results):
    moved = [result.line() for result in results if not result.right(1e-4, 1e-3)]
    assert not moved, "\n".join(moved)


@pytest.mark.parametrize("name", behaviour.SAMPLES)
def test_seeded_calls_give_the_recorded_codes(name, shop):
    check(behaviour.compare_samples(name, behaviour.FAST_CALLS if name == "bundled" else None))


@pytest.mark.parametrize("name", behaviour.FAST_RUNS)
def test_a_recorded_run_goes_on_with_the_recorded_losses(name, shop):
    check([behaviour.compare_run(name, steps=5)])


def test_optimizer_moments_of_a_recorded_run_are_taken_up(shop):
    check([behaviour.compare_run("emoji", start=10, steps=5)])


@pytest.mark.train
def test_nothing_has_moved(shop):
    for entry in behaviour.entries():
        kind, name = entry.split("/")
        if kind == "samples":
            check(behaviour.compare_samples(name))
        else:
            check([behaviour.compare_run(name, start) for start in behaviour.starts_of(name)])


def test_a_difference_is_found():
    wanted = [{"step": 1, "model/loss": 2.0, "model/l1": 1.0}, {"step": 2, "model/loss": 1.0, "holdout/loss": 1.0}]
    found = [{"step": 1, "model/loss": 2.0, "model/l1": 1.5}, {"step": 2, "model/loss": 1.00001, "holdout/loss": 1.0}]
    result = behaviour.compare_losses("run", found, wanted, last=True)
    assert result.relative == pytest.approx(1e-5)
    assert result.difference == 0.5
    assert not result.right()
    assert result.right(1e-4)
    assert not behaviour.compare_losses("run", found[:1], wanted, last=True).right(1e-4)
    assert behaviour.compare_losses("run", wanted, wanted, last=True).bitwise
