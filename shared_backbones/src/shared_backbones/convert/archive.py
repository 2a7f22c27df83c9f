"""Tensors out of a checkpoint file without running anything that is in it: safetensors, torch files, TorchScript archives."""

from __future__ import annotations

import pickle
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from shared_backbones.errors import WeightsError

# Where checkpoints keep their tensors, tried in this order: Lightning and LAION, Swin's authors, a bare table.
NESTS = ("state_dict", "model")


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint under its own names, on the CPU; a table nested under ``state_dict`` or ``model`` is entered.

    Arrays of numpy count as tensors (VGGish's parameters of its post-processing are some). Raises WeightsError where the file is none of the known kinds or holds no named tensors.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"{path}: no such file; expected a checkpoint")
    try:
        return load_file(path)
    except SafetensorError:
        pass
    tensors = _named_tensors(_read_torch(path))
    if not tensors:
        raise WeightsError(
            f"{path}: no named tensors inside; expected a table of them, plain or under {' or '.join(NESTS)}"
        )
    return tensors


def read_cfg(path: Path) -> dict[str, Any] | None:
    """The plain values (numbers, text, truth values, None) of the table ``cfg`` that lies beside the tensors of a torch file.

    None where there is no such table, as in every safetensors file. WeightsError as above.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt"):
            return None
    except SafetensorError:
        content = _read_torch(path)
    cfg = content.get("cfg") if isinstance(content, dict) else None
    if not isinstance(cfg, dict):
        return None
    return {str(key): value for key, value in cfg.items() if isinstance(value, bool | int | float | str | None)}


def _read_torch(path: Path) -> Any:
    if zipfile.is_zipfile(path):
        return _read_zip(path)
    try:
        with torch.serialization.safe_globals(_ARRAY_PARTS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path}: neither safetensors nor a torch file of tensors ({reason})") from None


def _named_tensors(content: Any) -> dict[str, Tensor]:
    if isinstance(content, Inert):
        return _script_tensors(content)
    for nest in NESTS:
        if isinstance(content, dict) and isinstance(content.get(nest), dict):
            content = content[nest]
            break
    if not isinstance(content, dict):
        return {}
    arrays = {
        name: torch.from_numpy(value.copy())
        for name, value in content.items()
        if isinstance(value, np.ndarray) and value.dtype.kind in "fiub"
    }
    return {str(name): value.detach() for name, value in (content | arrays).items() if isinstance(value, Tensor)}


def _script_tensors(module: Inert, prefix: str = "") -> dict[str, Tensor]:
    """The attribute tree of a TorchScript module as one table of dotted names."""
    found: dict[str, Tensor] = {}
    for name, value in module.state.items():
        if isinstance(value, Tensor):
            found[prefix + name] = value.detach()
        elif isinstance(value, Inert):
            found |= _script_tensors(value, f"{prefix}{name}.")
    return found


class Inert:
    """Stands for every object of a pickle that is no tensor: it takes whatever is done to it and does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Inert:
        made = super().__new__(cls)
        made.state = {}
        return made

    state: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            self.state = {str(key): value for key, value in state.items()}

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        pass

    def extend(self, values: Any) -> None:
        pass

    def add(self, value: Any) -> None:
        pass

    def __hash__(self) -> int:
        return id(self)

    def __call__(self, *args: Any, **kwargs: Any) -> Inert:
        return Inert()


_DTYPES = {
    "DoubleStorage": torch.float64, "FloatStorage": torch.float32, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
}  # fmt: skip


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Any:
    """A tensor from its storage; what is not one (a hostile call) is an inert object."""
    if not isinstance(storage, Tensor):
        return Inert()
    try:
        return torch.as_strided(storage, tuple(size), tuple(stride), int(offset))
    except (RuntimeError, TypeError, ValueError) as error:
        raise pickle.UnpicklingError(f"tensor of size {size}, stride {stride}, offset {offset}: {error}") from None


def _parameter(data: Any, *rest: Any) -> Any:
    return data if isinstance(data, Tensor) else Inert()


# An array of numpy is rebuilt from its parts: numbers, or objects that were themselves refused.
_rebuild_array = np.empty(0).__reduce__()[0]
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_ARRAY_PARTS: list[Any] = [
    np.ndarray,
    np.dtype,
    *((_rebuild_array, f"{module}._reconstruct") for module in _ARRAY_MODULES),
    *(type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i4", "i8", "u1", "?")),
]


def _latin1(text: Any, encoding: Any) -> Any:
    """How the older pickles write bytes."""
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else Inert()


_ADMITTED: dict[tuple[str, str], Any] = {
    **{(module, "_reconstruct"): _rebuild_array for module in _ARRAY_MODULES},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
    ("collections", "OrderedDict"): OrderedDict,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
}


class _TensorUnpickler(pickle.Unpickler):
    """Knows tensors and ordered tables; every other global is an inert class, so no foreign callable is ever reached."""

    def __init__(self, file: BinaryIO, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(file, encoding="utf-8")
        self._archive, self._root = archive, root
        self._storages: dict[str, Tensor] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ADMITTED:
            return _ADMITTED[module, name]
        if module in ("torch", "torch.storage") and name in _DTYPES:
            return _DTYPES[name]
        return Inert

    def persistent_load(self, pid: Any) -> Any:
        if not isinstance(pid, tuple) or len(pid) < 5 or pid[0] != "storage" or not isinstance(pid[1], torch.dtype):
            return Inert()
        dtype, key, count = pid[1], str(pid[2]), int(pid[4])
        if key not in self._storages:
            data = bytearray(self._archive.read(f"{self._root}/data/{key}"))
            if sys.byteorder != "little" or self._big_endian():
                raise pickle.UnpicklingError("big-endian file or machine")
            if len(data) != count * dtype.itemsize:
                raise pickle.UnpicklingError(f"storage {key} has {len(data)} bytes, expected {count * dtype.itemsize}")
            self._storages[key] = torch.frombuffer(data, dtype=dtype) if count else torch.empty(0, dtype=dtype)
        return self._storages[key]

    def _big_endian(self) -> bool:
        name = f"{self._root}/byteorder"
        return name in self._archive.namelist() and self._archive.read(name) == b"big"


def _read_zip(path: Path) -> Any:
    try:
        with zipfile.ZipFile(path) as archive:
            pickles = [name for name in archive.namelist() if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1:
                raise WeightsError(
                    f"{path}: a zip file with {len(pickles)} data.pkl; expected a torch checkpoint with one"
                )
            with archive.open(pickles[0]) as file:
                return _TensorUnpickler(file, archive, pickles[0].split("/")[0]).load()  # type: ignore[arg-type]
    except WeightsError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(f"{path}: damaged torch file ({reason}); fetch it again") from None
