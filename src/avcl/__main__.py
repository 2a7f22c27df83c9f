"""``python -m avcl``."""

from avcl.cli import main

main()
