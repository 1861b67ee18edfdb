"""Programs: sessions of several requests, from the first arrival to the last finish.

A program is what a user waits for when an application makes several calls: a chat, a tree of thoughts, an
agent. The DLPM paper's latency for its tree-of-thought and judge workloads is this (section 6.1).
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from suite.metrics.fates import excused, unserved


def programs(requests: pd.DataFrame) -> pd.DataFrame:
    """One row per session of two or more requests: session, client, arrival, program.

    `program` = last finish - first arrival in seconds, think times and waiting included; infinite where a
    request of the session was not served. Sessions with a request that could not be served (see
    `fates.excused`) are left out. `client` is that of the first request, `arrival` the first arrival.
    """
    rows = requests.assign(excused=excused(requests), unserved=unserved(requests)).groupby("session")
    found = rows.agg(
        client=("client", "first"),
        arrival=("arrival", "min"),
        finish=("finish", "max"),
        requests=("id", "size"),
        excused=("excused", "any"),
        unserved=("unserved", "any"),
    )
    found = found[(found["requests"] > 1) & ~found["excused"]]
    program = (found["finish"] - found["arrival"]).where(~found["unserved"], np.inf)
    return found[["client", "arrival"]].assign(program=program).reset_index()
