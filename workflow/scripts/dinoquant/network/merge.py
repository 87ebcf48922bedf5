"""Join what some of timm's models compute in parts, so that every product is one Linear, called as a module."""

from typing import Any

import torch
from timm.layers.attention import AttentionRope
from timm.layers.mlp import GluMlp, SwiGLU
from timm.models.eva import EvaAttention
from torch import nn


def merge(model: nn.Module) -> nn.Module:
    """Return ``model``, changed in place to what computes the same; a model like DINO's stays as it is.

    Recipes replace Linears, and need them to be called. timm's Eva, BEiT and Swin v2 pass the weights of `qkv` to a
    function, with biases of their own; or they have three Linears where others have one, or two in SwiGLU. Names of
    parameters change: load a checkpoint first.
    """
    parts: list[tuple[str, Any]] = list(model.named_modules())
    for name, module in parts:
        if isinstance(module, SwiGLU):
            model.set_submodule(name, _packed(module))
        elif isinstance(module, EvaAttention | AttentionRope):
            _fuse(module)
        if getattr(module, "q_bias", None) is not None and isinstance(module.qkv, nn.Linear):
            biases = [part.detach() for part in (module.q_bias, module.k_bias, module.v_bias)]
            module.qkv.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
            module.q_bias = module.k_bias = module.v_bias = None
    return model


def joined(*linears: nn.Linear) -> nn.Linear:
    """Return one Linear that gives the outputs of all, one after the other; biases that are missing are 0."""
    weights = torch.cat([linear.weight.detach() for linear in linears])
    whole = nn.Linear(weights.shape[1], weights.shape[0], bias=any(x.bias is not None for x in linears), device="meta")
    whole.weight = nn.Parameter(weights, requires_grad=False)
    if whole.bias is not None:
        biases = [x.weight.new_zeros(x.out_features) if x.bias is None else x.bias.detach() for x in linears]
        whole.bias = nn.Parameter(torch.cat(biases), requires_grad=False)
    return whole


def _packed(mlp: SwiGLU) -> GluMlp:
    """Return the MLP with gate and values in one Linear."""
    width, hidden = mlp.fc1_g.in_features, 2 * mlp.fc2.in_features
    packed = GluMlp(width, hidden, act_layer=nn.SiLU, gate_last=False, device="meta")
    packed.fc1, packed.act, packed.norm, packed.fc2 = joined(mlp.fc1_g, mlp.fc1_x), mlp.act, mlp.norm, mlp.fc2
    return packed.eval()


def _fuse(attention: Any) -> None:
    """Make queries, keys and values by one Linear, unless heads share keys and values, which are fewer then."""
    if attention.qkv is None and getattr(attention, "num_kv_groups", 1) == 1:
        attention.qkv = joined(attention.q_proj, attention.k_proj, attention.v_proj)
        attention.q_proj = attention.k_proj = attention.v_proj = None
