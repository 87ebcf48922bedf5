"""What the quantization recipes share: their interface, how a model's parts are counted, the check on promises."""

import importlib
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from dinoquant.errors import UserError
from dinoquant.recipes import recipes

Options = Mapping[str, Any]  # of a variant, its recipe's name among them; the schema has checked names and types
SensitivityRows = Sequence[Mapping[str, str]]  # of sensitivity.csv


@dataclass(frozen=True)
class ModelPart:
    """A leaf module, a function without a module, or a parameter outside leaf modules."""

    name: str
    kind: str
    parameters: int
    bytes: int


@dataclass(frozen=True)
class Converted:
    """What a recipe made of one part."""

    what: str
    precision: str  # of its products: "int8", "bf16", "fp16" or "fp32"
    bytes: int  # in the file
    why: str = ""  # where the recipe had a choice


@dataclass(frozen=True)
class Quantized:
    """A recipe's result."""

    module: nn.Module  # float32 [B, 3, S, S], normalised -> float32 [B, D]; timm's other passes too; can be traced
    asked: Collection[str]  # kinds of parts that the variant asked to convert
    became: Mapping[str, Converted]  # by the part's name in the float model; the others are as they were
    engine: str | None = None  # of the `quantized::` operators: weights are packed for it, also on loading
    variable: Sequence[str] = ()  # attributes that TorchScript must not fold into constants
    packs_on_loading: bool = False  # has parts in TorchScript that do; nothing of them may be folded
    deflated: bool = False  # the file is compressed: its integers repeat


class Quantize(Protocol):
    """The function by which a recipe's module does its work."""

    def __call__(
        self,
        model: nn.Module,
        options: Options,
        calibration: Tensor | None = None,
        sensitivity: SensitivityRows = (),
    ) -> Quantized:
        """Return the variant of the float ``model``, which stays as it is.

        :param calibration: float32 ``[N, 3, S, S]``, normalised; for recipes whose entry says so.
        :param sensitivity: what `dinoquant.judge.sensitivity` measured of this model; likewise.
        """


class RecipeModule(Protocol):
    """A module of `dinoquant.recipes` that the table names."""

    @property
    def quantize(self) -> Quantize:
        """Return the recipe itself."""


def recipe(function: Quantize) -> Quantize:
    """Mark a module's `quantize`, which mypy then checks against the interface; it runs without gradients."""
    without_gradients: Quantize = torch.no_grad()(function)
    return without_gradients


def load_recipe(name: str) -> RecipeModule:
    """Return the module of the recipe ``name``."""
    return cast(RecipeModule, importlib.import_module(f"dinoquant.recipes.{recipes()[name].module}"))


def has_softmax(module: nn.Module) -> bool:
    """Tell whether ``module`` is an attention of timm's: its softmax is inside `scaled_dot_product_attention`."""
    return hasattr(module, "fused_attn")


def parts(model: nn.Module) -> list[ModelPart]:
    """Return every part of ``model`` in the order of its modules."""
    listed = []
    for name, module in model.named_modules():
        if not list(module.children()):
            listed.append(ModelPart(name, type(module).__name__, _count(module), stored_bytes(module)))
            continue
        listed += [
            ModelPart(f"{name}.{own}".lstrip("."), "Parameter", tensor.numel(), tensor.nbytes)
            for own, tensor in module.named_parameters(recurse=False)
        ]
        if has_softmax(module):
            listed.append(ModelPart(f"{name}.softmax", "softmax", 0, 0))
    return listed


def converted(
    before: nn.Module, after: nn.Module, describe: Callable[[nn.Module], tuple[str, str] | None]
) -> dict[str, Converted]:
    """Return what became of each leaf module of ``before``, judged by the module of the same name in ``after``.

    :param describe: says what a module is now and the precision of its products, None for one that was left alone.
    """
    became = {}
    for name, module in before.named_modules():
        if list(module.children()):
            continue
        now = after.get_submodule(name)
        if description := describe(now):
            became[name] = Converted(*description, stored_bytes(now))
    return became


def require_converted(model: nn.Module, asked: Collection[str], became: Mapping[str, Converted]) -> None:
    """Raise UserError if there is a module type that the variant asked for and of which nothing was converted.

    PyTorch skips what it has no kernel for without a word: asked for Conv2d, `quantize_dynamic` changes
    nothing.
    """
    for kind in asked:
        present = [part.name for part in parts(model) if part.kind == kind]
        if not any(name in became for name in present):
            found = f"the {len(present)} there stayed float32 ({', '.join(present[:3])})" if present else "it has none"
            raise UserError(
                f"modules lists {kind}, but no {kind} of this model was quantized: {found}. "
                f"Remove {kind} from the variant's modules: its name would promise what the model does not hold. A "
                "model without any Linear takes bf16 instead."
            )


def stored_bytes(module: nn.Module) -> int:
    """Return the bytes of the tensors that ``module`` keeps in a file: weights, biases, scales, zero points."""
    return sum(_bytes(value) for value in module.state_dict().values())


@contextmanager
def engine(name: str) -> Iterator[str]:
    """Pack quantized weights for the engine ``name`` ("auto": PyTorch's default for this machine); yields its name.

    Raises UserError if this build of PyTorch lacks it.
    """
    before = torch.backends.quantized.engine
    chosen = before if name == "auto" else name
    available = [known for known in torch.backends.quantized.supported_engines if known != "none"]
    if chosen not in available:
        raise UserError(
            f"engine {chosen!r} is not in this build of PyTorch {torch.__version__}. "
            f"Available here: {', '.join(available)}. Choose one of these, or auto."
        )
    torch.backends.quantized.engine = chosen
    try:
        yield chosen
    finally:
        torch.backends.quantized.engine = before


def scripted(module: nn.Module) -> torch.jit.ScriptModule:
    """Compile ``module``, in eval mode, to TorchScript, which 2.15 calls deprecated at every call."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"`torch\.jit\..*is deprecated", FutureWarning)
        compiled: torch.jit.ScriptModule = torch.jit.script(module.eval())
    return compiled


@contextmanager
def deprecations_known() -> Iterator[None]:
    """Keep PyTorch from saying at every call that eager-mode quantization will go.

    It is in all versions that envs/ allows (2.11 to 2.15), and its successor writes no TorchScript.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.ao.quantization is deprecated", DeprecationWarning)
        warnings.filterwarnings("ignore", "torch.quantize_per_tensor, torch.quantize_per_channel", UserWarning)
        yield


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _bytes(value: object) -> int:
    if isinstance(value, (tuple, list)):  # packed weight and bias
        return sum(_bytes(item) for item in value)
    if not isinstance(value, Tensor):
        return 0
    if value.is_quantized and value.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        scales = value.q_per_channel_scales().nbytes + value.q_per_channel_zero_points().nbytes
        return value.numel() * value.element_size() + scales
    return value.numel() * value.element_size()
