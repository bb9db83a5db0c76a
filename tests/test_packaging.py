"""The house of DESIGN section 2: what is importable, what is shipped, and what an import costs."""

import ast
import importlib
import os
import re
import subprocess
import sys
import zipfile
from importlib.metadata import requires
from pathlib import Path

import pytest

import maskgen

ROOT = Path(__file__).parents[1]


def python(*arguments, cwd=ROOT, **environment):
    """Standard output of a fresh interpreter; its warnings and errors fail the test."""
    env = {**os.environ, **environment}
    done = subprocess.run([sys.executable, *arguments], cwd=cwd, env=env, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


# --------------------------------------------------------------------------------------------- scripts are no packages


def test_folders_of_scripts_are_no_packages():
    for name in ("tokenizers/__init__.py", "sampling/__init__.py", "tests/__init__.py", "conftest.py"):
        assert not (ROOT / name).exists(), f"{name} would shadow or collect what it must not"
    assert (ROOT / "tokenizers").is_dir()
    assert (ROOT / "sampling").is_dir()


def test_a_package_called_tokenizers_wins_over_our_folder_from_the_root_of_the_repository(tmp_path):
    """A stand-in of Hugging Face's `tokenizers` at the end of the path, as in site-packages."""
    package = tmp_path / "tokenizers" / "__init__.py"
    package.parent.mkdir()
    package.write_text("")
    show = "import tokenizers; print(tokenizers.__file__)"
    assert python("-c", show, PYTHONPATH=str(tmp_path)) == str(package)
    module = tmp_path / "shown.py"
    module.write_text(show)
    assert python("-m", "shown", PYTHONPATH=str(tmp_path)) == str(package)
    listed = [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-p",
        "shown",
        "--collect-only",
        str(tmp_path / "none.py"),
    ]
    (tmp_path / "none.py").write_text("def test_none(): pass\n")
    assert str(package) in python(*listed, PYTHONPATH=str(tmp_path))


def test_hugging_faces_tokenizers_imports_from_the_root_of_the_repository():
    found = python("-c", "import tokenizers; print(getattr(tokenizers, '__file__', None))")
    if found == "None":
        pytest.skip("Hugging Face's tokenizers is not installed; a stand-in is tested above")
    assert not Path(found).is_relative_to(ROOT / "tokenizers")


def test_no_script_bears_the_name_of_a_dependency():
    """Its folder comes first on the path of a script: `import torch` beside torch.py would import that."""
    names = {re.match(r"[\w.-]+", r)[0].replace("-", "_").lower() for r in requires("maskgen")}
    assert {"torch", "torch_fidelity", "pyyaml", "xformers", "pytest"} <= names
    forbidden = names | {"yaml", "PIL", "tokenizers", "transformers"} | set(sys.stdlib_module_names)
    scripts = {p.stem for folder in ("tokenizers", "sampling", "scripts") for p in (ROOT / folder).glob("*.py")}
    assert scripts
    assert not scripts & forbidden


# ---------------------------------------------------------------------------------------------------------- the wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built offline with what is installed."""
    out = tmp_path_factory.mktemp("wheel")
    build = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
    name = python("-c", build, str(out)).splitlines()[-1]
    return out / name


@pytest.mark.wheel
def test_the_wheel_holds_only_maskgen_with_its_data(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        emoji = archive.getinfo("maskgen/data/emoji.npz").file_size
    tops = {name.split("/")[0] for name in names}
    assert tops == {"maskgen", f"maskgen-{maskgen.__version__}.dist-info"}
    shipped = {name for name in names if name.startswith("maskgen/")}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "maskgen").rglob("*.py")}
    assert {name for name in shipped if name.endswith(".py")} == modules
    configs = {f"maskgen/{p.relative_to(ROOT)}" for p in (ROOT / "configs").rglob("*.yaml")}
    assert configs
    assert {name for name in shipped if name.endswith(".yaml")} == configs
    assert emoji == (ROOT / "maskgen/data/emoji.npz").stat().st_size
    assert not [name for name in names if "__pycache__" in name or name.endswith(".pyc")]
    licences = {Path(name).name for name in names if "/licenses/" in name}
    assert licences == {"LICENSE", "NOTICE"}


@pytest.mark.wheel
def test_the_wheel_works_away_from_the_repository(wheel, tmp_path):
    """Its own copy is imported, and finds its configurations and images."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
        entry = archive.read(f"maskgen-{maskgen.__version__}.dist-info/entry_points.txt").decode()
    assert "maskgen = maskgen.cli:main" in entry
    show = (
        "import maskgen.config as c, maskgen.data.emoji as e; print(c.find('tokenizer/quickstart')); print(e.FILE); "
        "print(len(e.Emoji()))"
    )
    found = python("-c", show, cwd=tmp_path, PYTHONPATH=str(tmp_path)).splitlines()
    assert found[0] == str(tmp_path / "maskgen/configs/tokenizer/quickstart.yaml")
    assert found[1] == str(tmp_path / "maskgen/data/emoji.npz")
    assert int(found[2]) > 1000


# ----------------------------------------------------------------------------------------------------------- the tree


def test_the_tracked_tree_can_be_copied_to_a_gpu_machine():
    """Below 45 MiB: a machine that takes 64 MiB also gets the wheels of docs/gpu.md."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    sizes = {file: file.lstat().st_size for file in files if file.exists()}
    largest = sorted(sizes, key=sizes.__getitem__)[-5:]
    assert len(sizes) > 100
    assert sum(sizes.values()) < 45 * 2**20, f"remove or shrink files; the largest are {largest}"


# --------------------------------------------------------------------------------------------------------- the import


def test_importing_maskgen_is_light():
    heavy = ("torch", "diffusers", "accelerate", "numpy", "matplotlib", "pydantic", "yaml", "typer")
    show = f"import sys, maskgen; dir(maskgen); print([m for m in {heavy} if m in sys.modules])"
    assert python("-c", show) == "[]"
    heavy = ("torch", "diffusers", "accelerate", "gradio")
    command = f"import sys, maskgen.cli; print([m for m in {heavy} if m in sys.modules])"
    assert python("-c", command) == "[]"


def test_every_public_name_loads():
    for name in maskgen.__all__:
        assert getattr(maskgen, name) is not None
    assert set(maskgen.__all__) <= set(dir(maskgen))
    assert maskgen.Tokenizer.__module__ == "maskgen.tokenizer.model"
    with pytest.raises(AttributeError, match="module 'maskgen' has no attribute 'Tokeniser'"):
        maskgen.Tokeniser  # noqa: B018
    assert f'\nversion = "{maskgen.__version__}"\n' in (ROOT / "pyproject.toml").read_text()


def test_diffusers_finds_the_base_classes_in_this_package():
    """It takes a third-party component only where the package holds the name of the component's base."""
    from diffusers import ModelMixin, SchedulerMixin

    assert maskgen.ModelMixin is ModelMixin
    assert maskgen.SchedulerMixin is SchedulerMixin
    for component in (maskgen.Tokenizer, maskgen.MaskTransformer):
        module = importlib.import_module(component.__module__)
        assert module.ModelMixin is ModelMixin
    assert importlib.import_module(maskgen.MaskScheduler.__module__).SchedulerMixin is SchedulerMixin


# The floors of the house: a module may import its own floor's folder, `FREE`, and what is below.
FREE = {"maskgen", "registry", "config", "renamed", "upgrade", "conditioning", "images", "videos", "frozen"}
BELOW = {
    "data": set(),
    "tokenizer": {"transformer"},  # its attention and blocks: vision transformers are tokenizers too
    "mim": set(),
    "transformer": set(),
    "decoding": {"mim"},  # the schedules are the ratios' own functions
    "tasks": {"tokenizer"},
    "cli": {"data", "evaluation", "pipelines", "training", "app", "quickstart"},
    "app": {"data", "tokenizer", "mim", "transformer", "decoding", "tasks", "pipelines"},
    "evaluation": {"data", "tokenizer", "mim", "transformer", "decoding", "pipelines"},
    "pipelines": {"data", "tokenizer", "mim", "transformer", "decoding", "tasks"},
    "training": {"data", "tokenizer", "mim", "transformer", "decoding", "pipelines", "evaluation"},
}


@pytest.mark.parametrize("floor", sorted(BELOW))
def test_imports_run_one_way(floor):
    allowed = FREE | BELOW[floor] | {floor}
    for file in sorted((ROOT / "maskgen" / floor).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            names = [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            ours = {name.split(".")[1] if "." in name else name for name in names if name.split(".")[0] == "maskgen"}
            assert ours <= allowed, f"{file.relative_to(ROOT)} imports {sorted(ours - allowed)}"
