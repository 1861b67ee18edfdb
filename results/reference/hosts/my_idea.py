"""Fewest uncached prompt tokens first, but nobody waits longer than the patience lasts."""

from baselines.scheduler import Candidates, Request, Scheduler, Waiting


class MyIdea(Scheduler):
    """Serve the cheapest prompt first, unless a request has waited longer than `patience` seconds."""

    name = "my-idea"

    def __init__(self, *, patience: float = 30.0) -> None:
        self.patience = patience

    def candidates(self, waiting: Waiting, now: float) -> Candidates:
        """The most urgent, again after each admission."""

        def urgency(request: Request) -> tuple[bool, int]:
            patient = now - request.arrival < self.patience
            return patient, request.prompt_tokens - waiting.matched(request)

        while len(waiting):
            if not (yield min(waiting.by_arrival(), key=urgency)):
                return
