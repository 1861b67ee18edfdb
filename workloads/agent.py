"""Agents with tools: a program that calls a tool, waits for it, and goes on from what it said.

The course of ReAct (Yao et al., 2023), and of ToolBench and ALFWorld, the agents in the study of Preble (its
Table 1): model calls and tool delays in turn, over a context that keeps every call and every observation.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

from numpy.random import Generator

from suite.trace import REPLY, Request, Segment
from workloads.family import Synthetic
from workloads.parts.arrivals import ThinkTime
from workloads.parts.clients import Client, Whose
from workloads.parts.lengths import Lengths
from workloads.parts.streams import stream


class Agent(Synthetic):
    """Tasks, each a session of `steps` tool calls and a final answer. Lengths are in tokens.

    The system prompt describes the tools; `system` says whose it is: each client's own, or one `shared` by
    all. The prompt of a call is the system prompt, the task, then each earlier call and what its tool gave
    back. A call is sent `delay` seconds, the time of the tool, after the last one has ended. A longer prefix
    is a longer system prompt; a bigger program has more steps.
    """

    system: Whose = "client"
    system_tokens: Lengths
    task_tokens: Lengths
    steps: Lengths
    call_tokens: Lengths
    delay: ThinkTime
    observation_tokens: Lengths
    answer_tokens: Lengths

    def requests_per_session(self, factor: float = 1.0) -> float:
        """The mean number of steps, and the answer."""
        return self.steps.expected() * factor + 1.0

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's tasks."""
        system = client.prefix_segment("system", self.system, self.system_tokens, seed)
        for number in count():
            session = f"{client.name}/{number}"
            yield list(self._calls(client, session, system, stream(seed, "task", session)))

    def _calls(self, client: Client, session: str, system: Segment, rng: Generator) -> Iterator[Request]:
        """The calls of one task, and its answer."""
        steps = client.program(self.steps.draw(rng))
        prompt: tuple[Segment, ...] = (system, Segment(f"task:{session}", self.task_tokens.draw(rng)))
        after: tuple[str, ...] = ()
        for step in range(steps + 1):
            id = f"{session}/{step}"
            think = self.delay.draw(rng) if step else 0.0
            output = (self.call_tokens if step < steps else self.answer_tokens).draw(rng)
            yield Request(id, client.name, 0.0, prompt, output, session, after, think)
            observed = Segment(f"observation:{id}", self.observation_tokens.draw(rng))
            prompt = (*prompt, Segment(f"{REPLY}{id}", output), observed)
            after = (id,)
