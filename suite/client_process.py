"""A process with one `Client`: `python -m suite.client_process HANDLE`, started by `suite.replay`.

Over its end of a socket pair it gets a `Job`, says `Ready`, gets the start time, and then tells of each
request as a `Record` and at last of itself as `Health`. Text that comes in between is a reason to give up. It
ends with the pair: a parent that dies takes its clients along.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sys
import threading
from multiprocessing.connection import Connection
from typing import Any

import uvloop

from suite.client import Client, Ready


def main(handle: int) -> None:
    """The life of a client process; `handle` is its end of the pair."""
    connection = Connection(handle)
    outbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
    try:
        client = Client(connection.recv(), outbox.put)
        connection.send(Ready())
        start = connection.recv()
    except (EOFError, OSError):
        return
    postman = threading.Thread(target=_deliver, args=(outbox, connection), daemon=True)
    postman.start()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        threading.Thread(target=_listen, args=(connection, client, runner.get_loop()), daemon=True).start()
        outbox.put(runner.run(client.run(start)))
    outbox.put(None)
    postman.join()


def _deliver(outbox: queue.SimpleQueue[Any], connection: Connection) -> None:
    """Send what is put into the outbox until None: in a thread, so that no slow reader holds up the loop."""
    while (message := outbox.get()) is not None:
        connection.send(message)


def _listen(connection: Connection, client: Client, loop: asyncio.AbstractEventLoop) -> None:
    """Hear reasons to give up. When the parent is gone, nobody is left to tell."""
    try:
        while True:
            loop.call_soon_threadsafe(client.stop, connection.recv())
    except (EOFError, OSError):
        os._exit(1)


if __name__ == "__main__":
    main(int(sys.argv[1]))
