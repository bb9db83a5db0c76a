"""Targets and losses of masked image modeling are the peers' (tests/golden), given the peers' own predictions.

No network runs here: what the peer's network gave is an output of its fixture, and an input of ours.
"""

import re
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from maskgen.mim.auxiliary import ClassDistillation, LossPrediction
from maskgen.mim.hog import HOG, hog
from maskgen.mim.objective import L1, MSE, SoftCrossEntropy
from maskgen.mim.targets import CentredSoftmax, Pixels, patchify
from recorded import Fixture, State, cases, computed, family, folders


def mae(f: Fixture) -> State:
    masked = f.outputs["mask"].bool()
    own, other = ("patch", "none") if f.config["norm_pix_loss"] else ("none", "patch")

    def loss(normalise: str) -> Tensor:
        target = Pixels(f.config["patch_size"], normalise=normalise)(f.inputs["image"])
        return MSE()(f.outputs["pred"], target, masked)["loss"]

    return {
        "patchified": patchify(f.inputs["image"], f.config["patch_size"]),
        "loss": loss(own),
        "loss_other_norm_pix": loss(other),
    }


def simmim(f: Fixture) -> State:
    target = Pixels(f.config["patch_size"], normalise="none")
    masked = f.inputs["mask"].flatten(1).bool()
    return {"loss": L1()(target(f.outputs["rec"]), target(f.inputs["image"]), masked)["loss"]}


def videomae(f: Fixture) -> State:
    mean, std = (torch.tensor(x).view(3, 1, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    video, masked = f.inputs["video"] * std + mean, f.inputs["mask"].bool()
    found = {}
    for name, normalise in (("norm", "patch_channel"), ("raw", "none")):
        target = Pixels(f.config["patch_size"], f.config["tubelet_size"], normalise)(video)
        predictions = torch.full_like(target, torch.nan)  # what does not count must not matter
        predictions[masked] = f.outputs["pred"].flatten(0, 1)
        found[f"target_{name}"] = target[masked]
        found[f"loss_{name}"] = MSE()(predictions, target, masked)["loss"]
    return found


def hpm(f: Fixture) -> State:
    """Recorded predictions stand in the order visible, masked."""
    masked = f.inputs["mask"].bool()
    hidden = int(masked[0].sum())

    def placed(x: Tensor) -> Tensor:
        everywhere = torch.zeros_like(x)
        everywhere[masked], everywhere[~masked] = x[:, -hidden:].flatten(0, 1), x[:, :-hidden].flatten(0, 1)
        return everywhere

    target = Pixels(f.config["patch_size"], normalise="patch" if f.config["norm_pix_loss"] else "none")
    pixels, predictions = target(f.inputs["image"]), placed(f.outputs["pix_pred"])
    losses, predicted = MSE().per_token(predictions, pixels), placed(f.outputs["loss_pred"])
    return {
        "loss_mean": MSE()(predictions, pixels, masked)["loss"],
        "loss_matrix": losses[masked],
        "learn_loss_relative": LossPrediction("relative")(predicted, losses, masked)["loss"],
        "learn_loss_absolute": LossPrediction("absolute")(predicted, losses, masked)["loss"],
    }


def ibot(f: Fixture) -> State:
    """A call of our softmax is an epoch here, as the temperature moves by epochs there."""
    c = f.config["loss"]
    warmup = c["warmup_teacher_temp_epochs"] - 1
    starts = {"": 0, "2": c["mim_start_epoch"]}
    softmax = {
        x: CentredSoftmax(
            f.outputs["teacher_cls"].shape[1] if x == "" else f.outputs["teacher_patch"].shape[2],
            c[f"teacher_temp{x}"],
            c[f"warmup_teacher_temp{x}"],
            warmup,
            c[f"center_momentum{x}"],
        ).train()
        for x in starts
    }
    for x, start in starts.items():
        softmax[x].calls.fill_(max(0, c["epoch"] - start))
        softmax[x].centre.copy_(f.weights[f"ibot_loss.center{x}"].flatten())
    teacher_cls = softmax[""](f.outputs["teacher_cls"])
    teacher_patch = softmax["2"](f.outputs["teacher_patch"].transpose(1, 2))

    crops = [f.outputs["student_cls"], *([f.outputs["student_local_cls"]] if c["nlcrops"] else [])]
    views = torch.cat(crops).unflatten(0, (c["ngcrops"] + c["nlcrops"], -1))
    of_class = ClassDistillation(c["student_temp"])(views, teacher_cls.unflatten(0, (c["ngcrops"], -1)))
    masked = torch.cat([f.inputs[f"mask_{i}"] for i in range(c["ngcrops"])]).flatten(1).bool()
    of_patch = SoftCrossEntropy(c["student_temp"])(f.outputs["student_patch"], teacher_patch, masked)
    cls, patch = c["lambda1"] * of_class["loss"], c["lambda2"] * of_patch["loss"]
    return {
        "loss_cls": cls,
        "loss_patch": patch,
        "loss": cls + patch,
        "center_after": softmax[""].centre,
        "center2_after": softmax["2"].centre,
    }


def maskfeat(f: Fixture) -> State:
    image, masked, found = f.inputs["image"], f.inputs["mask"].bool(), {}
    for name, window in (("plain", 0), ("gauss", f.config["gaussian_window"])):
        options = {"bins": f.config["nbins"], "cell": f.config["pool"], "window": window}
        labels = HOG(image.shape[-1] // f.config["feat_size"], **options)(image)
        found |= {f"hog_{name}": hog(image, **options), f"label_{name}": labels}
        found[f"label_masked_{name}"] = labels[masked]
    return found


NETWORK = (
    r"(latent|mask|ids_restore|pred|feat|head_logits|rec|encoder_out|pix_pred|loss_pred|guided_mask|teacher_|student_)"
)
FAMILIES: dict[str, Callable[[Fixture], State]] = {
    "mae/mae_vit": mae,
    "simmim/vit": simmim,
    "simmim/swin": simmim,
    "videomae/pretrain": videomae,
    "hpm/hpm": hpm,
    "ibot/ibot": ibot,
    "slowfast/maskfeat_hog": maskfeat,
}
FOLDERS = folders(FAMILIES)


@pytest.mark.parametrize(("name", "output"), cases(FOLDERS, lambda _, output: not re.match(NETWORK, output)))
def test_every_output_is_the_peers(name, output):
    fixture, found = computed(FOLDERS[name], FAMILIES[family(name)])
    fixture.check(output, found[output])


def test_all_families_are_there():
    assert {family(name) for name in FOLDERS} == set(FAMILIES)
