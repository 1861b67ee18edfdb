"""The front's process: `python -m suite.backends.front CONFIG.json` serves until SIGTERM or Ctrl-C."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from pathlib import Path

import uvloop

from suite.backends.front.config import SERVING, Config
from suite.backends.front.server import FrontServer
from suite.errors import BadInput
from suite.validation import read_yaml, validated


async def serve(server: FrontServer) -> None:
    """Serve until a signal to end."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    gc.freeze()
    await server.serve(over, lambda port, admin: print(f"{SERVING} {port} {admin}", flush=True))


def main() -> int:
    """Run the front that the argument configures; the exit code is 2 for bad input."""
    try:
        server = FrontServer(validated(Config, read_yaml(Path(sys.argv[1]))))
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(serve(server))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
