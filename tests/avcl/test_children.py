"""A command of this program in a forked process: its words, its folder, its environment, its end; and a server that can be forked."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from avcl.children import PRELOADED, Child

CUDA = """
import importlib, sys, threading
import torch
def refuse(*given, **named):
    raise AssertionError("asks for the GPU, after which no process can be forked")
for name in ("_cuda_init", "_cuda_getDeviceCount", "_cuda_isInBadFork"):
    setattr(torch._C, name, refuse)
for name in ("is_available", "device_count", "init", "_lazy_init"):
    setattr(torch.cuda, name, refuse)
for name in {names!r}:
    importlib.import_module(name)
print(threading.active_count())
"""


def test_words_and_exit_code_are_those_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here.yaml").write_text("nothing: 1\n")
    lines = []
    for folder, columns, said in ((tmp_path, "40", "here.yaml:1"), (Path.cwd(), "200", "no such file")):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("COLUMNS", columns)
        wrong, listing = Child(["run", "here.yaml"]), Child(["list", "methods"])
        assert said in wrong.stdout.read(), "it runs in the folder that it was started in"
        assert wrong.wait() == wrong.poll() == 2
        lines.append(listing.stdout.read().splitlines())
        assert listing.wait() == 0
    assert any(line.startswith("finetune") for line in lines[1])
    assert len(lines[0]) > len(lines[1]), "in the environment of its start, not of the server's"


def test_a_request_to_stop_reaches_it() -> None:
    child = Child(["run", "embedded"])
    assert child.poll() is None
    child.terminate()
    assert child.wait() in (-signal.SIGTERM, 75)


def test_nothing_that_the_server_imports_touches_a_gpu_or_starts_a_thread() -> None:
    command = [sys.executable, "-c", CUDA.format(names=PRELOADED)]
    assert subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip() == "1"
