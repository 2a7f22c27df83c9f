"""The modules beside the tests: what the authors' files hold, and what their code computes from it."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("released_layout", "released_forward")
