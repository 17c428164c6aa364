"""The embedded pipelines as single files, with the tensor names of the checkpoints of SD1.5, SD2.1 and SDXL."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

_Tensors = Mapping[str, Any]

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "self_attn.out_proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
}


def write_single_file(folder: Path, pipe: str, path: Path) -> None:
    """Write the weights of a diffusers folder as one checkpoint."""
    tensors = {
        **{f"model.diffusion_model.{name}": value for name, value in _unet(_read(folder, "unet"))},
        **{f"first_stage_model.{name}": value for name, value in _vae(_read(folder, "vae"))},
        **dict(_texts(folder, pipe)),
    }
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, path)


def write_vae_file(folder: Path, path: Path) -> None:
    """Write the VAE alone, as single VAE files have it."""
    save_file({name: np.ascontiguousarray(value) for name, value in _vae(_read(folder, "vae"))}, path)


def _read(folder: Path, component: str) -> _Tensors:
    return load_file(next((folder / component).glob("*.safetensors")))


def _renamed(name: str, names: Mapping[str, str]) -> str:
    found = next((old for old in names if name.startswith(f"{old}.")), None)
    return name if found is None else names[found] + name.removeprefix(found)


def _unet(tensors: _Tensors) -> Iterator[tuple[str, Any]]:
    attending = {match[0] for name in tensors if (match := re.match(r"up_blocks\.\d+(?=\.attentions)", name))}
    for name, value in tensors.items():
        yield _unet_name(name, attending), value


def _unet_name(name: str, attending: set[str]) -> str:
    if match := re.fullmatch(r"(down|up|mid)_blocks?\.(?:(\d+)\.)?(resnets|attentions)\.(\d+)\.(.*)", name):
        side, block, kind, place, rest = match.groups()
        rest = _renamed(rest, _RESNET) if kind == "resnets" else rest
        if side == "mid":
            return f"middle_block.{1 if kind == 'attentions' else 2 * int(place)}.{rest}"
        number = 3 * int(block) + int(place) + (side == "down")
        return f"{'input' if side == 'down' else 'output'}_blocks.{number}.{int(kind == 'attentions')}.{rest}"
    if match := re.fullmatch(r"down_blocks\.(\d+)\.downsamplers\.0\.conv\.(.*)", name):
        return f"input_blocks.{3 * int(match[1]) + 3}.0.op.{match[2]}"
    if match := re.fullmatch(r"(up_blocks\.(\d+))\.upsamplers\.0\.(.*)", name):
        behind = 2 if match[1] in attending else 1
        return f"output_blocks.{3 * int(match[2]) + 2}.{behind}.{match[3]}"
    return _renamed(name, _UNET_ENDS)


def _vae(tensors: _Tensors) -> Iterator[tuple[str, Any]]:
    blocks = len({name.split(".")[2] for name in tensors if name.startswith("decoder.up_blocks.")})
    for name, value in tensors.items():
        if "mid_block.attentions.0." in name:
            side, _, rest = name.partition(".mid_block.attentions.0.")
            is_projection = rest.endswith("weight") and not rest.startswith("group_norm")
            yield (
                f"{side}.mid.attn_1.{_renamed(rest, _VAE_ATTENTION)}",
                value[..., None, None] if is_projection else value,
            )
            continue
        name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
        name = re.sub(r"down_blocks\.(\d+)", r"down.\1", name)
        name = re.sub(r"up_blocks\.(\d+)", lambda match: f"up.{blocks - 1 - int(match[1])}", name)
        name = name.replace(".resnets.", ".block.").replace(".downsamplers.0.", ".downsample.")
        name = name.replace(".upsamplers.0.", ".upsample.").replace("conv_norm_out", "norm_out")
        yield name.replace("conv_shortcut", "nin_shortcut"), value


def _texts(folder: Path, pipe: str) -> Iterator[tuple[str, Any]]:
    first = _read(folder, "text_encoder")
    if pipe == "SD2.1":
        yield from _open_clip(first, "cond_stage_model.model.")
        return
    prefix = "cond_stage_model.transformer." if pipe == "SD1.5" else "conditioner.embedders.0.transformer."
    for name, value in first.items():
        yield prefix + name, value
    if pipe == "SDXL":
        yield from _open_clip(_read(folder, "text_encoder_2"), "conditioner.embedders.1.model.")


def _open_clip(tensors: _Tensors, prefix: str) -> Iterator[tuple[str, Any]]:
    ends = {
        "text_model.embeddings.token_embedding.weight": "token_embedding.weight",
        "text_model.embeddings.position_embedding.weight": "positional_embedding",
        "text_model.final_layer_norm.weight": "ln_final.weight",
        "text_model.final_layer_norm.bias": "ln_final.bias",
    }
    for name, value in tensors.items():
        match = re.fullmatch(r"text_model\.encoder\.layers\.(\d+)\.(.*)", name)
        if name == "text_projection.weight":
            yield f"{prefix}text_projection", value.T
        elif match is None:
            yield prefix + ends[name], value
        elif not re.search(r"self_attn\.[qkv]_proj", name):
            yield f"{prefix}transformer.resblocks.{match[1]}.{_renamed(match[2], _OPEN_CLIP)}", value
        elif "q_proj" in name:
            parts = [tensors[name.replace("q_proj", f"{letter}_proj")] for letter in "qkv"]
            kind = name.rpartition(".")[2]
            yield f"{prefix}transformer.resblocks.{match[1]}.attn.in_proj_{kind}", np.concatenate(parts)
