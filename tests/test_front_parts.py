"""The parts of the front that need no connection: prompts, identity, counting, events, accounts."""

from __future__ import annotations

import asyncio
import json
from array import array
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from baselines.d2lpm import D2LPM
from baselines.router import End, Request, Router, Worker
from suite.backends.front.cluster import Cluster, Flight, Replica
from suite.backends.front.config import Config, Identity, WorkerAddress
from suite.backends.front.identity import Caller, Refused, register
from suite.backends.front.journal import Journal
from suite.backends.front.kv_events import AllBlocksCleared, Batch, BlockRemoved, BlockStored, Held, Listener
from suite.backends.front.prompts import keys, prompt
from suite.backends.front.stamp import ROUTING_KEY, claims, parsed, stamped
from suite.backends.front.tally import CLIENTS, OTHER, Tallies
from suite.backends.front.tokens import Tokens
from suite.errors import BadInput
from suite.validation import validated

COMPLETIONS, CHAT, GENERATE = "/v1/completions", "/v1/chat/completions", "/generate"


# -- prompts -------------------------------------------------------------------------------------------------


def test_blocks_of_token_ids_are_their_bytes_and_only_full_ones_count():
    ids = list(range(40))
    found = prompt(COMPLETIONS, {"prompt": ids}, 16)
    assert found.tokens == 40
    assert list(found.blocks) == [array("I", ids[:16]).tobytes(), array("I", ids[16:32]).tobytes()]
    assert prompt(COMPLETIONS, {"prompt": [ids]}, 16) == found
    assert prompt(GENERATE, {"input_ids": ids}, 16) == found


def test_blocks_of_text_are_slices_of_it():
    found = prompt(COMPLETIONS, {"prompt": "x" * 64 + "y" * 64 + "z"}, 16)
    assert list(found.blocks) == ["x" * 64, "y" * 64]
    assert found.tokens == 33
    assert prompt(GENERATE, {"text": "x" * 64 + "y" * 64 + "z"}, 16) == found


def test_of_several_prompts_the_first_leads_and_all_count():
    found = prompt(COMPLETIONS, {"prompt": ["a" * 64, "b" * 64]}, 16)
    assert list(found.blocks) == ["a" * 64]
    assert found.tokens == 32


def test_a_conversation_goes_on_where_its_beginning_ends():
    messages = [{"role": "user", "content": "hello " * 50}, {"role": "assistant", "content": "well " * 50}]
    short = prompt(CHAT, {"messages": messages[:1]}, 16).blocks
    long = prompt(CHAT, {"messages": messages}, 16).blocks
    assert len(short) == 4
    assert list(long[:4]) == list(short)
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello " * 50}]}]
    assert prompt(CHAT, {"messages": parts}, 16).tokens > 70


@given(
    st.sampled_from([COMPLETIONS, CHAT, GENERATE]),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
)
def test_nonsense_is_no_prompt_and_no_error(path: str, nonsense: Any):
    body = dict.fromkeys(("prompt", "messages", "text", "input_ids"), nonsense)
    assert prompt(path, body, 16).tokens >= 0


# -- identity ------------------------------------------------------------------------------------------------


def a_table(folder: Path, text: str) -> Identity:
    (folder / "keys.yaml").write_text(text)
    return Identity(keys=folder / "keys.yaml")


def test_a_header_is_believed_and_who_sends_none_is_anonymous():
    known = register(Identity())
    assert known.caller({"X-Client-Id": "ann"}) == Caller("ann")
    assert known.caller({}).client == "anonymous"
    for name in ("a\x1b[2J", "x" * 1000):
        with pytest.raises(Refused) as refused:
            known.caller({"X-Client-Id": name})
        assert refused.value.status == 400


def test_of_two_headers_none_is_believed():
    """A gateway that adds its own may have let the tenant's through."""
    with pytest.raises(Refused, match="twice") as refused:
        register(Identity()).caller(CIMultiDict([("X-Client-Id", "bob"), ("x-client-id", "ann")]))
    assert refused.value.status == 400


def test_a_key_is_looked_up_and_nothing_else_is_believed(tmp_path: Path):
    known = register(a_table(tmp_path, "k1: ann\nk2: {client: bob, weight: 2}\n"))
    assert known.caller({"Authorization": "Bearer k1", "X-Client-Id": "bob"}) == Caller("ann", 1.0)
    assert known.caller({"Authorization": "bearer k2"}) == Caller("bob", 2.0)
    for headers in (
        {},
        {"X-Client-Id": "ann"},
        {"Authorization": "Bearer k3"},
        {"Authorization": "Basic k1"},
    ):
        with pytest.raises(Refused) as refused:
            known.caller(headers)
        assert refused.value.status == 401
        assert "k3" not in refused.value.message


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ("sesame: [ann]", "entry 1: no client"),
        ("sesame: {client: ann, wieght: 2}", "entry 1: wieght: unknown key; did you mean 'weight'"),
        ("sesame: {client: ann, weight: -1}", "entry 1: weight"),
        ("good: ann\n7: bob", "entry 2: the key is no text"),
    ],
)
def test_a_bad_table_names_the_entry_and_never_the_key(tmp_path: Path, table: str, problem: str):
    with pytest.raises(BadInput, match=problem) as error:
        register(a_table(tmp_path, table))
    assert "keys.yaml" in str(error.value)
    assert "sesame" not in str(error.value)


def written(engine: Any, path: str, body: dict[str, Any], caller: Caller) -> tuple[dict[str, Any], Any, bool]:
    """What the engine reads, the headers besides, and whether the bytes went through as they came."""
    raw = json.dumps(body).encode()
    letter = stamped(engine, path, raw, parsed(raw), caller)
    return json.loads(letter.body), letter.headers, letter.body == raw


def test_the_front_writes_the_client_where_vllm_reads_it():
    forged = {"prompt": [1], "vllm_xargs": {"client_id": "bob", "request_id": "r", "weight": 3, "other": 1}}
    body, _, _ = written("vllm", COMPLETIONS, forged, Caller("ann"))
    assert body["vllm_xargs"] == {"client_id": "ann", "request_id": "r", "weight": 3, "other": 1}
    body, _, _ = written("vllm", COMPLETIONS, forged | {"priority": -9}, Caller("ann", 2.0))
    assert body == {"prompt": [1], "vllm_xargs": {"client_id": "ann", "weight": 2.0, "other": 1}}


def test_the_front_writes_the_client_where_sglang_reads_it():
    forged = {"input_ids": [1], "routing_key": "bob", "sampling_params": {"custom_params": {"weight": 9}}}
    body, headers, _ = written("sglang", GENERATE, forged, Caller("ann"))
    told = {"custom_params": {"weight": 9, "client_id": "ann"}}
    assert body == {"input_ids": [1], "routing_key": "ann", "sampling_params": told}
    assert headers == {ROUTING_KEY: "ann"}
    body, _, _ = written("sglang", GENERATE, forged | {"priority": 5}, Caller("ann", 2.0))
    assert body["sampling_params"] == {"custom_params": {"client_id": "ann", "weight": 2.0}}
    assert "priority" not in body
    body, headers, _ = written("sglang", CHAT, {"custom_params": {"weight": 9}}, Caller("ann", 2.0))
    assert body == {"custom_params": {"client_id": "ann", "weight": 2.0}}
    assert headers == {ROUTING_KEY: "ann"}


@pytest.mark.parametrize("caller", [Caller("ann"), Caller("ann", 2.0)])
@pytest.mark.parametrize("path", [COMPLETIONS, GENERATE])
def test_sglang_is_told_the_client_where_it_keeps_it_of_each_of_several_prompts(path: str, caller: Caller):
    """It drops the routing key of a batch, and of several replies to one prompt."""
    rid = json.dumps({"client_id": "bob"})
    said = {"custom_params": {"client_id": "bob"}}
    forged = {"text": ["a", "b"], "rid": [rid, rid], "sampling_params": {"n": 2, **said}, **said}
    body, _, _ = written("sglang", path, forged, caller)
    assert claims("sglang", path, body)["client_id"] == "ann"
    assert "rid" not in body


def test_a_request_cannot_pass_for_a_health_check_of_sglang():
    body, _, _ = written("sglang", GENERATE, {"text": "a", "rid": "HEALTH_CHECK_1"}, Caller("ann"))
    assert "rid" not in body


@pytest.mark.parametrize("name", ["Zoë", " ann", "a\nb"])
def test_a_name_that_a_header_would_garble_is_told_in_the_body_alone(name: str):
    body, headers, _ = written("sglang", CHAT, {"messages": []}, Caller(name))
    assert body["custom_params"] == {"client_id": name}
    assert headers == {}


@pytest.mark.parametrize("said", [True, 1, "true"])
def test_beams_of_vllm_have_no_client_and_are_refused(said: object):
    with pytest.raises(Refused, match="use_beam_search"):
        written("vllm", COMPLETIONS, {"prompt": [1], "use_beam_search": said}, Caller("ann"))
    assert written("vllm", COMPLETIONS, {"prompt": [1], "use_beam_search": False}, Caller("ann"))


def test_bytes_that_say_the_right_thing_already_are_not_touched():
    right = {"prompt": [1, 2], "vllm_xargs": {"client_id": "ann", "weight": 2.0}}
    assert written("vllm", COMPLETIONS, right, Caller("ann", 2.0))[2]
    right = {"messages": [], "custom_params": {"client_id": "ann"}}
    assert written("sglang", CHAT, right, Caller("ann"))[2]
    assert written("openai", CHAT, {"messages": [], "priority": 1}, Caller("ann", 2.0))[2]


json_text = st.text(max_size=8)
bodies = st.dictionaries(
    st.sampled_from(["prompt", "vllm_xargs", "custom_params", "priority", "routing_key", "rid", "x"])
    | json_text,
    st.none()
    | st.dictionaries(st.sampled_from(["client_id", "weight", "priority", "y"]), json_text)
    | st.lists(st.integers(0, 9)),
    max_size=5,
)


@given(st.sampled_from(["vllm", "sglang"]), st.sampled_from([COMPLETIONS, GENERATE]), bodies)
def test_nobody_forges_another_client_whatever_the_body(engine: Any, path: str, body: dict[str, Any]):
    try:
        found, headers, _ = written(engine, path, body, Caller("ann", 2.0))
    except Refused:
        return
    if engine == "vllm":
        assert found["vllm_xargs"]["client_id"] == "ann"
    else:
        assert headers[ROUTING_KEY] == "ann"
        assert path != GENERATE or found["routing_key"] == "ann"
    about = claims(engine, path, found)
    assert (about["client_id"], about["weight"]) == ("ann", 2.0)
    assert "priority" not in found
    assert "priority" not in about
    written_over = {"vllm_xargs", "custom_params", "priority", "routing_key", "rid", "sampling_params"}
    untouched = set(body) - written_over
    assert all(found[key] == body[key] for key in untouched)


@pytest.mark.parametrize("raw", [b"", b"[1]", b"{", b'{"vllm_xargs": 3}', b'{"vllm_xargs": []}'])
def test_a_body_that_cannot_be_stamped_is_refused(raw: bytes):
    with pytest.raises(Refused) as refused:
        stamped("vllm", COMPLETIONS, raw, parsed(raw), Caller("ann"))
    assert refused.value.status == 400


# -- tokens --------------------------------------------------------------------------------------------------


def test_tokens_are_the_engines_count_or_else_its_events():
    def counted(*chunks: bytes) -> int:
        tokens = Tokens()
        for chunk in chunks:
            tokens.feed(chunk)
        return tokens.count()

    event = b'data: {"choices":[{"text":" a"}]}\n\n'
    assert counted(event, event * 2) == 3
    assert counted(event, b'data: {"usage":{"completion_tokens": 7}}\n\n', b"data: [DONE]\n\n") == 7
    assert counted(event, b'data: {"usage":{"completion_to', b'kens":7}}\n\ndata: [DONE]\n\n') == 7
    liar = json.dumps({"choices": [{"text": '"completion_tokens": 99'}]}).encode()
    assert counted(b"data: " + liar + b"\n\n") == 1
    assert counted(b'data: {"meta_info":{"completion_tokens":4}}\n\n', event) == 4


def test_tokens_of_all_replies_of_a_batch_count():
    """SGLang's own route tells the count of each by itself."""

    def counted(*chunks: bytes) -> int:
        tokens = Tokens()
        for chunk in chunks:
            tokens.feed(chunk)
        return tokens.count()

    def event(number: int, index: int) -> bytes:
        return b'data: {"meta_info":{"completion_tokens":%d},"index":%d}\n\n' % (number, index)

    both = [event(number, index) for number in (1, 2, 3) for index in (0, 1)]
    assert counted(*both, b"data: [DONE]\n\n") == 6
    assert counted(event(2, 0), event(5, 0), b"data: [DONE]\n\n") == 5
    assert counted(b'[{"meta_info":{"completion_tokens":3}},{"meta_info":{"completion_tokens":4}}]') == 7


# -- events of engines ---------------------------------------------------------------------------------------


BLOCK = 4


def stored(parent: int | None, first: int, count: int = 1) -> BlockStored:
    """Blocks `first`, `first + 1`, ... that follow `parent`; their numbers are their hashes and tokens."""
    hashes = list(range(first, first + count))
    return BlockStored(hashes, parent, [number for number in hashes for _ in range(BLOCK)], BLOCK)


def key(number: int) -> bytes:
    return keys([number] * BLOCK, BLOCK)[0]


def applied(held: Held, *events: Any) -> list[tuple[list[Hashable], int]]:
    return [(list(blocks), kept) for blocks, kept in held.apply(Batch(0.0, list(events)))]


def test_a_removed_block_is_told_with_what_leads_to_it():
    held = Held(BLOCK)
    assert applied(held, stored(None, 1, 3)) == []
    assert applied(held, BlockRemoved([3])) == [([key(1), key(2), key(3)], 2)]
    assert applied(held, BlockRemoved([3])) == []
    assert len(held) == 2


def test_of_blocks_removed_together_the_first_is_told():
    held = Held(BLOCK)
    applied(held, stored(None, 1, 4))
    assert applied(held, BlockRemoved([4]), BlockRemoved([3]), BlockRemoved([2])) == [([key(1), key(2)], 1)]


def test_removed_and_stored_again_is_held():
    held = Held(BLOCK)
    applied(held, stored(None, 1, 2))
    assert applied(held, BlockRemoved([2]), stored(1, 2)) == []


def test_an_emptied_cache_is_told_by_its_roots():
    held = Held(BLOCK)
    applied(held, stored(None, 1, 3), stored(None, 9))
    assert sorted(applied(held, AllBlocksCleared())) == [([key(1)], 0), ([key(9)], 0)]
    assert len(held) == 0


def test_blocks_that_hang_in_the_air_or_in_other_memory_are_left_out():
    held = Held(BLOCK)
    applied(held, stored(77, 5), msgspec.structs.replace(stored(None, 6), medium="CPU"))
    assert applied(held, BlockRemoved([5]), BlockRemoved([6])) == []
    ring = [msgspec.structs.replace(stored(2, 1)), stored(1, 2)]
    assert applied(held, *ring) == applied(held, BlockRemoved([2])) == []


def line(number: int) -> list[int]:
    """In a tree where block n follows block n // 2: the blocks up to one."""
    return [*line(number // 2), number] if number else []


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=60))
def test_by_the_reports_nothing_is_held_that_is_out_of_reach(steps: list[tuple[bool, int]]):
    """And nothing else is given up: a block is, when it or one before it goes, until it is stored again."""
    held, cache, reached, believed = Held(BLOCK), set[int](), set[int](), set[tuple[bytes, ...]]()
    for store, number in steps:
        path = line(number)
        if store:
            told = applied(held, *(stored(one // 2 or None, one) for one in path))
            cache.update(path)
            reached.update(path)
            believed.update(tuple(map(key, path[:end])) for end in range(1, len(path) + 1))
        else:
            told = applied(held, BlockRemoved([number]))
            reached -= {one for one in reached if number in line(one)} if number in cache else set()
            cache.discard(number)
        for blocks, kept in told:
            believed = {one for one in believed if one[: kept + 1] != tuple(blocks[: kept + 1])}
    assert believed == {tuple(map(key, line(one))) for one in reached}
    assert all(set(line(one)) <= cache for one in reached)


def frames(number: int, *events: Any) -> list[bytes]:
    return [b"topic", number.to_bytes(8, "big"), msgspec.msgpack.encode(Batch(0.0, list(events)))]


def test_missed_messages_are_counted_and_a_restart_begins_anew():
    told: list[tuple[Sequence[Hashable], int]] = []
    listener = Listener("tcp://127.0.0.1:1", BLOCK, lambda blocks, kept: told.append((blocks, kept)))

    def take(*messages: list[bytes]) -> None:
        for message in messages:
            asyncio.run(listener.take(message))

    take(frames(5, stored(None, 1, 2)), frames(6, BlockRemoved([2])))
    assert [kept for _, kept in told] == [1]
    assert listener.word()["missed"] == 0
    take(frames(9, BlockRemoved([1])))
    assert listener.word()["missed"] == 2
    take(frames(10, stored(None, 3)), frames(0, BlockRemoved([3])))
    assert len(told) == 2
    assert listener.problem() is None
    take([b"x"], [b"topic", b"\0", b"\xc1"])
    assert listener.problem() == "2 messages could not be read"


def test_blocks_of_another_size_are_a_reason_not_to_count_on_events():
    held = Listener("tcp://127.0.0.1:1", 16, lambda blocks, kept: None)
    asyncio.run(held.take(frames(0, stored(None, 1))))
    assert held.problem() == "its blocks have another size"


# -- the promises to routers ---------------------------------------------------------------------------------


class Watched(D2LPM):
    """D2LPM that holds its host to the promises of `baselines.router`."""

    def __init__(self) -> None:
        super().__init__(quantum=50)
        self.there: list[Worker] = []
        self.on: dict[Request, tuple[Worker, bool]] = {}

    def joined(self, worker: Worker, now: float) -> None:
        assert worker not in self.there
        self.there.append(worker)
        super().joined(worker, now)

    def lost(self, worker: Worker, now: float) -> None:
        assert all(at is not worker for at, _ in self.on.values())
        self.there.remove(worker)
        super().lost(worker, now)

    def route(self, request: Request, workers: Sequence[Worker], now: float) -> Worker:
        assert list(workers) == [worker for worker in self.there if worker in workers]
        assert workers
        assert request not in self.on
        chosen = super().route(request, workers, now)
        self.on[request] = chosen, False
        return chosen

    def started(self, request: Request, worker: Worker, now: float) -> None:
        assert self.on[request] == (worker, False)
        self.on[request] = worker, True

    def finished(self, request: Request, worker: Worker, end: End, output_tokens: int, now: float) -> None:
        at, begun = self.on.pop(request)
        assert at is worker
        assert not (end == "returned" and begun)
        super().finished(request, worker, end, output_tokens, now)

    def charged(self) -> float:
        return sum(account.charged for accounts in self.accounts.values() for account in accounts.values())


def a_cluster(router: Router) -> tuple[Cluster, list[Replica]]:
    replicas = [Replica(WorkerAddress(name=f"replica-{i}", url="http://127.0.0.1:1")) for i in range(3)]
    return Cluster(router, Tallies(lambda: ()), Journal(None)), replicas


actions = st.tuples(
    st.sampled_from(["send", "begin", "stop", "abort", "return", "join", "lose", "drain"]), st.integers(0, 50)
)


@given(st.lists(actions, max_size=80))
def test_whatever_happens_the_promises_are_kept_and_accounts_settle(steps: list[tuple[str, int]]):
    asyncio.run(_lived_through(steps))


async def _lived_through(steps: list[tuple[str, int]]) -> None:
    router = Watched()
    cluster, replicas = a_cluster(router)
    flights: list[Flight] = []
    for action, number in steps:
        replica = replicas[number % 3]
        if action == "join" and not (replica.up or replica.draining):
            cluster.join(replica)
        elif action == "lose":
            cluster.lose(replica)
        elif action == "drain" and number < 3:
            cluster.drain(replica)
        elif action == "send" and (flight := await _sent(cluster, number)):
            flights.append(flight)
        elif flights and action not in ("send", "join", "lose", "drain"):
            _moved(cluster, flights[number % len(flights)], action)
    for replica in replicas:
        cluster.lose(replica)
    assert router.on == {}
    assert not any(router.outstanding.values())
    assert cluster.tallies.total().in_flight == 0
    assert all(flight.over for flight in flights)


async def _sent(cluster: Cluster, number: int) -> Flight | None:
    """A flight whose task is one of its own, which may be cancelled."""

    async def send() -> Flight | None:
        request = Request(f"r{number}", "ab"[number % 2], 0.0, 32, [number % 5, number], 16)
        return cluster.send(request)

    return await asyncio.create_task(send())


def _moved(cluster: Cluster, flight: Flight, action: str) -> None:
    if action == "begin" and not (flight.begun or flight.over):
        cluster.begin(flight)
    elif action in ("stop", "abort"):
        cluster.end(flight, "stop" if action == "stop" else "abort")
    elif action == "return" and not flight.begun:
        cluster.end(flight, "returned")


def test_what_was_returned_is_not_charged():
    async def returned() -> None:
        router = Watched()
        cluster, replicas = a_cluster(router)
        for replica in replicas:
            cluster.join(replica)
        flight = await _sent(cluster, 1)
        assert flight
        assert router.charged() == 32
        cluster.end(flight, "returned")
        assert router.charged() == 0

    asyncio.run(returned())


# -- counts and configuration --------------------------------------------------------------------------------


def samples(tallies: Tallies, name: str) -> Iterator[tuple[str, float]]:
    for metric in tallies.collect():
        yield from ((one.labels["client"], one.value) for one in metric.samples if one.name == name)


def test_the_number_of_clients_that_are_told_apart_is_bounded():
    tallies = Tallies(lambda: [("replica-0", True)])
    for number in range(CLIENTS + 50):
        request = Request(f"r{number}", f"client-{number}", 0.0, 10)
        tallies.sent(request, "replica-0", 0, 1e-5)
        tallies.ended(request, "replica-0", "stop", 2)
    seen = dict(samples(tallies, "front_output_tokens_total"))
    assert len(seen) == CLIENTS + 1
    assert seen[OTHER] == 100
    assert dict(samples(tallies, "front_in_flight"))[OTHER] == 0


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"workers": [{"name": "a", "url": "127.0.0.1:80"}]}, "is no HTTP address"),
        ({"workers": [{"name": "a", "url": "http://h/x"}]}, "is no HTTP address"),
        (
            {"workers": [{"name": "a", "url": "http://h", "events": "tcp://h"}]},
            "'tcp://h' is no ZeroMQ address",
        ),
        ({"workers": [{"name": "a", "url": "http://h", "events": "tcp://h:99999"}]}, "is no ZeroMQ address"),
        ({"workers": [{"name": "a", "url": "http://h"}] * 2}, "the name 'a' stands twice"),
        ({"timeouts": {"stall": 3}}, "timeouts.stall: unknown key; did you mean 'stall_s'"),
        ({"engine": "tgi"}, "engine"),
    ],
)
def test_a_bad_configuration_says_what_is_wrong(change: dict[str, Any], problem: str):
    address = {"name": "a", "url": "http://h", "events": "ipc:///tmp/suite-x/events"}
    assert validated(WorkerAddress, address).events == "ipc:///tmp/suite-x/events"
    plain: dict[str, Any] = {"router": {"target": "m:C"}, "engine": "vllm", "port": 1, "admin_port": 2}
    with pytest.raises(BadInput, match=problem):
        validated(Config, plain | change)
