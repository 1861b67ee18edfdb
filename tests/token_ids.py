"""The made-up token ids once more, by the standard library of any Python 3 alone.

Run as a script it reads a JSON list of [seed, segment id, tokens, vocabulary, first] and prints a JSON list
of the SHA-256 of each one's ids as little-endian 32-bit numbers.
"""

import hashlib
import json
import struct
import sys


def digest(seed, id, tokens, vocabulary, first):
    stream = hashlib.shake_128(f"{seed}\0{id}".encode()).digest(4 * tokens)
    drawn = (struct.unpack_from("<I", stream, 4 * i)[0] for i in range(tokens))
    ids = [first + number % (vocabulary - first) for number in drawn]
    return hashlib.sha256(struct.pack(f"<{tokens}i", *ids)).hexdigest()


if __name__ == "__main__":
    json.dump([digest(*segment) for segment in json.load(sys.stdin)], sys.stdout)
