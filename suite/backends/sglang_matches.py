"""How much of each waiting request SGLang's radix tree holds, kept fresh by what enters and leaves the tree.

Runs in SGLang's environment: standard library, sglang and `suite.backends.host`. Both classes implement
`suite.backends.host.FreshMatches`.

A match is what SGLang finds when it tries the request: whole pages of its prompt and output, at most all but
the last token. Looking is without SGLang's side effects: its own `match_prefix` marks what it finds as used
and splits nodes. A waiting request is listed twice: by its tokens up to and with the first page that is
missing, and by the node in which its match ends. It is looked up again when

- a key enters the tree that was there as far as the request matches and goes on with its missing page;
- that node leaves. Nodes leave from the leaves up. If the node has been split since, it is the lower part
  that keeps its identity, so it leaves before the part in which the match now ends, and the request is
  listed there in time.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

import sglang
from sglang.srt.mem_cache.radix_cache import RadixCache, RadixKey
from sglang.srt.mem_cache.unified_radix_cache import UnifiedRadixCache

from baselines.scheduler import Request
from suite.backends.host import Served

Changed: TypeAlias = Callable[[Request, int], object]
Found: TypeAlias = tuple[int, Hashable]
"""Tokens matched, and the node in which the match ends."""
NAMED = 64
"""How many tokens tell where a request goes on: a whole prompt would take as long as finding it."""


def matches_in(cache: Any) -> Incremental | NoMatches:
    """The way that suits a tree cache. Raises `ValueError` if there is none without side effects."""
    if cache.disable:
        return NoMatches()
    if type(cache) is RadixCache:
        return Incremental(cache, lambda key: _walk(cache, key), "_delete_leaf")
    find = getattr(getattr(cache, "tree_core", None), "match_full_device_prefix", None)
    if find and type(cache) is UnifiedRadixCache and len(cache.tree_components) == 1:
        return Incremental(cache, lambda key: find(key)[:2], "_evict_device_leaf")
    raise ValueError(
        f"a scheduler of the suite cannot look into the prefix cache of this server, which is the "
        f"{type(cache).__name__} of SGLang {sglang.__version__}: it needs full attention alone, "
        f"and 0.5.15 or later but for 0.5.19"
    )


class NoMatches:
    """For an engine without a prefix cache, and for one whose own policy decides."""

    kind = "none"
    listens: tuple[str, ...] = ()
    """Methods by which the engine tells of changes, and which cost time."""

    def follow(self, request: Request) -> int:
        """Nothing is matched."""
        return 0

    def unfollow(self, request: Request) -> None:
        """Nothing is followed."""

    def refresh(self, changed: Changed) -> None:
        """Nothing changes."""


class Incremental:
    """Listens to one tree cache by taking the place of its methods that change it.

    `find` looks a key up without side effects; `leaves` names the method that removes a node from the tree,
    its first argument.
    """

    kind = "incremental"
    listens = ("inserted", "removed", "emptied")

    def __init__(self, cache: Any, find: Callable[[Any], Found], leaves: str) -> None:
        self._page: int = cache.page_size
        self.find = find
        self._places: dict[Request, _Place] = {}
        self._missing: dict[int, set[_Place]] = {}
        self._ending: dict[Hashable, set[_Place]] = {}
        self._moved: set[_Place] = set()
        """Places to be looked up again; they are on no list."""
        self._listen(cache, leaves)

    # -- for the host --------------------------------------------------------------------------------------

    def follow(self, request: Request) -> int:
        """Tokens matched now."""
        assert isinstance(request, Served)
        place = self._places[request] = _Place(request, self._page)
        self._look(place)
        return place.matched

    def unfollow(self, request: Request) -> None:
        """Forget the request."""
        place = self._places.pop(request)
        if place in self._moved:
            self._moved.remove(place)
        else:
            self._unlist(place)

    def refresh(self, changed: Changed) -> None:
        """Look up again what may have changed, and tell what has."""
        moved, self._moved = self._moved, set()
        for place in moved:
            before = place.matched
            self._look(place)
            if place.matched != before:
                changed(place.request, place.matched)

    # -- for the tree --------------------------------------------------------------------------------------

    def inserted(self, key: Any, before: int) -> None:
        """A key is in the tree, of which `before` tokens were there already."""
        end = before + self._page
        if end <= len(key) and self._missing:
            self._move(self._missing.get(_named(key, end)))

    def removed(self, node: Hashable) -> None:
        """A node has left the tree."""
        self._move(self._ending.get(node))

    def emptied(self) -> None:
        """The tree is empty."""
        self._missing.clear()
        self._ending.clear()
        self._moved.update(self._places.values())

    # -- within --------------------------------------------------------------------------------------------

    def _listen(self, cache: Any, leaves: str) -> None:
        insert, remove, reset = cache.insert, getattr(cache, leaves), cache.reset

        def inserting(params: Any) -> Any:
            result = insert(params)
            self.inserted(params.key, result.prefix_len)
            return result

        def removing(node: Any, *args: Any) -> Any:
            result = remove(node, *args)
            self.removed(node)
            return result

        def resetting() -> None:
            reset()
            self.emptied()

        cache.insert, cache.reset = inserting, resetting
        setattr(cache, leaves, removing)

    def _look(self, place: _Place) -> None:
        place.matched, place.node = self.find(place.key)
        self._ending.setdefault(place.node, set()).add(place)
        if place.matched < place.limit:
            place.missing = _named(place.key, place.matched + self._page)
            self._missing.setdefault(place.missing, set()).add(place)

    def _move(self, places: set[_Place] | None) -> None:
        for place in list(places or ()):
            self._unlist(place)
            self._moved.add(place)

    def _unlist(self, place: _Place) -> None:
        _take(self._ending, place.node, place)
        if place.missing is not None:
            _take(self._missing, place.missing, place)
            place.missing = None


class _Place:
    """Where a waiting request stands: `matched` of the `limit` tokens that it can match, ending in `node`."""

    __slots__ = ("key", "limit", "matched", "missing", "node", "request")

    def __init__(self, request: Served, page: int) -> None:
        self.request = request
        self.key, self.limit = _key(request.engine, page)
        self.matched = 0
        self.node: Hashable = None
        self.missing: int | None = None


def _key(request: Any, page: int) -> tuple[Any, int]:
    """The key that SGLang looks up when it tries a request, and how long a match it can be."""
    tokens = request.origin_input_ids
    if request.output_ids:
        tokens = tokens + request.output_ids
    limit = request._compute_max_prefix_len(len(tokens)) // page * page
    if request.positional_embed_overrides is not None:
        limit = 0
    salt = {"cache_salt": request.cache_salt} if hasattr(request, "cache_salt") else {}
    return RadixKey(tokens, request.extra_key, limit=limit, **salt), limit


def _named(key: Any, end: int) -> int:
    """A number for the first `end` tokens of a key, which looks at the last of them only: two of one number
    cost no more than a look in vain.
    """
    last = key.token_ids[max(0, end - NAMED) : end].tobytes()
    return hash((key.extra_key, getattr(key, "cache_salt", None), end, last))


def _take(lists: dict[Any, set[_Place]], name: Hashable, place: _Place) -> None:
    listed = lists[name]
    listed.remove(place)
    if not listed:
        del lists[name]


def _walk(cache: Any, key: Any) -> Found:
    """What `RadixCache.match_prefix` finds, without its side effects."""
    node, matched = cache.root_node, 0
    key = key[: len(key)]
    while len(key):
        child = node.children.get(key.child_key(cache.page_size))
        if child is None:
            break
        same = child.key.match(key, page_size=cache.page_size)
        node, matched, key = child, matched + same, key[same:]
        if same < len(child.key):
            break
    return matched, node
