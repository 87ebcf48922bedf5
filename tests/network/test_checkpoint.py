"""Checkpoints as people have them: the right weights are taken, all of them, and what else there is is named."""

import argparse
import collections
import dataclasses
import datetime
import os
import pickle
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models import VisionTransformer
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.network import architecture, checkpoint
from samples import tiny_vit

State = dict[str, Tensor]


def weights(**options: Any) -> State:
    return dict(tiny_vit(**options).state_dict())


A = weights()
B = {name: 2 * value for name, value in A.items()}
HEAD = {"head.weight": torch.ones(3, 64), "head.bias": torch.ones(3)}


def under(prefix: str, state: State) -> State:
    return {prefix + name: value for name, value in state.items()}


def loaded(path: Path, content: object, model: VisionTransformer | None = None, **options: Any) -> Any:
    """Save the content, load it into a network of other weights, and return what was reported and the network."""
    torch.save(content, path)
    model = model or VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=0
    ).requires_grad_(False)
    return checkpoint.load(model, path, **options), model


def same(model: nn.Module, state: State) -> bool:
    return all(torch.equal(value, state[name].float()) for name, value in model.state_dict().items())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "weights.pth"


# Which set of weights is taken


@pytest.mark.parametrize(
    ("content", "taken", "others"),
    [
        (A, "all of the file", []),
        ({"model": A}, "model", []),
        ({"state_dict": under("module.", A), "epoch": 3}, "state_dict", []),
        (under("_orig_mod.", A), "all of the file", []),
        (under("_orig_mod.module.", A), "all of the file", []),
        (under("module._orig_mod.", A), "all of the file", []),
        ({name.replace("attn.", "_orig_mod.attn."): v for name, v in A.items()}, "all of the file", []),
        ({"state_dict": under("encoder.", A)}, "state_dict.encoder", []),
        ({"state_dict": under("model.net.backbone.", A)}, "state_dict.model.net.backbone", []),
        ({"state_dict": B, "state_dict_ema": A, "epoch": 3}, "state_dict_ema", ["state_dict"]),
        ({"model": B, "model_ema": A}, "model_ema", ["model"]),
        ({"state_dict_ema": A}, "state_dict_ema", []),
        (under("model.", B) | under("ema_model.", A), "ema_model", ["model"]),
        ({"state_dict": under("model.", B) | under("ema_", A)}, "state_dict.ema", ["state_dict.model"]),
        ({"callbacks": {"E": {"ema_state_dict": A}}, "state_dict": B}, "callbacks.E.ema_state_dict", ["state_dict"]),
        ({"teacher": under("net.", A), "student": under("module.net.", B)}, "teacher.net", ["student.net"]),
        ({"model": under("student.", B) | under("teacher.", A)}, "model.teacher", ["model.student"]),
        (under("encoder_q.", A) | under("encoder_k.", B), "encoder_q", ["encoder_k"]),
        ({"state_dict": A, "model": B}, "state_dict", ["model"]),
        ({"state_dict": A, "best": A}, "state_dict", ["best"]),
        ((3, A), "1", []),
        ({"student": {}, "teacher": A}, "teacher", []),
    ],
)  # fmt: skip
def test_the_right_set_of_weights_is_taken_and_the_others_are_named(
    path: Path, content: object, taken: str, others: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", "dinoquant"):
        report, model = loaded(path, content)
    assert same(model, A)
    assert (report.weights, report.other_weights) == (taken, others)
    assert all(label in caplog.text for label in [taken, *others])


@pytest.mark.parametrize("asked", ["state_dict", "model.student.backbone", "student"])
def test_another_set_can_be_asked_for(path: Path, asked: str) -> None:
    content = {"state_dict": A} if asked == "state_dict" else {"model": under("student.backbone.", A)}
    report, model = loaded(path, {"state_dict_ema": B, **content}, weights=asked)
    assert same(model, A)
    assert report.other_weights == ["state_dict_ema"]


@pytest.mark.parametrize(
    ("content", "asked", "words"),
    [
        ({"first": A, "second": B}, None, "Set model.weights to one of them"),
        ({"state_dict": A, "model_ema": B}, "ema", "which is none of them. The sets of weights in model.checkpoint: "),
        ({"a": under("net.", A), "b": under("net.", B)}, "net", "which are more than one"),
    ],
)
def test_a_set_that_is_not_clear_is_an_error_that_lists_them(
    path: Path, content: object, asked: str | None, words: str
) -> None:
    with pytest.raises(UserError) as error:
        loaded(path, content, weights=asked)
    assert words in str(error.value)
    assert all(label in str(error.value) for label in content)


def test_a_teacher_of_another_width_is_not_taken(path: Path) -> None:
    distilled = under("student.", A) | under("teacher.", weights(embed_dim=128))
    assert loaded(path, distilled)[0].weights == "student"


@pytest.mark.parametrize(
    "averages", [{"shadow_params": list(B.values())}, {n.replace(".", ""): v for n, v in B.items()}]
)
def test_averaged_weights_that_are_not_understood_are_no_secret(path: Path, averages: object) -> None:
    report, model = loaded(path, {"model": A, "ema": averages})
    assert same(model, A)
    assert "Raw weights were taken (model)" in report.notes[0]
    assert not loaded(path, {"model": A, "ema": averages}, weights="model")[0].notes


# What is left out, and what must not be


def test_heads_of_any_name_and_losses_are_left_out_and_named(path: Path) -> None:
    extra = {
        "fc.weight": torch.ones(2, 2),
        "dino_head.mlp.0.weight": torch.ones(2),
        "mask_token": torch.ones(1, 64),
        "logit_scale": torch.ones(()),
    }
    assert loaded(path, A | HEAD | extra)[0].dropped == sorted([*HEAD, *extra])
    lightning = {"state_dict": under("model.", A) | {"criterion.weight": torch.ones(3)}, "callbacks": {}, "epoch": 3}
    report, _ = loaded(path, lightning)
    assert (report.dropped, report.beside) == (["criterion.weight"], ["callbacks", "epoch"])


@pytest.mark.parametrize(
    "name",
    [
        "fc_norm.weight",
        "norm_pre.weight",
        "blocks.0.attn.q_norm.weight",
        "reg_token",
        "dist_token",
        "prompts",
        "rope.x",
    ],
)
def test_what_changes_features_is_never_left_out(path: Path, name: str) -> None:
    with pytest.raises(UserError, match=rf"{name} \[2\] is unexpected"):
        loaded(path, A | {name: torch.ones(2)})


def test_misfits_are_named_with_shapes(path: Path) -> None:
    state = {name: value for name, value in A.items() if name != "norm.bias"}
    state |= {"blocks.1.attn.proj.weight": torch.ones(3, 5), "prompts": torch.ones(2)}
    with pytest.raises(UserError) as error:
        loaded(path, state)
    for words in (
        "norm.bias [64] is missing",
        "prompts [2] is unexpected",
        "blocks.1.attn.proj.weight has shape [3, 5], expected [64, 64]",
    ):
        assert words in str(error.value)
    assert "Set model.architecture" not in str(error.value)


def test_ten_misfits_are_listed_and_the_rest_counted(path: Path) -> None:
    with pytest.raises(UserError, match=r"x9 \[1\] is unexpected and 2 more \(12 in all\)"):
        loaded(path, A | {f"x{i}": torch.ones(1) for i in range(12)})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_become_float32(path: Path, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in A.items()}
    assert same(loaded(path, state)[1], state)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_weights_of_8_bits_are_read_and_no_secret(path: Path, dtype: torch.dtype) -> None:
    state = {name: value.to(dtype) for name, value in A.items()}
    report, model = loaded(path, state)
    assert same(model, state)
    assert any(str(dtype).removeprefix("torch.") in note for note in report.notes)
    assert not loaded(path, A)[0].notes


def test_of_another_architecture_the_likely_names_are_given(path: Path) -> None:
    for name, others in (("vit_tiny_patch16_224", "vit_small"), ("test_vit", "vit_tiny")):
        torch.save(architecture.build(name).state_dict(), path)
        with pytest.raises(UserError, match=rf"Set model.architecture to (.* or )?{name}\b") as error:
            checkpoint.load(tiny_vit(), path)
        assert others not in str(error.value)


def test_another_patch_size_is_another_architecture_and_not_interpolated(path: Path) -> None:
    with pytest.raises(UserError, match="patches of 4 pixels"):
        loaded(path, weights(patch_size=4))


# Position embeddings of other sizes of images


def test_a_checkpoint_of_another_size_keeps_it_unless_asked(path: Path) -> None:
    state = weights(img_size=48)
    report, model = loaded(path, state)
    assert (architecture.side(model), same(model, state)) == (48, True)
    assert "images of 48 pixels" in report.notes[0]
    report, model = loaded(path, state, image_size=48)
    assert (same(model, state), report.notes) == (True, [])


@pytest.mark.parametrize(
    "options", [{}, {"reg_tokens": 2, "no_embed_class": True}, {"class_token": False, "global_pool": "avg"}]
)
def test_a_position_embedding_is_interpolated_as_by_timm(path: Path, options: dict[str, Any]) -> None:
    state = weights(img_size=48, **options)
    report, model = loaded(path, state, tiny_vit(**options), image_size=64)
    theirs = tiny_vit(img_size=64, **options)
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs))
    images = torch.randn(2, 3, 64, 64)
    assert torch.equal(model(images), theirs(images))
    assert "6 x 6 patches of the checkpoint (48 pixels) to 8 x 8 (64 pixels)" in report.notes[0]


def test_a_grid_that_is_not_square_is_an_error(path: Path) -> None:
    with pytest.raises(UserError, match="position embedding of 24 patches, which is no square grid"):
        loaded(path, A | {"pos_embed": torch.randn(1, 25, 64)})


def test_positions_of_patches_alone_are_not_taken_for_an_odd_grid(path: Path) -> None:
    with pytest.raises(UserError, match="it is of 16 patches and of no class token"):
        loaded(path, A | {"pos_embed": A["pos_embed"][:, 1:]})


# Names and formats of other libraries


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        (
            {
                "encoder.layer.0.attention.attention.query.weight": torch.ones(64, 64),
                "encoder.layer.0.attention.attention.key.weight": torch.ones(64, 32),
                "encoder.layer.0.attention.attention.value.weight": torch.ones(64),
                "embeddings.patch_embeddings.projection.weight": torch.ones(64, 3, 8, 8),
            },
            "test_vit",
        ),
        ({"storage_tokens": torch.ones(4), "blocks.0.attn.qkv.bias": torch.ones(())}, "vit_tiny_patch16_dinov3_qkvb"),
    ],
)
def test_shapes_that_no_converter_expects_are_errors(path: Path, changes: State, name: str) -> None:
    with pytest.raises(UserError, match=r"does not fit model\.architecture"):
        loaded(path, A | changes, architecture.build(name))


def test_a_network_that_averages_before_its_norm_is_named(path: Path) -> None:
    state = {name.replace("norm.", "fc_norm.") if name.startswith("norm.") else name: v for name, v in A.items()}
    with pytest.raises(UserError, match="averages its patches before its last norm"):
        loaded(path, state)


@pytest.mark.parametrize(("name", "call"), [("model.safetensors", "load_file("), ("pytorch_model.bin", "torch.load(")])
def test_shards_are_joined_by_the_library_of_their_format(tmp_path: Path, name: str, call: str) -> None:
    part = tmp_path / name.replace(".", "-00001-of-00002.")
    part.write_bytes(b"x")
    with pytest.raises(UserError) as error:
        checkpoint.load(tiny_vit(), part)
    assert call in str(error.value)


def transformers_names(state: State, swiglu: bool = False) -> State:
    """Give the weights the names of Hugging Face's ViT, or with layer scale of its Dinov2."""
    v2 = "blocks.0.ls1.gamma" in state
    names = {
        "cls_token": "embeddings.cls_token",
        "pos_embed": "embeddings.position_embeddings",
        "register_tokens": "embeddings.register_tokens",
        "mask_token": "embeddings.mask_token",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    parts = {
        "attn.proj": "attention.output.dense",
        "mlp.fc1": "mlp.fc1" if v2 else "intermediate.dense",
        "mlp.fc2": "mlp.fc2" if v2 else "output.dense",
        "mlp.w12": "mlp.weights_in",
        "mlp.w3": "mlp.weights_out",
        "norm1": "norm1" if v2 else "layernorm_before",
        "norm2": "norm2" if v2 else "layernorm_after",
        "ls1": "layer_scale1",
        "ls2": "layer_scale2",
    }
    result = {}
    for name, value in state.items():
        if name in names:
            result[names[name]] = value
            continue
        _, block, rest = name.split(".", 2)
        part, kind = rest.rsplit(".", 1)
        layer = f"encoder.layer.{block}."
        if part == "attn.qkv":
            for key, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                result[f"{layer}attention.attention.{key}.{kind}"] = third.clone()
        else:
            result[f"{layer}{parts[part]}.{'lambda1' if kind == 'gamma' else kind}"] = value
    return result


@pytest.mark.parametrize("prefix", ["", "vit.", "model.vit."])
def test_transformers_names_of_vit(path: Path, prefix: str) -> None:
    state = under(prefix, transformers_names(A)) | {"classifier.weight": torch.ones(2, 64)}
    report, model = loaded(path, state)
    assert same(model, A)
    assert report.dropped == ["classifier.weight"]


@pytest.mark.parametrize("prefix", ["", "dinov2."])
def test_transformers_names_of_dinov2(path: Path, prefix: str) -> None:
    state = weights(init_values=1.0)
    theirs = under(prefix, transformers_names({**state, "mask_token": torch.zeros(1, 64)}))
    report, model = loaded(path, theirs, VisionTransformer(**SIZES, init_values=1.0))
    assert same(model, state)
    assert report.dropped == ["mask_token"]


SIZES: dict[str, Any] = {
    "img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 2, "num_heads": 2, "num_classes": 0
}  # fmt: skip
REGISTERS: dict[str, Any] = {"init_values": 1.0, "reg_tokens": 4, "no_embed_class": True}


def meta_registers() -> State:
    """Return weights as Meta publishes DINOv2 with registers: the class token has a position of its own."""
    state = weights(init_values=1.0) | {"register_tokens": torch.randn(1, 4, 64), "mask_token": torch.zeros(1, 64)}
    state["pos_embed"] = torch.randn(1, 17, 64)
    return state


@pytest.mark.parametrize("names", ["meta", "meta without mask", "chunked", "transformers"])
def test_dinov2_with_registers_is_what_timm_makes_of_it(path: Path, names: str) -> None:
    state = meta_registers()
    theirs = VisionTransformer(**SIZES, **REGISTERS)
    theirs.load_state_dict(checkpoint_filter_fn(dict(state), theirs))
    content = {
        "meta": state,
        "meta without mask": {name: value for name, value in state.items() if name != "mask_token"},
        "chunked": {
            "teacher": under("backbone.", {name.replace("blocks.", "blocks.0."): v for name, v in state.items()})
        },
        "transformers": under("dinov2_with_registers.", transformers_names(state)),
    }[names]
    _, model = loaded(path, content, VisionTransformer(**SIZES, **REGISTERS))
    assert same(model, dict(theirs.state_dict()))


def test_distilled_deit_in_transformers_names(path: Path) -> None:
    from timm.models.deit import VisionTransformerDistilled

    state = dict(VisionTransformerDistilled(**SIZES).state_dict())
    rest = {name: value for name, value in state.items() if name != "dist_token"}
    theirs = transformers_names(rest) | {"embeddings.distillation_token": state["dist_token"]}
    heads = {"cls_classifier.bias": torch.ones(2), "distillation_classifier.bias": torch.ones(2)}
    report, model = loaded(path, under("deit.", theirs) | heads, VisionTransformerDistilled(**SIZES))
    assert same(model, state)
    assert report.dropped == sorted(heads)


def test_torchvision_names(path: Path) -> None:
    import torchvision

    theirs = torchvision.models.VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=64, mlp_dim=256
    ).eval()
    nn.init.normal_(theirs.encoder.pos_embedding)
    report, model = loaded(path, theirs.state_dict())
    images = torch.randn(2, 3, 32, 32)
    theirs.heads = nn.Identity()
    with torch.no_grad():
        assert torch.allclose(model.eval()(images), theirs(images), atol=1e-5)
    assert report.dropped == ["heads.head.bias", "heads.head.weight"]


CLIP_NAMES = (
    ("blocks.", "transformer.resblocks."),
    ("norm_pre", "ln_pre"),
    ("attn.qkv.", "attn.in_proj_"),
    ("attn.proj", "attn.out_proj"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("norm1", "ln_1"),
    ("norm2", "ln_2"),
    ("norm.", "ln_post."),
)


def test_clip_of_openai_is_what_timm_makes_of_it(path: Path) -> None:
    model = VisionTransformer(**SIZES, pre_norm=True)
    state = {
        "visual.class_embedding": torch.randn(64),
        "visual.positional_embedding": torch.randn(17, 64),
        "visual.conv1.weight": torch.randn(64, 3, 8, 8),
        "visual.proj": torch.randn(64, 32),
        "token_embedding.weight": torch.randn(9, 9),
    }
    for name, value in tiny_vit(pre_norm=True).state_dict().items():
        if name.startswith(("blocks", "norm")):
            for ours, theirs in CLIP_NAMES:
                name = name.replace(ours, theirs)
            state[f"visual.{name}"] = value
    expected = checkpoint_filter_fn(dict(state), model)
    report, model = loaded(path, state, model)
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert report.dropped == ["head.bias", "head.weight", "token_embedding.weight"]


def jax_weights(state: State) -> dict[str, np.ndarray]:
    """Return the weights as Google's JAX code saves them."""
    result = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].permute(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": torch.ones(64, 3),
        "head/bias": torch.ones(3),
    }
    for n in range(2):
        ours, theirs = f"blocks.{n}.", f"Transformer/encoderblock_{n}/"
        attention = f"{theirs}MultiHeadDotProductAttention_1/"
        for i, norm in ((1, "LayerNorm_0"), (2, "LayerNorm_2")):
            result[f"{theirs}{norm}/scale"] = state[f"{ours}norm{i}.weight"]
            result[f"{theirs}{norm}/bias"] = state[f"{ours}norm{i}.bias"]
        for i, key in enumerate(("query", "key", "value")):
            result[f"{attention}{key}/kernel"] = state[f"{ours}attn.qkv.weight"].chunk(3)[i].T.reshape(64, 2, 32)
            result[f"{attention}{key}/bias"] = state[f"{ours}attn.qkv.bias"].chunk(3)[i].reshape(2, 32)
        result[f"{attention}out/kernel"] = state[f"{ours}attn.proj.weight"].T.reshape(2, 32, 64)
        result[f"{attention}out/bias"] = state[f"{ours}attn.proj.bias"]
        for i in (0, 1):
            result[f"{theirs}MlpBlock_3/Dense_{i}/kernel"] = state[f"{ours}mlp.fc{i + 1}.weight"].T
            result[f"{theirs}MlpBlock_3/Dense_{i}/bias"] = state[f"{ours}mlp.fc{i + 1}.bias"]
    return {name: value.numpy() for name, value in result.items()}


@pytest.mark.parametrize("name", ["weights.npz", "weights.bin"])
def test_jax_weights(tmp_path: Path, name: str) -> None:
    state = weights(img_size=48)
    np.savez(tmp_path / "w.npz", **jax_weights(state))
    (tmp_path / "w.npz").rename(tmp_path / name)
    model = VisionTransformer(**SIZES).requires_grad_(False)
    report = checkpoint.load(model, tmp_path / name)
    assert same(model, state)
    assert report.dropped == ["head/bias", "head/kernel"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"Transformer/encoder_norm/scale": None}, "encoder_norm/scale"),
        ({"Transformer/encoder_norm/scale": np.full(64, np.nan, np.float32)}, "no finite values for norm.weight"),
        ({"Transformer/encoderblock_2/x": np.ones(1)}, "with 3 blocks"),
        ({"embedding/kernel": np.ones((16, 16, 3, 64), np.float32)}, "patches of 16 pixels"),
    ],
)
def test_jax_weights_are_taken_strictly(tmp_path: Path, change: dict[str, np.ndarray | None], words: str) -> None:
    arrays = {name: value for name, value in (jax_weights(A) | change).items() if value is not None}
    np.savez(tmp_path / "w.npz", **arrays)
    with pytest.raises(UserError, match=words):
        checkpoint.load(tiny_vit(), tmp_path / "w.npz")


@pytest.mark.parametrize("byte_order", ["<", ">"])
@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_arrays_of_numpy_however_they_were_pickled(path: Path, protocol: int, byte_order: str) -> None:
    arrays = {name: value.numpy().astype(f"{byte_order}f4", order="F") for name, value in A.items()}
    torch.save({"model": arrays}, path, pickle_protocol=protocol)
    model = VisionTransformer(**SIZES).requires_grad_(False)
    checkpoint.load(model, path)
    assert same(model, A)


def test_arrays_of_numpy_by_pytorchs_names(path: Path) -> None:
    arrays = {name: value.numpy() for name, value in A.items()}
    assert same(loaded(path, {"model": arrays})[1], A)
    np.savez(path.with_suffix(".npz"), **arrays)
    model = VisionTransformer(**SIZES).requires_grad_(False)
    checkpoint.load(model, path.with_suffix(".npz"))
    assert same(model, A)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("layers.0.blocks.0.attn.relative_position_bias_table", "Swin"),
        ("blocks.0.attn.relative_position_bias_table", "BEiT"),
        ("layer1.0.conv1.weight", "ResNet"),
        ("stages.0.blocks.0.conv_dw.weight", "ConvNeXt"),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", "CLIP or SigLIP"),
        ("decoder_blocks.0.norm1.weight", "the decoder of a masked autoencoder"),
        ("base_model.model.encoder.layer.0.attention.query.lora_A.weight", "merge_and_unload"),
        ("transformer.h.0.ln_1.weight", "a language model"),
    ],
)
def test_other_schemes_are_recognised(path: Path, name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        loaded(path, {"state_dict": {name: torch.ones(3), "fc.bias": torch.ones(3)}})
    assert "Set model.architecture to the timm name of the network" not in str(error.value)


def test_the_encoder_of_a_masked_autoencoder_is_taken_from_beside_its_decoder(path: Path) -> None:
    decoder = {
        "mask_token": torch.ones(1, 1, 8),
        "decoder_pos_embed": torch.ones(1, 17, 8),
        "decoder_pred.bias": torch.ones(8),
    }
    report, model = loaded(path, {"model": A | under("decoder_blocks.0.", {"norm1.weight": torch.ones(8)}) | decoder})
    assert same(model, A)
    assert report.dropped == sorted([*decoder, "decoder_blocks.0.norm1.weight"])


# What lies beside the weights, and what must never happen


@dataclasses.dataclass
class Settings:
    """A class of somebody's own."""

    rate: float = 0.1


class Runs:
    """Something whose unpickling would run a command."""

    def __init__(self, function: Callable[..., Any] = os.system) -> None:
        self.function = function

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return self.function, ("touch ran",)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_harmless_things_beside_the_weights_do_not_stop_a_load(path: Path, protocol: int) -> None:
    beside = {
        "scalars": [np.float64(1), np.int64(2), np.bool_(True), np.float32(3)],
        "arrays": (np.arange(3), np.array(["a"]), np.array([None], dtype=object)),
        "paths": Path("a/b"),
        "namespaces": [argparse.Namespace(a=1), SimpleNamespace(b=Path("c")), Settings()],
        "containers": [collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]), collections.deque([1, 2])],
        "others": {1, 2}, "frozen": frozenset([3]), "time": datetime.datetime(2024, 1, 1),
        "counts": collections.Counter("ab"),
        "dtype": torch.float16, "device": torch.device("cpu"), "size": torch.Size([1]), "slice": slice(1, 2),
        "complex": 1j, "bytes": b"abc", "generator": np.random.default_rng(0).bit_generator.state,
    }  # fmt: skip
    torch.save({"model": A, **beside}, path, pickle_protocol=protocol)
    model = VisionTransformer(**SIZES).requires_grad_(False)
    report = checkpoint.load(model, path)
    assert same(model, A)
    assert report.beside == list(beside)


@pytest.mark.parametrize(
    "function", [os.system, subprocess.getoutput, eval, os.remove, print], ids=lambda f: f.__name__
)
@pytest.mark.parametrize("protocol", [2, 4])
def test_nothing_is_ever_executed(
    tmp_path: Path, function: Callable[..., Any], protocol: int, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model": A, "x": Runs(function)}, "weights.pth", pickle_protocol=protocol)
    model = VisionTransformer(**SIZES).requires_grad_(False)
    assert checkpoint.load(model, "weights.pth").beside == ["x"]
    assert same(model, A)
    Path("old.pth").write_bytes(pickle.dumps({"model": A, "x": Runs(function)}, protocol))
    checkpoint.load(model, "old.pth")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["old.pth", "weights.pth"]
    assert capfd.readouterr().out == ""


def test_no_pickle_changes_a_function(path: Path) -> None:
    # GLOBAL puts the function on the stack, BUILD would update its attributes.
    path.write_bytes(b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}q\x00X\x07\x00\x00\x00changedq\x01\x88sb.")
    with pytest.raises(UserError, match="cannot be read"):
        checkpoint.load(tiny_vit(), path)
    assert not hasattr(torch._utils._rebuild_tensor_v2, "changed")


def test_a_whole_module_gives_its_weights_without_being_built(path: Path) -> None:
    class Training(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.backbone = tiny_vit()
            self.head = nn.Linear(2, 2)

    Training.__qualname__ = "Training"
    globals()["Training"] = Training
    report, model = loaded(path, {"net": Training(), "epoch": 1})
    assert same(model, A)
    assert (report.weights, report.dropped) == ("net.backbone", ["head.bias", "head.weight"])


def test_files_of_old_and_other_writers(path: Path) -> None:
    model = VisionTransformer(**SIZES).requires_grad_(False)
    torch.save({"model": A, "x": Settings()}, path, _use_new_zipfile_serialization=False)
    checkpoint.load(model, path)
    assert same(model, A)
    path.write_bytes(pickle.dumps({"model": B, "x": Settings()}))
    checkpoint.load(model, path)
    assert same(model, B)
    save_file(A, path)
    checkpoint.load(model, path)
    assert same(model, A)


@pytest.mark.parametrize(("folder", "advised"), [("resources/checkpoints", True), ("mine", False)])
def test_only_what_was_downloaded_is_advised_to_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: str, advised: bool
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path(folder) / "weights.pth"
    path.parent.mkdir(parents=True)
    for content in (b"", b"<html>", b"\x80\x02\x93\x93", b"PK\x03\x04 cut"):
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            checkpoint.load(tiny_vit(), path)
        assert ("delete" in str(error.value)) is advised
        assert "damaged" not in str(error.value)


def test_the_programs_of_this_project_point_to_the_weights_beside_them(tmp_path: Path) -> None:
    model = tiny_vit()
    torch.jit.trace(model, torch.randn(1, 3, 32, 32), check_trace=False).save(tmp_path / "model.pt")
    with pytest.raises(UserError, match=r"TorchScript program .*torch\.jit\.load"):
        checkpoint.load(model, tmp_path / "model.pt")
    torch.save(model.state_dict(), tmp_path / "state_dict.pt")
    with pytest.raises(UserError, match=r"TorchScript program .* set model.checkpoint to .*state_dict\.pt"):
        checkpoint.load(model, tmp_path / "model.pt")
    checkpoint.load(model, tmp_path / "state_dict.pt")


def dinov3(name: str) -> nn.Module:
    """Return a small network with weights, also where they begin as 0."""
    model = timm.create_model(name, num_classes=0, embed_dim=64, depth=2, num_heads=2, global_pool="token")
    for value in model.requires_grad_(False).state_dict().values():
        value.normal_()
    return model


def metas_dinov3(state: State) -> State:
    """Give the weights of a DINOv3 the names of Meta's code, in which keys have a bias that is masked."""
    names = {
        "reg_token": "storage_tokens",
        "gamma_1": "ls1.gamma",
        "gamma_2": "ls2.gamma",
        "mlp.fc1_g": "mlp.w1",
        "mlp.fc1_x": "mlp.w2",
    }
    if "blocks.0.mlp.fc1_g.weight" in state:
        names["mlp.fc2"] = "mlp.w3"
    result = {"mask_token": torch.zeros(1, 64), "rope_embed.periods": torch.ones(8)}
    for key, value in state.items():
        if key.endswith("q_bias"):
            part = key.removesuffix("q_bias")
            result[f"{part}qkv.bias"] = torch.cat([value, torch.ones(64), state[f"{part}v_bias"]])
            result[f"{part}qkv.bias_mask"] = torch.cat([torch.ones(64), torch.zeros(64), torch.ones(64)])
        elif not key.endswith("v_bias"):
            for ours, theirs in names.items():
                key = key.replace(ours, theirs)
            result[key] = value
    return result


def transformers_dinov3(state: State, layers: str = "layer.") -> State:
    """Give the weights of a DINOv3 the names of Hugging Face's DINOv3ViT; keys have no bias."""
    gated = "blocks.0.mlp.fc1_g.weight" in state
    names = {
        "cls_token": "embeddings.cls_token",
        "reg_token": "embeddings.register_tokens",
        "patch_embed.proj": "embeddings.patch_embeddings",
        "blocks.": layers,
        "gamma_1": "layer_scale1.lambda1",
        "gamma_2": "layer_scale2.lambda1",
        "attn.proj": "attention.o_proj",
        "attn.q_bias": "attention.q_proj.bias",
        "attn.v_bias": "attention.v_proj.bias",
        "mlp.fc1_g": "mlp.gate_proj",
        "mlp.fc1_x" if gated else "mlp.fc1": "mlp.up_proj",
        "mlp.fc2": "mlp.down_proj",
    }
    result = {"embeddings.mask_token": torch.zeros(1, 1, 64)}
    for key, value in state.items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        if key.endswith("attn.qkv.weight"):
            part = key.removesuffix("attn.qkv.weight")
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                result[f"{part}attention.{letter}_proj.weight"] = third
        else:
            result[key] = value
    return result


@pytest.mark.parametrize(
    "name", ["vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb", "vit_small_plus_patch16_dinov3"]
)
def test_names_of_dinov3(path: Path, name: str) -> None:
    expected = dict(dinov3(name).state_dict())
    theirs = transformers_dinov3(expected)
    later = transformers_dinov3(expected, "model.layer.")
    zeros = {f"blocks.{n}.attn.qkv.bias": torch.zeros(192) for n in range(2)} if "qkvb" not in name else {}
    for content in (metas_dinov3(expected) | zeros, theirs, under("model.", theirs), under("dinov3_vit.", later)):
        _, model = loaded(path, content, dinov3(name))
        assert same(model, expected)


def test_biases_that_a_dinov3_lacks_are_not_lost(path: Path) -> None:
    state = dict(dinov3("vit_small_patch16_dinov3_qkvb").state_dict())
    for content in (metas_dinov3(state), transformers_dinov3(state)):
        with pytest.raises(UserError, match=r"blocks.0.attn.q_bias \[64\] is unexpected"):
            loaded(path, content, dinov3("vit_small_patch16_dinov3"))


def test_a_dinov3_in_metas_names_is_told_its_architecture(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["vit_small_patch16_224", "vit_small_patch16_dinov3", "vit_small_patch16_dinov3_qkvb"]
    monkeypatch.setattr(timm, "list_models", lambda *_: names)  # all of timm's take seconds
    state = architecture.build("vit_small_patch16_dinov3").state_dict()
    torch.save(metas_dinov3(state), path)
    with pytest.raises(UserError, match=r"Set model.architecture to vit_small_patch16_dinov3\."):
        checkpoint.load(architecture.build("vit_small_patch16_224.dino"), path)


def test_sets_that_cannot_be_compared_are_several(path: Path) -> None:
    sparse = {name: value.to_sparse() for name, value in A.items()}
    torch.save({"x": sparse, "y": A}, path)
    with pytest.raises(UserError, match="several sets of weights"):
        checkpoint.load(VisionTransformer(**SIZES), path)
