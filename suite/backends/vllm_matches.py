"""How much of each waiting request vLLM's prefix cache holds, kept fresh by what enters and leaves the cache.

Runs in vLLM's environment: standard library, vllm and `suite.backends.host`. Both classes implement
`suite.backends.host.FreshMatches` and give what `coordinator.find_longest_cache_hit` gives for all tokens but
the last, without its side effects.

vLLM hashes each full block together with all before it, so the hashes of a request are a path, and what
waiting requests match is a tree of blocks, shared where their prompts are. A waiting request stands at its
last matched block and is listed under its next missing one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from vllm.v1.core.block_pool import BlockHashToBlockMap
from vllm.v1.core.kv_cache_coordinator import UnitaryKVCacheCoordinator
from vllm.v1.core.kv_cache_utils import get_block_hash
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager

from baselines.scheduler import Request
from suite.backends.host import Served

Changed: TypeAlias = Callable[[Request, int], object]


def matches_in(manager: Any) -> Incremental | Recomputed:
    """The way that suits the cache of a `KVCacheManager`: incremental if it is one pool of full attention."""
    coordinator = manager.coordinator
    plain = (
        type(coordinator) is UnitaryKVCacheCoordinator
        and type(coordinator.single_type_managers[0]) is FullAttentionManager
        and coordinator.kv_cache_spec.block_size == coordinator.block_size
        and not coordinator.eagle_group_ids
    )
    return Incremental(manager.block_pool, coordinator.block_size) if plain else Recomputed(coordinator)


class Recomputed:
    """Looks every match up anew whenever the policy looks: for caches of several kinds or sliding windows."""

    kind = "recomputed"
    listens: tuple[str, ...] = ()
    """Methods by which the engine tells of changes, and which cost time."""

    def __init__(self, coordinator: Any) -> None:
        self._coordinator = coordinator
        self._told: dict[Request, int] = {}

    def follow(self, request: Request) -> int:
        """Tokens matched now."""
        tokens = self._told[request] = self._matched(request)
        return tokens

    def unfollow(self, request: Request) -> None:
        """Stop looking this one up."""
        del self._told[request]

    def refresh(self, changed: Changed) -> None:
        """Look up all."""
        for request, told in self._told.items():
            tokens = self._told[request] = self._matched(request)
            if tokens != told:
                changed(request, tokens)

    def grown(self, request: Request) -> None:
        """A waiting request has got more tokens; the next look sees them."""

    def reset(self) -> None:
        """The cache may have been emptied; the next look sees it."""

    def _matched(self, request: Request) -> int:
        assert isinstance(request, Served)
        engine = request.engine
        if engine.skip_reading_prefix_cache:
            return 0
        hit = self._coordinator.find_longest_cache_hit(engine.block_hashes, engine.num_tokens - 1)
        return int(hit[1])


class Incremental:
    """Watches the pool's map from hashes to blocks. What changed is worked out when the policy looks.

    A block that enters costs a look into a dictionary, and more only if a waiting request misses it next; one
    that leaves likewise, if one matches it.
    """

    kind = "incremental"
    listens = ("inserted", "removed", "grown")

    def __init__(self, pool: Any, block: int) -> None:
        self._pool = pool
        self._block = block
        self._places: dict[Request, _Place] = {}
        self._nodes: dict[bytes, _Node] = {}
        self._missing: dict[bytes, set[_Place]] = {}
        self._moved: set[_Place] = set()
        """Places that are listed under no missing block, because theirs is to be looked for again."""
        self._watch()

    # -- for the host --------------------------------------------------------------------------------------

    def follow(self, request: Request) -> int:
        """Tokens matched now."""
        assert isinstance(request, Served)
        place = self._places[request] = _Place(request, self._root, _limit(request, self._block))
        self._extend(place)
        place.told = place.node.depth
        return place.told * self._block

    def unfollow(self, request: Request) -> None:
        """Forget the request."""
        place = self._places.pop(request)
        self._unlist(place)
        self._moved.discard(place)
        place.node.places.discard(place)
        self._prune(place.node)

    def refresh(self, changed: Changed) -> None:
        """Extend what has moved as far as the cache reaches, and tell what came of it."""
        for place in self._moved:
            self._extend(place)
            if place.node.depth != place.told:
                place.told = place.node.depth
                changed(place.request, place.told * self._block)
        self._moved.clear()

    def grown(self, request: Request) -> None:
        """A waiting request has got more tokens: output that was under way when it was preempted."""
        if place := self._places.get(request):
            self._unlist(place)
            place.limit = _limit(place.request, self._block)
            self._moved.add(place)

    def reset(self) -> None:
        """The pool may have emptied its cache, which it does by taking a new map."""
        if self._pool.cached_block_hash_to_block is not self._map:
            self._watch()

    # -- for the pool's map --------------------------------------------------------------------------------

    def misses(self, block_hash: bytes) -> bool:
        """Whether a waiting request would match further if this block were cached."""
        return block_hash in self._missing

    def uses(self, block_hash: bytes) -> bool:
        """Whether a waiting request matches this block."""
        return block_hash in self._nodes

    def inserted(self, block_hash: bytes) -> None:
        """A block that waiting requests miss next is in the cache."""
        self._moved.update(self._missing.pop(block_hash))

    def removed(self, block_hash: bytes) -> None:
        """A block that waiting requests match is in the cache no more."""
        node = self._nodes[block_hash]
        parent = node.parent
        assert parent is not None
        parent.children.discard(node)
        for place in self._uproot(node):
            place.node = parent
            parent.places.add(place)

    # -- within --------------------------------------------------------------------------------------------

    def _watch(self) -> None:
        """Begin with an empty cache."""
        assert not len(self._pool.cached_block_hash_to_block), "the prefix cache is not empty"
        self._map = self._pool.cached_block_hash_to_block = _WatchedMap(self)
        self._nodes.clear()
        self._missing.clear()
        self._root = _Node(b"", None)
        self._root.places.update(self._places.values())
        self._moved.update(self._places.values())
        for place in self._moved:
            place.node = self._root

    def _extend(self, place: _Place) -> None:
        """Move a place down to the last block that is cached, and list it under the next."""
        node, hashes = place.node, place.request.engine.block_hashes
        while node.depth < place.limit:
            block_hash = hashes[node.depth]
            child = self._nodes.get(block_hash)
            if child is None:
                if self._pool.get_cached_block(block_hash, [0]) is None:
                    self._missing.setdefault(block_hash, set()).add(place)
                    break
                child = self._nodes[block_hash] = _Node(block_hash, node)
            node = child
        place.node.places.discard(place)
        node.places.add(place)
        place.node = node

    def _unlist(self, place: _Place) -> None:
        """Take a place off the list of its missing block, if it is on one."""
        if place in self._moved or place.node.depth == place.limit:
            return
        block_hash = place.request.engine.block_hashes[place.node.depth]
        listed = self._missing[block_hash]
        listed.remove(place)
        if not listed:
            del self._missing[block_hash]

    def _uproot(self, node: _Node) -> list[_Place]:
        """Remove a block and all below it from the tree; the places there, which have now moved."""
        places: list[_Place] = []
        nodes = [node]
        while nodes:
            node = nodes.pop()
            del self._nodes[node.block_hash]
            nodes += node.children
            places += node.places
        for place in places:
            self._unlist(place)
        self._moved.update(places)
        return places

    def _prune(self, node: _Node) -> None:
        """Remove blocks that no waiting request matches any more."""
        while node.parent and not node.places and not node.children:
            del self._nodes[node.block_hash]
            node.parent.children.discard(node)
            node = node.parent


class _Node:
    """A cached block that waiting requests match, `depth` blocks from the beginning of their prompts."""

    __slots__ = ("block_hash", "children", "depth", "parent", "places")

    def __init__(self, block_hash: bytes, parent: _Node | None) -> None:
        self.block_hash = block_hash
        self.parent = parent
        self.depth: int = parent.depth + 1 if parent else 0
        self.children: set[_Node] = set()
        self.places: set[_Place] = set()
        """Of the requests that match no further."""
        if parent:
            parent.children.add(self)


class _Place:
    """Where a waiting request stands; it can match `limit` blocks, and was last told to match `told`."""

    __slots__ = ("limit", "node", "request", "told")

    def __init__(self, request: Served, root: _Node, limit: int) -> None:
        self.request = request
        self.node = root
        self.limit = limit
        self.told = 0


def _limit(request: Served, block: int) -> int:
    """Blocks of a request that can be matched: the last token is always computed."""
    engine = request.engine
    return 0 if engine.skip_reading_prefix_cache else (engine.num_tokens - 1) // block


class _WatchedMap(BlockHashToBlockMap):  # type: ignore[misc]  # vllm is not in the suite's environment
    """The pool's map, telling of missed blocks that enter and of the last copy of used ones that leave."""

    def __init__(self, matches: Incremental) -> None:
        super().__init__()
        self._matches = matches

    def insert(self, key: Any, block: Any) -> None:
        super().insert(key, block)
        block_hash = get_block_hash(key)
        if self._matches.misses(block_hash):
            self._matches.inserted(block_hash)

    def pop(self, key: Any, block_id: int) -> Any:
        block = super().pop(key, block_id)
        block_hash = get_block_hash(key)
        if self._matches.uses(block_hash) and self.get_one_block(key) is None:
            self._matches.removed(block_hash)
        return block
