"""Unpickle tensors and plain containers; whatever else a pickle names becomes an inert placeholder."""

import pickle
import sys
from collections import OrderedDict
from collections.abc import Callable
from io import BytesIO
from typing import IO, Any, NoReturn, Self

import torch


class Placeholder:
    """Stands for an object of a class that is not needed: keeps what the pickle would have given it, and does nothing.

    ``arguments`` are those of its making, ``state`` is what would have become its attributes, and ``entries`` is what
    would have been put into it as into a dict.
    """

    dump_patches = False  # PyTorch's reader of old files asks the class of a module for it
    arguments: tuple[object, ...]
    state: object
    entries: dict[object, object]

    def __new__(cls, *arguments: object, **_options: object) -> Self:
        """Return a placeholder, whatever the class that it stands for would have been made from."""
        self = super().__new__(cls)
        self.arguments = arguments
        self.state = None
        self.entries = {}
        return self

    def __init__(self, *_arguments: object, **_options: object) -> None:
        """Take what the class that it stands for would have taken."""

    def __setstate__(self, state: object) -> None:
        self.state = state

    def __setitem__(self, key: object, value: object) -> None:
        self.entries[key] = value

    def append(self, value: object) -> None:
        """Ignore what would have been put into it as into a list or a set."""

    extend = add = append


class _Rebuild:
    """A function that a pickle may call, in a shell that no pickle can change: BUILD sets attributes of functions."""

    __slots__ = ("_function",)

    def __init__(self, function: Callable[..., object]) -> None:
        self._function = function

    def __call__(self, *arguments: object) -> object:
        return self._function(*arguments)

    def __setstate__(self, state: object) -> NoReturn:
        raise pickle.UnpicklingError("it sets attributes of a function")


def _data_of(data: object, *_rest: object) -> object:
    return data


def _without_subclass(function: object, _kind: object, arguments: tuple[object, ...], _state: object) -> object:
    if not isinstance(function, _Rebuild):
        raise pickle.UnpicklingError("a tensor of an unknown kind")
    return function(*arguments)


def _bytes_of(text: str, _encoding: str) -> bytes:
    """Return what pickle's protocol 2 writes bytes as, always in this encoding."""
    return text.encode("latin1")


_BUILDERS = (
    "_rebuild_tensor",
    "_rebuild_tensor_v2",
    "_rebuild_tensor_v3",
    "_rebuild_sparse_tensor",
    "_rebuild_qtensor",
    "_rebuild_meta_tensor_no_storage",
)
_ALLOWED = {
    "torch._utils._rebuild_parameter": _Rebuild(_data_of),
    "torch._utils._rebuild_parameter_with_state": _Rebuild(_data_of),
    "torch._tensor._rebuild_from_type_v2": _Rebuild(_without_subclass),
    "torch.Size": _Rebuild(torch.Size),
    "torch.device": _Rebuild(torch.device),
    "torch.serialization._get_layout": _Rebuild(torch.serialization._get_layout),
    "torch.storage._load_from_bytes": _Rebuild(lambda content: load_saved(BytesIO(content))),
    "_codecs.encode": _Rebuild(_bytes_of),
    **{f"torch._utils.{name}": _Rebuild(getattr(torch._utils, name)) for name in _BUILDERS},
}


class Unpickler(pickle.Unpickler):
    """`pickle.Unpickler` that looks nothing up outside of the list of what builds tensors."""

    def find_class(self, module: str, name: str) -> object:
        """Return a shell around a function that builds tensors, or a new class of placeholders."""
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and isinstance(value := getattr(torch, name, None), torch.dtype):
            return value
        # PyTorch reads the tensors of young types, such as float8, as bytes first, and asks this class for their type.
        attributes = {"__module__": module, **({"dtype": torch.uint8} if name == "UntypedStorage" else {})}
        return _ALLOWED.get(f"{module}.{name}") or type(name, (Placeholder,), attributes)


def load(stream: IO[bytes], **options: Any) -> object:
    """Return the content of a pickle; PyTorch's own name for this, and its options (``encoding``)."""
    return Unpickler(stream, **options).load()


def load_saved(stream: IO[bytes]) -> object:
    """Return the content of what `torch.save`, or plain pickle, wrote, with all tensors on the CPU.

    Raises whatever PyTorch and pickle raise for a file that is cut short or damaged.
    """
    if stream.read(2) != b"PK":
        stream.seek(0)
        content = load(stream)
        if content != torch.serialization.MAGIC_NUMBER:  # `torch.save` before PyTorch 1.6 begins with it
            return content
    stream.seek(0)
    return torch.load(stream, map_location="cpu", pickle_module=sys.modules[__name__], weights_only=False)
