"""Run folders: what is written is read back, whole or not at all."""

from __future__ import annotations

import pandas as pd
import pytest
from synthetic_runs import requests, run

from suite import results
from suite.errors import BadInput

FRAME = requests({"client": "a", "arrival": 0, "finish": 2}, {"client": "b", "arrival": 1, "finish": 3})
STREAMS = pd.DataFrame({"id": ["r0", "r1"], "time": [2.0, 3.0], "tokens": [1, 1]})
SHARING = pd.DataFrame({"payer": ["a"], "client": ["b"], "tokens": [4]})


@pytest.mark.parametrize(("streams", "sharing"), [(None, None), (STREAMS, None), (STREAMS, SHARING)])
def test_a_run_is_read_as_it_was_written(tmp_path, streams, sharing):
    written = run(FRAME, streams=streams, sharing=sharing)
    results.write(written, tmp_path / "cell")
    found = results.read(tmp_path / "cell")
    assert found.manifest == written.manifest
    for name in results.FRAMES:
        given, got = getattr(written, name), getattr(found, name)
        assert (got is None) == (given is None)
        if given is not None:
            pd.testing.assert_frame_equal(got.astype(given.dtypes), given)


def test_a_run_written_again_leaves_nothing_of_the_old_one(tmp_path):
    results.write(run(FRAME, streams=STREAMS), tmp_path / "cell")
    results.write(run(FRAME), tmp_path / "cell")
    assert results.read(tmp_path / "cell").streams is None
    assert [path.name for path in tmp_path.iterdir()] == ["cell"]


@pytest.mark.parametrize("name", list(results.FRAMES))
def test_a_table_of_another_version_is_refused_by_name(tmp_path, name):
    results.write(run(FRAME, streams=STREAMS, sharing=SHARING), tmp_path)
    path = tmp_path / f"{name}.parquet"
    pd.read_parquet(path).drop(columns="client" if name != "streams" else "time").to_parquet(path)
    with pytest.raises(BadInput, match=rf"{name}\.parquet: columns missing: \w+; run it again"):
        results.read(tmp_path)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(BadInput, match=r"not a run folder: manifest\.json is missing"):
        results.read(tmp_path)
    results.write(run(FRAME), tmp_path)
    (tmp_path / "service.parquet").unlink()
    with pytest.raises(BadInput, match=r"service\.parquet: cannot be read"):
        results.read(tmp_path)
