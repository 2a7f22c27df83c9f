"""The reading process: ``python -m avcl_core.importing SOURCE TARGET`` writes the tensors of SOURCE as safetensors, or one line of error."""

from __future__ import annotations

import sys
from pathlib import Path

from safetensors.torch import save_file

from avcl_core.errors import IntegrityError
from shared_backbones.convert.archive import read_tensors
from shared_backbones.errors import WeightsError


def main(source: str, target: str) -> int:
    """Read and write; return the exit code."""
    try:
        tensors = read_tensors(Path(source))
    except WeightsError as error:
        print(error, file=sys.stderr)
        return IntegrityError.exit_code
    # Tensors of one file may share memory, which safetensors does not write.
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, target)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
