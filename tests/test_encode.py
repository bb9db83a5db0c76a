"""Encoding a data set: the same cache whatever the processes and however often they were killed; refusals in words."""

import copy
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from maskgen.data import TokenCache
from maskgen.data.arrays import NpzArrays
from maskgen.data.tokens import TokenCacheWriter, write_token_cache
from maskgen.pipelines import encode
from maskgen.pipelines.encode import encode_dataset
from maskgen.pipelines.store import fingerprint, load_tokenizer, save_tokenizer
from maskgen.tokenizer.model import Tokenizer

CONV = {"width": 8, "multipliers": [1, 2], "blocks": 1}
COUNT = 45


def tokenizer(quantizer=None, **coder):
    torch.manual_seed(0)
    quantizer = quantizer or {"codebook_size": 16, "dim": 4}
    return Tokenizer(encoder={**CONV, **coder}, quantizer=quantizer, decoder={**CONV, **coder}).eval()


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with `images.npz`, a data set of 45, and the tokenizer `model`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(encode, "_encode", encode._encode)  # both put back after `worker`
    rng = np.random.default_rng(0)
    np.savez("images.npz", images=rng.integers(0, 255, (COUNT, 8, 8, 3), np.uint8), labels=np.arange(COUNT) % 3)
    save_tokenizer(tokenizer(), tmp_path / "model")
    return tmp_path


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def command(out, *more):
    return ["-m", "maskgen", "encode", "model", out, "--data", "images.npz", "--batch-size", "2", *more]


def worker(out, flips, slow=0.0, rank=0, processes=1):
    """What a process of its own runs; `slow` seconds a batch, so that a kill comes while it works."""
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(processes))
    inner = encode._encode

    def encode_slowly(*arguments):
        for item in inner(*arguments):
            time.sleep(slow)
            yield item

    encode._encode = encode_slowly
    encode_dataset(load_tokenizer("model"), NpzArrays("images.npz"), out, 2, flips=flips)


def start(*arguments, **options):
    """`worker` in a forked process: no imports to wait for."""
    process = multiprocessing.get_context("fork").Process(target=worker, args=arguments, kwargs=options)
    process.start()
    return process


def test_codes_labels_and_mirrored_rows(here):
    model, data = load_tokenizer("model"), NpzArrays("images.npz")
    pixels = torch.stack([data[i]["pixels"] for i in range(COUNT)])
    plain, both = TokenCache(str(encode_dataset(model, data, "a", 4))), None
    both = TokenCache(str(encode_dataset(model, data, "b", 4, flips=True)))
    assert (len(plain), len(both)) == (COUNT, 2 * COUNT)
    assert plain.codes.dtype == np.uint16
    assert torch.equal(torch.from_numpy(plain.codes.astype(np.int64)), model.encode(pixels))
    assert np.array_equal(both.codes[:COUNT], plain.codes)
    assert torch.equal(torch.from_numpy(both.codes[COUNT:].astype(np.int64)), model.encode(pixels.flip(-1)))
    assert np.array_equal(both.labels, np.concatenate([data.labels, data.labels]))
    assert (both.meta["flips"], both.meta["images"], both.meta["tokenizer"]) == (True, COUNT, fingerprint(model))
    assert contents(here / "a").keys() == {"codes.npy", "labels.npy", "meta.json"}


@pytest.mark.train
def test_an_encoder_killed_at_any_moment_goes_on_and_ends_with_the_same_files(here):
    worker("whole", True)
    marks = []
    for moment in np.random.default_rng(int(time.time())).uniform(0.0, 0.5, 5):
        process = start("killed", True, slow=0.02)  # a second of work at the least
        while process.is_alive() and not (here / "killed/plan.json").exists():
            time.sleep(0.005)
        time.sleep(0.05 + moment)
        process.kill()
        process.join()
        assert process.exitcode in (-signal.SIGKILL, 0)
        if process.exitcode == 0:  # the kills before it left too little to do
            break
        with pytest.raises(FileNotFoundError):
            TokenCache("killed")
        marks.append(len(list((here / "killed/progress").iterdir())))
        (here / "killed/progress/0").unlink(missing_ok=True)  # as if it had died between writing and marking
    worker("killed", True)
    assert contents(here / "killed") == contents(here / "whole")
    assert marks


def test_two_processes_share_the_work_and_end_with_the_same_files(here):
    worker("whole", False)
    both = [start("shared", False, rank=rank, processes=2) for rank in (1, 0)]  # the first waits to be laid out for
    for process in both:
        process.join(120)
    assert [process.exitcode for process in both] == [0, 0]
    assert contents(here / "shared") == contents(here / "whole")


@pytest.mark.train
def test_accelerate_launches_two_processes(here):
    worker("whole", False)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    done = subprocess.run(
        [*launch, "--main_process_port", "0", *command("shared")],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert contents(here / "shared") == contents(here / "whole")


def test_each_process_does_its_own_chunks_and_another_number_of_them_goes_on(here, monkeypatch):
    """Rank 1 of 2 is stopped in its second chunk; three processes end what the two began."""
    model, data = load_tokenizer("model"), NpzArrays("images.npz")
    encode_dataset(model, data, "whole", 2)
    stopped = stops(model, after=6)
    TokenCacheWriter("cache", plan_of("whole"), COUNT, model.encode(data[0]["pixels"][None])[0], 6)
    monkeypatch.setattr(encode, "launched", lambda: (1, 2))
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(stopped, data, "cache", 2)
    assert {p.name for p in (here / "cache/progress").iterdir()} == {"1"}  # of 1, 3 and 5
    for rank in (0, 2):
        monkeypatch.setattr(TokenCacheWriter, "finish", lambda self: self.folder)  # does not wait for the others
        monkeypatch.setattr(encode, "launched", lambda rank=rank: (rank, 3))
        encode_dataset(model, data, "cache", 2)
    assert {p.name for p in (here / "cache/progress").iterdir()} == {"0", "1", "2", "3", "5"}
    monkeypatch.undo()
    monkeypatch.chdir(here)
    monkeypatch.setattr(encode, "launched", lambda: (1, 3))
    encode_dataset(model, data, "cache", 2)
    assert contents(here / "cache") == contents(here / "whole")


def plan_of(folder):
    with open(f"{folder}/meta.json") as file:
        return json.load(file)


def stops(model, after):
    """A copy of the tokenizer, interrupted after so many calls of encode."""
    model, calls = copy.deepcopy(model), itertools.count(1)
    inner = model.encode

    def encode(pixels):
        if next(calls) > after:
            raise KeyboardInterrupt
        return inner(pixels)

    model.encode = encode
    return model


def test_a_chunk_that_is_done_is_not_done_again(here):
    model, data = load_tokenizer("model"), NpzArrays("images.npz")
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(stops(model, after=1 + 4 * 4 + 2), data, "cache", 2)  # four chunks, and two batches of the fifth
    with pytest.raises(FileNotFoundError):
        TokenCache("cache")
    encode_dataset(stops(model, after=1 + 7), data, "cache", 2)  # 23 batches in all
    encode_dataset(stops(model, after=1), data, "cache", 2)  # whole: nothing to do
    assert len(TokenCache("cache")) == COUNT


def test_a_cache_of_another_making_is_neither_gone_on_with_nor_overwritten(here):
    model, data = load_tokenizer("model"), NpzArrays("images.npz")
    encode_dataset(model, data, "whole", 2)
    with pytest.raises(KeyboardInterrupt):
        encode_dataset(stops(model, after=8), data, "begun", 2)
    other = tokenizer()
    with torch.no_grad():
        other.quantizer.codebook[0] += 1
    np.savez("changed.npz", images=np.zeros((COUNT, 8, 8, 3), np.uint8), labels=np.arange(COUNT) % 3)
    before = {name: contents(here / name) for name in ("whole",)}
    for folder in ("whole", "begun"):
        for arguments, message in (
            ((other, data, folder, 2), f'tokenizer was "{fingerprint(model)}", is "{fingerprint(other)}"'),
            ((model, NpzArrays("changed.npz"), folder, 2), 'token cache: samples_digest was "'),
            ((model, data, folder, 3), "token cache: batch_size was 2, is 3. Give another folder"),
            ((model, data, folder, 2, 0, True), "token cache: flips was false, is true"),
            ((model, NpzArrays("images.npz", size=4), folder, 2), "image_size was [8, 8], is [4, 4]"),
        ):
            with pytest.raises(ValueError, match="holds another token cache") as caught:
                encode_dataset(*arguments)
            assert message in str(caught.value)
    assert contents(here / "whole") == before["whole"]


@pytest.mark.parametrize(
    ("quantizer", "shape", "dtype", "levels"),
    [
        ({"type": "fsq", "levels": [8, 5, 5, 5]}, (4, 4), np.uint16, 1),
        (
            {"type": "residual", "num_quantizers": 3, "quantizer": {"codebook_size": 16, "dim": 4}},
            (4, 4, 3),
            np.uint16,
            3,
        ),
        ({"type": "lfq", "bits": 18}, (4, 4), np.int32, 1),
        ({"type": "none", "dim": 4}, (4, 4, 4), np.float32, 1),
    ],
)
def test_every_kind_of_token_is_cached(here, quantizer, shape, dtype, levels):
    model, data = tokenizer(quantizer), NpzArrays("images.npz")
    cache = TokenCache(str(encode_dataset(model, data, "cache", 8, flips=True)))
    assert cache.codes.shape == (2 * COUNT, *shape)
    assert cache.codes.dtype == dtype
    assert (cache.grid, cache.levels, cache.codebook_size) == ((4, 4), levels, model.codebook_size)
    pixels = torch.stack([data[i]["pixels"] for i in range(8)])
    codes = torch.stack([cache[i]["codes"] for i in range(8)])
    assert codes.dtype == (torch.float32 if quantizer["type"] == "none" else torch.int64)
    assert torch.equal(codes, model.encode(pixels))


def test_patches_as_they_are_have_no_weights_and_are_cached(here):
    model = Tokenizer({"type": "patch", "patch": 4}, {"type": "none", "dim": 48}, {"type": "patch", "patch": 4}).eval()
    data = NpzArrays("images.npz")
    cache = TokenCache(str(encode_dataset(model, data, "cache")))
    assert (cache.codes.shape, cache.grid) == ((COUNT, 2, 2, 48), (2, 2))
    torch.testing.assert_close(model.decode(cache[3]["codes"][None])[0], data[3]["pixels"])


def test_a_cache_of_before_there_were_levels_is_read(tmp_path):
    codes = np.arange(24, dtype=np.uint16).reshape(2, 3, 4)
    np.save(tmp_path / "codes.npy", codes)
    np.save(tmp_path / "labels.npy", np.array([1, 0]))
    (tmp_path / "meta.json").write_text('{"codebook_size": 24, "class_names": ["a", "b"], "tokenizer": "0"}')
    cache = TokenCache(str(tmp_path))
    assert (cache.levels, cache.grid, len(cache), cache[0]["label"]) == (1, (3, 4), 2, 1)
    assert torch.equal(cache[1]["codes"], torch.arange(12, 24).view(3, 4))


# ------------------------------------------------------------------------------------------------------------- errors


def test_a_token_outside_the_codebook_is_neither_written_nor_read(tmp_path):
    codes = torch.zeros(2, 3, 4, dtype=torch.int64)
    codes[1, 2, 3] = 16
    arguments = (np.zeros(2, np.int64), (3, 4), 16, ["all"], "0")
    with pytest.raises(ValueError, match="codes run from 0 to 16; this codebook has 0 to 15"):
        write_token_cache(tmp_path, [codes], *arguments)
    with pytest.raises(FileNotFoundError):
        TokenCache(str(tmp_path))
    write_token_cache(tmp_path, [codes.clamp(max=15)], *arguments)
    raw = np.load(tmp_path / "codes.npy", mmap_mode="r+")
    raw[1, 0, 0] = 70  # a damaged disk
    raw.flush()
    cache = TokenCache(str(tmp_path))
    cache[0]
    with pytest.raises(ValueError, match=r"row 1 of .* holds code 70; .* 0 to 15, so the cache is damaged: remove it"):
        cache[1]


class Images:
    """Three images of zeros but for what is given of the second."""

    class_names, labels, names = ("all",), np.zeros(3, np.int64), ["a", "b", "c"]

    def __init__(self, channels=3, size=8, value=0.0):
        self.channels, self.size, self.value = channels, size, value

    def __len__(self):
        return 3

    def __getitem__(self, index):
        pixels = torch.zeros(self.channels, self.size, self.size)
        pixels[0, 0, 0] = self.value if index == 1 else 0.0
        return {"pixels": pixels, "label": 0}


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (Images(channels=1), "pixels have 1 channels; this tokenizer takes 3"),
        (Images(size=9), "each side must be a multiple of 2"),
        (Images(value=float("nan")), "image b holds NaN or infinity"),
        (Images(value=float("inf")), "image b holds NaN or infinity"),
    ],
)
def test_images_that_cannot_be_encoded_are_told_and_leave_no_cache(tmp_path, images, message):
    with pytest.raises(ValueError, match=message):
        encode_dataset(tokenizer(), images, tmp_path / "cache")
    with pytest.raises(FileNotFoundError):
        TokenCache(str(tmp_path / "cache"))
