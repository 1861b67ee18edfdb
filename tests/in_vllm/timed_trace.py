"""What vLLM's benchmark makes of a file of timed rows: a line of JSON for each request.

python timed_trace.py FILE BLOCK SECONDS_A_UNIT
"""

from __future__ import annotations

import json
import sys

from vllm.benchmarks.datasets.datasets import TimedTrace, add_dataset_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser


class Vocabulary:
    """All that is asked of a tokenizer."""

    all_special_ids = (0, 1, 2)

    def get_vocab(self) -> dict[str, int]:
        return {str(id): id for id in range(32_000)}


parser = FlexibleArgumentParser()
add_dataset_parser(parser)
options = parser.parse_args(["--dataset-name", "timed_trace", "--dataset-path", sys.argv[1]])
dataset = TimedTrace(**vars(options))
for sample in dataset.sample(Vocabulary(), num_requests=sys.maxsize):
    row = {"time": sample.timestamp, "output_tokens": sample.expected_output_len, "prompt": sample.prompt}
    print(json.dumps(row))
