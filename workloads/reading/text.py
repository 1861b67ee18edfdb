"""Real text: a served model's tokenizer with its chat template, and the prefixes that prompts share.

Which prompts share what is found in their token ids, never assumed: prompts are sorted, neighbours compared,
and every prompt cut where it parts from another (the edges of a radix tree). Two prompts share exactly their
longest common prefix. The one exception is a reply that an engine will give anew in a replay: it is shared by
those prompts alone that go on from the request it answers.
"""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TypeAlias

import numpy as np
from jinja2 import Template, TemplateError
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from numpy.typing import NDArray

from suite import hub
from suite.errors import BadInput
from suite.trace import REPLY, Segment
from workloads.reading.radix import MARK, Tree, key_of

TODAY = datetime(2024, 7, 26)
"""What chat templates that ask for the date are told, so that a prompt has the same bytes every day."""

Message: TypeAlias = Mapping[str, Any]
"""A chat message as the OpenAI API has it: `role`, `content`, and what else a chat template reads."""
Ids: TypeAlias = NDArray[np.int32]


# -- the tokenizer -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a served model."""

    name: str
    """Of its folder, or on the hub without the organisation's."""
    digest: str
    """SHA-256 over the tokenizer's file and its chat template."""
    template: str | None
    """The chat template (Jinja), if it has one."""
    special: Mapping[str, str]
    """The special tokens that the chat template may name: bos_token, eos_token, ..."""
    inner: Any

    @classmethod
    def load(cls, name: str) -> Tokenizer:
        """The tokenizer called so: a folder that holds a tokenizer.json, such a file, or a name on the hub.

        The chat template is that of tokenizer_config.json, or the file chat_template.jinja, beside it. Raises
        `BadInput` with the mend.
        """
        file = _file(name)
        config = _config(file.with_name("tokenizer_config.json"), name)
        template = _template(file.with_name("chat_template.jinja"), config, name)
        content = file.read_bytes()
        digest = sha256(content + (template or "").encode()).hexdigest()
        local = Path(name).expanduser().exists()
        called = file.parent.resolve().name if local else Path(name).name
        return cls(called, digest, template, _special(config), _inner(content, name))

    @property
    def rule(self) -> str:
        """How prompts are made of messages, for the header of a trace."""
        if self.template is None:
            return "no chat template: each message is its role, a colon, its content and a newline"
        dated = f", on {TODAY:%d %b %Y}" if "strftime_now" in self.template else ""
        return f"the tokenizer's chat template{dated}"

    def ids(self, text: str) -> list[int]:
        """The token ids of a text within a prompt: special tokens are those that stand in it."""
        ids: list[int] = self.inner.encode(text, add_special_tokens=False).ids
        return ids

    def whole(self, text: str) -> list[int]:
        """The token ids of a text that is the whole prompt, as of the completions endpoint.

        They have the special tokens that the tokenizer puts around one.
        """
        ids: list[int] = self.inner.encode(text).ids
        return ids

    def chat(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation so far, ready for the assistant's next message.

        Without a chat template each message is "role:", its content and a newline, and "assistant:" ends the
        prompt. Raises `BadInput` if the template refuses the messages, or makes nothing of them.
        """
        return self._plain(messages) if self.template is None else self.ids(self._rendered(messages))

    def reply(self, messages: Sequence[Message], said: str, prompt: Sequence[int]) -> list[int]:
        """The token ids of the reply to the messages, whose prompt is `prompt`, as later prompts have them.

        White space that a template puts before a reply, or what it puts after it, may merge with its first or
        last token. A reply that no later prompt repeats after this one has the ids of its text alone.
        """
        later = self._went_on(messages, said)
        within = self.inner.encode(later, add_special_tokens=False)
        if not prompt or within.ids[: len(prompt)] != [*prompt]:
            return self.ids(said)
        rest = later[within.offsets[len(prompt) - 1][1] :].lstrip()
        words = next(filter(rest.startswith, (said.lstrip(), said.strip())), "")
        if not words:
            return self.ids(said)
        end = len(later) - len(rest) + len(words)
        ids: list[int] = within.ids[len(prompt) : bisect_left(within.offsets, (end,))]
        return ids

    def _went_on(self, messages: Sequence[Message], said: str) -> str:
        """A later prompt as text, empty if there is no template or it refuses one."""
        more = [{"role": "assistant", "content": said}, {"role": "user", "content": "?"}]
        try:
            return "" if self.template is None else self._rendered([*messages, *more])
        except BadInput:
            return ""

    def _rendered(self, messages: Sequence[Message]) -> str:
        try:
            text = self._compiled.render(
                messages=[*messages], tools=None, documents=None, add_generation_prompt=True, **self.special
            )
        except Exception as error:  # a template is foreign code: whatever goes wrong in it
            raise BadInput(f"tokenizer {self.name!r}: its chat template fails: {hub.reason(error)}") from None
        if not text:
            raise BadInput(f"tokenizer {self.name!r}: its chat template makes an empty prompt")
        return text

    def _plain(self, messages: Sequence[Message]) -> list[int]:
        said = (self.ids(f"{one['role']}:") + self.ids(one["content"]) + self.ids("\n") for one in messages)
        return [*(id for ids in said for id in ids), *self.ids("assistant:")]

    @cached_property
    def _compiled(self) -> Template:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
        )
        environment.filters["tojson"] = _to_json
        environment.globals |= {"raise_exception": _refused, "strftime_now": TODAY.strftime}
        return environment.from_string(self.template or "")


class _Generation(Extension):
    """`{% generation %}` and its end, with which templates mark replies for training; they change no text."""

    tags = {"generation"}  # noqa: RUF012 - jinja2 declares it so

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _to_json(value: Any, **how: Any) -> str:
    return json.dumps(value, **{"ensure_ascii": False, **how})


def _refused(message: str) -> NoReturn:
    raise TemplateError(message)


def _file(name: str) -> Path:
    """The tokenizer.json, with what belongs to it beside it."""
    path = Path(name).expanduser()
    if path.is_file():
        return path
    folder = path if path.is_dir() else _from_hub(name)
    if not (folder / "tokenizer.json").is_file():
        raise BadInput(f"tokenizer: {name}: holds no tokenizer.json; give the folder of a model that has one")
    return folder / "tokenizer.json"


def _from_hub(name: str) -> Path:
    try:
        return hub.fetched(name, "tokenizer.json", "tokenizer_config.json", also=["chat_template.jinja"])
    except Exception as error:  # the hub's errors have no common base
        raise BadInput(
            f"tokenizer: {name!r} is no folder with a tokenizer.json, and not to be had from the hub: "
            f"{hub.reason(error)}; give the folder of a model"
        ) from None


def _config(file: Path, name: str) -> Mapping[str, Any]:
    try:
        found = json.loads(file.read_bytes()) if file.is_file() else {}
    except ValueError as error:
        raise BadInput(
            f"tokenizer: {name}: tokenizer_config.json: no JSON: {error}; fetch it again"
        ) from None
    if not isinstance(found, dict):
        raise BadInput(f"tokenizer: {name}: tokenizer_config.json: must hold a JSON object")
    return found


def _template(file: Path, config: Mapping[str, Any], name: str) -> str | None:
    """The chat template; of several named ones the one called `default`."""
    if file.is_file():
        return file.read_text(encoding="utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if isinstance(one, dict)}
        found = named.get("default")
        if found is None:
            raise BadInput(f"tokenizer: {name}: none of its chat templates is called 'default'; name one so")
    if not isinstance(found, str | None):
        raise BadInput(f"tokenizer: {name}: chat_template: must be a text or a list of named texts")
    return found


def _special(config: Mapping[str, Any]) -> dict[str, str]:
    found = {}
    for key, value in config.items():
        token = value.get("content") if isinstance(value, dict) else value
        if key.endswith("_token") and isinstance(token, str):
            found[key] = token
    return found


def _inner(content: bytes, name: str) -> Any:
    import tokenizers

    try:
        inner = tokenizers.Tokenizer.from_buffer(content)
    except Exception as error:  # the library raises plain `Exception`
        raise BadInput(f"tokenizer: {name}: cannot be read: {hub.reason(error)}; fetch it again") from None
    inner.no_truncation()
    inner.no_padding()
    return inner


# -- shared prefixes ---------------------------------------------------------------------------------------


class Exchange(NamedTuple):
    """A prompt and the recorded reply to it, as token ids.

    A prompt goes on from another only within one `session`. The reply may be left empty where it is not
    known; where it is, its length is the output of the request that becomes of it.
    """

    id: str
    prompt: Sequence[int] | Ids
    reply: Sequence[int] | Ids = ()
    session: str | None = None


class Found(NamedTuple):
    """What prompts are made of, in the order of the exchanges.

    `prompts` are their segments, `after` the id of the exchange whose prompt and reply a prompt goes on from
    (or nothing), and `tokens` the token ids of the segments of text.
    """

    prompts: list[tuple[Segment, ...]]
    after: list[tuple[str, ...]]
    tokens: dict[str, Ids]


def found(exchanges: Sequence[Exchange]) -> Found:
    """Cut prompts into segments so that two of them share exactly their longest common prefix.

    A prompt that begins with the whole prompt and reply of an earlier exchange of its session has that reply
    as `reply:ID`; of several such exchanges the longest counts, then the latest. The id of any other segment
    is `text:` and 16 hex digits of SHA-256 over the token ids from the beginning of the prompt to its end and
    then its length, so that it says begin and end; all are little-endian in 32 bits, and a reply in between
    counts by its segment's id.
    """
    prompts = [np.asarray(exchange.prompt, np.int32) for exchange in exchanges]
    parents = _parents(exchanges, prompts)
    tree = Tree([f"{REPLY}{exchange.id}" for exchange in exchanges])
    segments = tree.cut(_marked(exchanges, prompts, parents))
    after: list[tuple[str, ...]] = [() if parent is None else (exchanges[parent].id,) for parent in parents]
    return Found(segments, after, tree.tokens)


def _parents(exchanges: Sequence[Exchange], prompts: Sequence[Ids]) -> list[int | None]:
    """The exchange that each prompt goes on from: what begins a text stands before it in sorted order."""
    asked = [(one.session, key_of(prompts[i]), True, i) for i, one in enumerate(exchanges) if one.session]
    said = [
        (session, key + key_of(np.asarray(exchanges[i].reply, np.int32)), False, i)
        for session, key, _, i in asked
        if len(exchanges[i].reply)
    ]
    parents: list[int | None] = [None] * len(exchanges)
    begun: list[tuple[str | None, bytes, int]] = []
    for session, key, is_prompt, i in sorted(asked + said):
        while begun and not (begun[-1][0] == session and key.startswith(begun[-1][1])):
            begun.pop()
        if is_prompt:
            parents[i] = next((earlier for _, _, earlier in reversed(begun) if earlier < i), None)
        else:
            begun.append((session, key, i))
    return parents


def _marked(
    exchanges: Sequence[Exchange], prompts: Sequence[Ids], parents: Sequence[int | None]
) -> list[NDArray[np.uint32]]:
    """The prompts with marks in place of the replies they go on from."""
    marked: list[NDArray[np.uint32]] = []
    for prompt, parent in zip(prompts, parents, strict=True):
        ids = prompt.astype(np.uint32)
        if parent is not None:
            begin = len(prompts[parent])
            ids[:begin] = marked[parent]
            ids[begin : begin + len(exchanges[parent].reply)] = MARK + parent
        marked.append(ids)
    return marked
