"""Worker processes: results, progress, death, and being stopped."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from suite import workers
from suite.workers import Finished, Lost, Progressed


def double(item: int, progress: Callable[[float], None]) -> int:
    for step in range(1001):
        progress(step / 1000)
    return 2 * item


def fragile(item: int, progress: Callable[[float], None]) -> int:
    if item == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if item == 2:
        os._exit(3)
    return item


def endless(item: int, progress: Callable[[float], None]) -> None:
    progress(1.0)
    time.sleep(600)


def littering(item: str, progress: Callable[[float], None]) -> None:
    """Work in a folder of its own, for ever."""
    with TemporaryDirectory(dir=item):
        progress(1.0)
        time.sleep(600)


def test_every_item_gives_its_result_and_its_progress():
    events = list(workers.run(double, [1, 2, 3], jobs=2))
    assert {e.index: e.result for e in events if isinstance(e, Finished)} == {0: 2, 1: 4, 2: 6}
    for index in range(3):
        shares = [e.share for e in events if isinstance(e, Progressed) and e.index == index]
        assert shares == sorted(shares)
        assert 10 < len(shares) <= 101, "small steps are not worth a message each"


def test_no_items_no_processes():
    assert list(workers.run(double, [], jobs=2)) == []


def test_a_dying_process_loses_its_item_and_no_other():
    events = list(workers.run(fragile, [0, 1, 2, 3, 4], jobs=2))
    lost = {e.index: e.reason for e in events if isinstance(e, Lost)}
    assert lost.keys() == {1, 2}
    assert "died with exit code -9 " in lost[1]
    assert "died with exit code 3 " in lost[2]
    assert {e.result for e in events if isinstance(e, Finished)} == {0, 3, 4}


def test_closing_reaps_every_process():
    events = workers.run(endless, [0, 1, 2], jobs=2)
    assert isinstance(next(events), Progressed)
    assert len(multiprocessing.active_children()) == 2
    events.close()
    assert multiprocessing.active_children() == []


def test_a_task_that_is_stopped_cleans_up(tmp_path: Path):
    events = workers.run(littering, [str(tmp_path)] * 2, jobs=2)
    next(events)
    next(events)
    assert len(list(tmp_path.iterdir())) == 2
    events.close()
    assert list(tmp_path.iterdir()) == []
