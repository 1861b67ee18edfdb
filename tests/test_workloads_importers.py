"""Importers of public traces: by rows in the published schemas, and by the published files where they are."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from suite.errors import BadInput
from suite.trace import Segment, Trace
from workloads.reading import rows
from workloads.spec import load

AZURE_2023 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2023-11-16 18:15:46.6805900,374,44
2023-11-16 18:15:50.9951690,396,109
2023-11-16 18:15:51.0000000,0,7
2023-11-16 18:16:46.6805900,91,16
"""
AZURE_2024 = """\
TIMESTAMP,ContextTokens,GeneratedTokens
2024-05-10 00:00:00.009930+00:00,2162,5
2024-05-10 00:00:00.017335+00:00,2399,6
2024-05-10 02:00:01.009930+02:00,76,15
"""
BURSTGPT_1 = """\
Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type
5,ChatGPT,472,18,490,Conversation log
45,ChatGPT,1087,230,1317,Conversation log
45,GPT-4,417,276,693,Conversation log
118,GPT-4,300,0,300,API log
160,ChatGPT,0,0,0,API log
"""
BURSTGPT_3 = """\
Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type
19440110.0,1722ac82-0a46-4bf0-aa08-89794e7a2b3f,43,GPT-4,906,446,1352,Conversation log
19440161.0,d5983bf9-4b48-497b-892b-a58995247443,2,ChatGPT,36,29,65,Conversation log
19440192.0,1722ac82-0a46-4bf0-aa08-89794e7a2b3f,8,GPT-4,1779,123,1902,Conversation log
19440192.0,1722ac82-0a46-4bf0-aa08-89794e7a2b3f,5,GPT-4,2100,20,2120,Conversation log
19440254.0,,,ChatGPT,935,178,1113,API log
"""
CHATS: list[dict[str, Any]] = [
    {"chat_id": 7, "parent_chat_id": -1, "timestamp": 0.0, "input_length": 40, "output_length": 100,
     "type": "text", "turn": 1, "hash_ids": [0, 1, 2]},
    {"chat_id": 8, "parent_chat_id": 5, "timestamp": 0.5, "input_length": 16, "output_length": 10,
     "type": "search", "turn": 3, "hash_ids": [9]},
    {"chat_id": 9, "parent_chat_id": 7, "timestamp": 61.114, "input_length": 50, "output_length": 0,
     "type": "text", "turn": 2, "hash_ids": [0, 1, 3, 4]},
    {"chat_id": 11, "parent_chat_id": 9, "timestamp": 62.0, "input_length": 64, "output_length": 7,
     "type": "text", "turn": 3, "hash_ids": [0, 1, 3, 5]},
    {"chat_id": 12, "parent_chat_id": 7, "timestamp": 63.25, "input_length": 33, "output_length": 7,
     "type": "text", "turn": 2, "hash_ids": [0, 1, 6]},
]  # fmt: skip


def saved(folder: Path, content: str | list[dict[str, Any]]) -> Path:
    path = folder / ("rows.csv" if isinstance(content, str) else "rows.jsonl")
    path.write_text(content if isinstance(content, str) else "".join(f"{json.dumps(r)}\n" for r in content))
    return path


def imported(family: str, path: Path | str, seed: int = 0, **parameters: Any) -> Trace:
    return load({"family": family, "file": str(path), **parameters}).generate(seed)


# -- Azure -------------------------------------------------------------------------------------------------


def test_azure_2023_has_seven_decimals_and_no_zone(tmp_path: Path) -> None:
    trace = imported("azure", saved(tmp_path, AZURE_2023))
    rows = [(r.arrival, r.prompt_tokens, r.output_tokens) for r in trace.requests]
    assert rows == [(0, 374, 44), (4.314579, 396, 109), (60, 91, 16)]
    assert trace.clients == ("anonymous",)
    assert trace.header.choices["counts"] == {"rows_without_tokens": 1}


def test_azure_2024_has_six_decimals_and_an_offset(tmp_path: Path) -> None:
    requests = imported("azure", saved(tmp_path, AZURE_2024)).requests
    assert [request.arrival for request in requests] == [0, 0.007405, 1]
    assert [request.prompt_tokens for request in requests] == [2162, 2399, 76]


def test_azure_prompts_share_nothing_and_the_header_says_so(tmp_path: Path) -> None:
    trace = imported("azure", saved(tmp_path, AZURE_2023.replace("396", "374")))
    assert len({segment.id for request in trace.requests for segment in request.prompt}) == 3
    assert trace.header.choices["prefix_rule"] == "each prompt is a segment of its own; nothing is shared"
    assert trace.header.choices["provenance"] == (
        "Azure/AzurePublicDataset, LLM inference traces; licence CC-BY-4.0; rows.csv, all rows"
    )


def test_the_published_azure_trace(traces: Path) -> None:
    path = traces / "azure/AzureLLMInferenceTrace_conv.csv"
    if not path.is_file():
        pytest.skip(f"no Azure trace at {path}: set SUITE_TRACES to the folder that holds it")
    requests = imported("azure", path).requests
    assert len(requests) == 19_366
    assert np.mean([request.prompt_tokens for request in requests]) == pytest.approx(1155, abs=0.5)
    assert np.mean([request.output_tokens for request in requests]) == pytest.approx(211, abs=0.5)
    assert requests[-1].arrival == pytest.approx(58.4 * 60, abs=6)


# -- BurstGPT ----------------------------------------------------------------------------------------------


def test_burstgpt_without_sessions(tmp_path: Path) -> None:
    trace = imported("burstgpt", saved(tmp_path, BURSTGPT_1), spread="none")
    rows = [(r.arrival, r.prompt_tokens, r.output_tokens, r.session, r.after) for r in trace.requests]
    assert rows == [(0, 472, 18, None, ()), (40, 1087, 230, None, ()), (40, 417, 276, None, ())]
    assert trace.header.choices["counts"] == {"rows_without_tokens": 2}
    assert trace.clients == ("anonymous",)


def test_burstgpts_sessions_wait_as_long_as_they_did(tmp_path: Path) -> None:
    trace = imported("burstgpt", saved(tmp_path, BURSTGPT_3), spread="none")
    first, other, second, third, lone = trace.requests
    assert first.session == second.session == third.session == "1722ac82-0a46-4bf0-aa08-89794e7a2b3f"
    assert other.session not in (None, first.session)
    assert (second.after, second.think) == ((first.id,), 82 - 43)
    assert (third.after, third.think) == ((second.id,), 0)
    assert (lone.session, lone.after) == (None, ())
    assert [request.arrival for request in trace.requests] == [0, 51, 82, 82, 144]


def test_burstgpts_whole_seconds_are_spread_within_the_second(tmp_path: Path) -> None:
    rows = "".join(f"{second},ChatGPT,9,9,18,API log\n" for second in [0] * 300 + [1] * 300 + [60] * 300)
    path = saved(tmp_path, BURSTGPT_1.partition("\n")[0] + "\n" + rows)
    arrivals = np.array([request.arrival for request in imported("burstgpt", path).requests])
    for begin, part in zip((0, 1, 60), arrivals.reshape(3, 300), strict=True):
        assert begin <= part.min() < part.max() < begin + 1
        assert part.mean() == pytest.approx(begin + 0.5, abs=0.1)
    again = [request.arrival for request in imported("burstgpt", path, seed=1).requests]
    assert not np.allclose(arrivals, again)


def test_spread_turns_of_one_second_keep_their_order(tmp_path: Path) -> None:
    head, *rows = BURSTGPT_3.splitlines()
    same = [row.replace("19440192.0", "19440110.0") for row in rows if "1722ac82" in row] * 20
    requests = imported("burstgpt", saved(tmp_path, "\n".join([head, *same]) + "\n")).requests
    assert [request.id for request in requests] == [f"row-{number:08}" for number in range(60)]
    assert all(later.after == (sooner.id,) for sooner, later in pairwise(requests))


# -- Bailian -----------------------------------------------------------------------------------------------


def test_bailian_prompts_share_their_blocks(tmp_path: Path) -> None:
    trace = imported("bailian", saved(tmp_path, CHATS))
    prompts = {request.id: request.prompt for request in trace.requests}
    assert prompts["chat-7"] == (Segment("block:0", 16), Segment("block:1", 16), Segment("block:2", 8))
    assert prompts["chat-12"] == (Segment("block:0", 16), Segment("block:1", 16), Segment("block:6", 1))
    assert [request.prompt_tokens for request in trace.requests] == [40, 16, 64, 33]


def test_bailian_sessions_go_back_to_a_root(tmp_path: Path) -> None:
    """Chat 9 was dropped and chat 5 is not in the file: their children keep the session, unlinked."""
    trace = imported("bailian", saved(tmp_path, CHATS))
    links = {request.id: (request.session, request.after) for request in trace.requests}
    assert links == {
        "chat-7": ("session-7", ()),
        "chat-8": ("session-5", ()),
        "chat-11": ("session-7", ()),
        "chat-12": ("session-7", ("chat-7",)),
    }
    assert [request.arrival for request in trace.requests] == [0, 0.5, 62, 63.25]
    assert trace.header.choices["counts"] == {"rows_without_tokens": 1}
    assert trace.clients == ("anonymous",)


# -- wrong rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "content", "old", "new", "message"),
    [
        ("azure", AZURE_2023, "396", "x", r":3: ContextTokens: .*integer.*got 'x'"),
        ("azure", AZURE_2023, "2023-11-16 18:15:50", "noon", r":3: TIMESTAMP: .*datetime"),
        ("azure", AZURE_2023, ",109", ",-1", r":3: GeneratedTokens: .*greater than or equal to 0"),
        ("azure", AZURE_2023, ",109", "", r":3: 2 values for 3 columns"),
        (
            "azure",
            AZURE_2023,
            "ContextTokens",
            "Context",
            r":1: the columns are .*; they must be 'TIMESTAMP,",
        ),
        ("burstgpt", BURSTGPT_1, "45,ChatGPT", "nan,ChatGPT", r":3: Timestamp: .*finite"),
        ("burstgpt", BURSTGPT_1, "1087", "1.5", r":3: Request tokens: .*integer"),
        ("burstgpt", BURSTGPT_1, "Log Type", "Log", r":1: .*must be 'Timestamp,Model,.*' or '.*Session ID,"),
        ("burstgpt", BURSTGPT_3, ",2,ChatGPT", ",soon,ChatGPT", r":3: Elapsed time: .*number.*'soon'"),
        ("burstgpt", BURSTGPT_3, ",2,ChatGPT", ",inf,ChatGPT", r":3: Elapsed time: .*finite"),
    ],
)
def test_wrong_lines_of_csv(
    tmp_path: Path, family: str, content: str, old: str, new: str, message: str
) -> None:
    path = saved(tmp_path, content.replace(old, new))
    with pytest.raises(BadInput, match=r"rows\.csv" + message) as caught:
        imported(family, path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hash_ids": [9, 9]}, "hash_ids: 2 ids, but input_length 16 makes 1 blocks of 16"),
        ({"hash_ids": [0.5]}, r"hash_ids\.0: .*integer"),
        ({"input_length": "many"}, "input_length: .*integer.*'many'"),
        ({"parent_chat_id": None}, "parent_chat_id: .*integer"),
        ({"chat_id": 2**64}, "chat_id: .*less than"),
        ({"hash_ids": [2**64]}, r"hash_ids\.0: .*less than"),
        ({"timestamp": -1}, "timestamp: .*greater than or equal to 0"),
    ],
)
def test_wrong_chats(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    path = saved(tmp_path, [CHATS[0], CHATS[1] | change])
    with pytest.raises(BadInput, match=r"rows\.jsonl:2: " + message) as caught:
        imported("bailian", path)
    assert "\n" not in str(caught.value)


def test_a_chat_that_stands_twice(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="id 'chat-7' stands twice"):
        imported("bailian", saved(tmp_path, [CHATS[0], CHATS[0]]))


@pytest.mark.parametrize(("family", "content"), [("azure", AZURE_2023), ("burstgpt", BURSTGPT_1)])
def test_a_limit_counts_rows_of_the_file(tmp_path: Path, family: str, content: str) -> None:
    trace = imported(family, saved(tmp_path, content), limit=2)
    assert len(trace.requests) == 2
    assert trace.header.choices["provenance"].endswith("rows.csv, the first 2 rows")
    with pytest.raises(BadInput, match="came out without requests"):
        imported(family, saved(tmp_path, content.partition("\n")[0] + "\n"))


def test_more_rows_than_a_trace_may_have_are_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "MOST_REQUESTS", 2)
    for family, content in (("azure", AZURE_2023), ("bailian", CHATS)):
        path = saved(tmp_path, content)
        assert imported(family, path, limit=2).requests
        with pytest.raises(BadInput, match=r"has more than 2 rows; keep the first ones with `limit`"):
            imported(family, path)


# -- ready specs -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["azure", "servegen"])
def test_ready_specs_of_files_that_are_at_hand(
    traces: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    if not (traces / name).is_dir():
        pytest.skip(f"no {name} in {traces}: set SUITE_TRACES to the folder that holds it")
    monkeypatch.setenv("SUITE_TRACES", str(traces))
    trace = load(name).generate(0)
    assert len(trace.requests) > 1000
    assert len(trace.clients) >= 8
    assert "anonymous" not in trace.clients


@pytest.mark.parametrize(
    ("name", "file", "content"),
    [
        ("burstgpt", "burstgpt/BurstGPT_2.csv", BURSTGPT_1),
        ("bailian", "qwen/qwen_coder_blksz_16.jsonl", CHATS),
    ],
)
def test_ready_specs_of_files_that_must_be_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, file: str, content: Any
) -> None:
    monkeypatch.setenv("SUITE_TRACES", str(tmp_path))
    with pytest.raises(BadInput, match=rf"file: '{file}' is neither in .*; set SUITE_TRACES to the folder"):
        load(name)
    (tmp_path / file).parent.mkdir()
    saved(tmp_path, content).rename(tmp_path / file)
    assert len(load(name).generate(0).requests) == (3 if name == "burstgpt" else 4)
