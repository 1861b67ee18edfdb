"""Trees of thoughts on the questions of GSM8K, as the DLPM paper runs them (its Table 2, Fig. 6).

A tree grows from a question of `openai/gsm8k` in its own words, behind `shots` examples; instructions and
replies are of made-up lengths.
"""

from __future__ import annotations

from collections.abc import Iterator

from suite.trace import Request
from workloads.gsm8k import Mathematics
from workloads.parts.clients import Client
from workloads.parts.streams import stream
from workloads.tree_of_thoughts import Trees


class GSM8KTree(Mathematics, Trees):
    """Trees, each a session on a question that no other tree grows from."""

    def sessions(self, client: Client, seed: int) -> Iterator[list[Request]]:
        """The client's trees. Raises `BadInput` when there is no question left."""
        problems = self.problems(client, seed)
        for number, problem in enumerate(problems):
            session = f"{client.name}/{number}"
            yield self.tree(client, session, self.asked(problem.text), stream(seed, "tree", session))
        raise self.none_left(client, problems)
