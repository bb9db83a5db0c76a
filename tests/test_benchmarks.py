"""What is common to the benchmarks: the documents show the committed numbers; and the comparison of inpainting."""

import inpainting
import pytest
import tables
import torch

from maskgen.evaluation.classifier import SmallClassifier


def test_documents_show_the_committed_results():
    shown = set()
    for document in tables.DOCUMENTS:
        text = document.read_text()
        assert tables.filled(text) == text, f"{document.name}: run python benchmarks/tables.py"
        shown |= {mark[1] for mark in tables.MARK.finditer(text)}
    assert shown == set(tables.TABLES)
    assert {path.stem for path in (tables.HERE / "results").glob("decode*.json")} <= shown


@pytest.mark.parametrize("kind", inpainting.MASKS)
def test_holes_hide_a_part(kind):
    hidden = inpainting.holes(kind, 5, 32)
    shares = hidden.flatten(1).float().mean(1)
    assert ((shares > 0.02) & (shares <= 0.5)).all()
    assert (len({row.numpy().tobytes() for row in hidden}) == 5) == (kind == "strokes")
    assert hidden.equal(inpainting.holes(kind, 5, 32))


def test_what_inpainting_is_compared_with_leaves_known_pixels_and_judges_them():
    pytest.importorskip("cv2")
    pixels = torch.randint(0, 256, (4, 3, 32, 32)) / 127.5 - 1
    hidden = inpainting.holes("strokes", 4, 32)
    classifier, categories = SmallClassifier(3, 9).eval(), torch.zeros(4, dtype=torch.long)
    for method in ("telea", "navier-stokes"):
        made = inpainting.opencv(pixels, hidden, method)
        found = inpainting.judge(classifier, pixels, made, hidden, categories)
        assert found["psnr_known"] is None  # not a byte differs
        assert found["psnr_hidden"] < 30
    hidden[0, 31, 0] = False
    made = torch.where(hidden[:, None], 0, pixels)
    made[0, 0, 31, 0] += 1 / 127.5 if made[0, 0, 31, 0] < 0 else -1 / 127.5  # one byte by one
    assert 60 < inpainting.judge(classifier, pixels, made, hidden, categories)["psnr_known"] < 100


def test_committed_inpainting_changed_no_known_pixel():
    entries = tables.results("inpainting")["entries"]
    assert {e["method"] for e in entries} >= {inpainting.OURS, "mean fill", "OpenCV, Telea"}
    assert all(e["psnr_known"] is None for e in entries if e["mask"] != "none")
