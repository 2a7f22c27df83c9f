"""One pool for many rounds of work: the same workers, the same results, and an error that leaves nothing running.

Jobs are expressions, because ``eval`` is a function that worker processes can import; test modules are not.
"""

import os

import pytest

from avcl_core.data.pool import one_pool, run_jobs

PROCESS = "__import__('os').getpid()"


def test_rounds_inside_one_pool_share_its_workers():
    with one_pool(2), one_pool(2):
        rounds = [dict(run_jobs(eval, [PROCESS] * 6, 2)) for _ in range(2)]
    assert [sorted(found) for found in rounds] == [list(range(6))] * 2
    workers = {process for found in rounds for process in found.values()}
    assert len(workers) <= 2
    assert os.getpid() not in workers


def test_an_error_cancels_its_own_round_alone_and_nothing_is_written_after_it(tmp_path):
    write = "[__import__('time').sleep(0.2), __import__('pathlib').Path({!r}).touch()]"
    jobs = ["1 / 0", *(write.format(str(tmp_path / str(number))) for number in range(20))]
    with one_pool(2):
        with pytest.raises(ZeroDivisionError):
            list(run_jobs(eval, jobs, 2))
        written = sorted(tmp_path.iterdir())
        assert len(written) < 20
        assert len(dict(run_jobs(eval, [PROCESS] * 4, 2))) == 4
        assert sorted(tmp_path.iterdir()) == written
