"""Everything between files on disk and arrays: media, the prepared form, verification, caches."""

from avcl_core.data.frontcache import FrontendCache
from avcl_core.data.layout import ClipSource, Extra, Layout
from avcl_core.data.pool import Progress
from avcl_core.data.prepare import prepare
from avcl_core.data.prepared import Prepared
from avcl_core.data.problems import MediaError, Problem, broken, read_problems, write_problems
from avcl_core.data.progress import progress_bar
from avcl_core.data.verify import verify, verify_source

__all__ = [
    "ClipSource",
    "Extra",
    "FrontendCache",
    "Layout",
    "MediaError",
    "Prepared",
    "Problem",
    "Progress",
    "broken",
    "prepare",
    "progress_bar",
    "read_problems",
    "verify",
    "verify_source",
    "write_problems",
]
