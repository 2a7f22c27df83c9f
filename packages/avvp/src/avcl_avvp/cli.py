"""The `avvp` command: `avvp train|test` for this task alone, and `avvp features` for users without motion features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from avcl_core.cli import task_app

Source = Annotated[Path, typer.Argument(help="LLP's folder, with label files and LLP_dataset/video/<id>.mp4.")]
Out = Annotated[Path, typer.Argument(help="Folder for <id>.npy; the layout looks in LLP_dataset/feats/r2plus1d_18.")]
Checkpoint = Annotated[
    Path, typer.Option(help="torchvision's r2plus1d_18 weights (Kinetics-400), r2plus1d_18-91a641e6.pth.")
]
Device = Annotated[str, typer.Option(help="Where the network runs: cpu, cuda or cuda:N.")]


def _extend(app: typer.Typer) -> None:
    @app.command()
    def features(source: Source, out: Out, checkpoint: Checkpoint, device: Device = "cpu") -> None:
        """Compute the r2plus1d_18 features of the raw videos below SOURCE, one vector per second. Continues a stopped call."""
        from avcl_avvp.r2plus1d import compute_features
        from avcl_core.data.progress import progress_bar

        with progress_bar("features") as progress:
            count = compute_features(source, out, checkpoint, device, progress)
        print(f"{out}: features of {count} videos")


main = task_app("avvp", _extend)
