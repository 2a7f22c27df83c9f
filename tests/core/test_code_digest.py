"""The digest of the code changes with every source file, by name and content, and with nothing else."""

from __future__ import annotations

from pathlib import Path

from avcl_core.running.code import code_digest, digest_of_sources


def test_every_source_counts_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a" / "__pycache__").mkdir(parents=True)
    (tmp_path / "a" / "one.py").write_text("x = 1\n")
    found = {digest_of_sources(tmp_path)}
    (tmp_path / "a" / "__pycache__" / "one.pyc").write_text("compiled")
    assert {digest_of_sources(tmp_path)} == found
    for change in (
        lambda: (tmp_path / "a" / "one.py").write_text("x = 2\n"),
        lambda: (tmp_path / "a" / "one.py").rename(tmp_path / "a" / "two.py"),
        lambda: (tmp_path / "b.py").touch(),
    ):
        change()
        now = digest_of_sources(tmp_path)
        assert now not in found
        found.add(now)
    assert len(code_digest()) == 64
