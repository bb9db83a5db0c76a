"""Folders saved by earlier versions: their configuration and weights are translated while they load."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn


def rename_on_load(module: nn.Module, rename: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Let `module.load_state_dict` take states of earlier versions, also where the module is part of a larger one.

    Args:
        module: the network; its own prefix in a larger state dict is removed before `rename` sees the keys.
        rename: a state dict with old keys -> one with the present keys; present keys must pass through unchanged.
    """

    def hook(_: Any, state: dict[str, Tensor], prefix: str, *rest: Any) -> None:
        own = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
        state.update({prefix + key: value for key, value in rename(own).items()})

    module.register_load_state_dict_pre_hook(hook)


def load_saved(
    cls: Any,
    load: Callable[..., Any],
    path: str | Path,
    is_old: Callable[[dict[str, Any]], bool],
    upgrade_config: Callable[[dict[str, Any]], dict[str, Any]],
    **options: Any,
) -> Any:
    """`load(path, **options)` for a folder of this version; for an older one, its translation.

    Args:
        cls: the model's class; its weights rename themselves (:func:`rename_on_load`).
        load: the inherited ``from_pretrained``.
        path: a folder with ``config.json`` and ``diffusion_pytorch_model.safetensors``, or a Hub name.
        is_old: whether a ``config.json`` is of an earlier version.
        upgrade_config: an old ``config.json`` -> the present arguments.
        options: of ``from_pretrained``; ``subfolder`` and ``torch_dtype`` also hold for old folders.
    """
    folder = Path(path, options.get("subfolder") or "")
    file = folder / "config.json"
    if not file.is_file():
        return load(path, **options)
    config = json.loads(file.read_text(encoding="utf-8"))
    if not is_old(config):
        return load(path, **options)
    model = cls.from_config(upgrade_config({k: v for k, v in config.items() if not k.startswith("_")}))
    model.load_state_dict(load_file(folder / "diffusion_pytorch_model.safetensors"))
    dtype = options.get("torch_dtype")
    model.register_to_config(_name_or_path=str(folder))
    if isinstance(dtype, torch.dtype):
        kept = cls._keep_in_fp32_modules or ()
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if tensor.is_floating_point() and not any(part in kept for part in name.split(".")):
                tensor.data = tensor.data.to(dtype)
    return model.eval()


def earlier_names(network: Any, prefix: str) -> dict[str, list[str]]:
    """The `names` of :func:`upgrade_optimizer` of a network that is part of a larger module, under `prefix`."""
    own = getattr(network, "earlier_names", None)
    names = {name: [name] for name, _ in network.named_parameters()} if own is None else own()
    return {prefix + old: [prefix + name for name in present] for old, present in names.items()}


def upgrade_optimizer(
    optimizer: Any, module: nn.Module, names: dict[str, list[str]], state: dict[str, Any]
) -> dict[str, Any]:
    """The state of `optimizer` as an earlier version saved it, with the present numbers of the parameters.

    PyTorch numbers parameters in the order of their registration, within each group.

    Args:
        module: the network that the optimizer trains.
        names: the earlier name of each parameter, in the earlier order, and its present names; more than one where the
            parameter was split along its first axis.
        state: the ``state_dict`` of the earlier version's optimizer.
    """
    own = {id(parameter): name for name, parameter in module.named_parameters()}
    made: dict[str, Any] = {"state": {}, "param_groups": []}
    after = 0
    for group, saved in zip(optimizer.param_groups, state["param_groups"]):
        number = {own[id(parameter)]: i for i, parameter in enumerate(group["params"], start=after)}
        after += len(number)
        earlier = [present for present in names.values() if present[0] in number]
        for old, present in zip(saved["params"], earlier, strict=True):
            for i, name in enumerate(present if old in state["state"] else ()):
                made["state"][number[name]] = {
                    key: value.chunk(len(present))[i].clone() if value.ndim else value.clone()
                    for key, value in state["state"][old].items()
                }
        made["param_groups"].append({**saved, "params": list(number.values())})
    return made
