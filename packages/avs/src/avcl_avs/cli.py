"""The `avs` command: `avs train|test`, this task alone, and `avs unpack` for the packed waves of the published data."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avcl_core.cli import task_app


def _extend(app: typer.Typer) -> None:
    @app.command()
    def unpack(
        root: Annotated[Path, typer.Argument(metavar="ROOT", help="Holds Single-source and Multi-sources.")],
        out: Annotated[Path | None, typer.Option(help="Folder to write below; default: ROOT itself.")] = None,
    ) -> None:
        """Write one wave per video of the published AVS.npy files, which are pickles; run it once, before `avcl data prepare`."""
        from avcl_avs.packed import unpack as convert

        count = convert(root, out, print)
        print(f"{count} waves")


main = task_app("avs", _extend)
