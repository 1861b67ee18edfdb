"""Request logs in the shapes of the OpenAI API, as gateways and proxies write them: one JSON object a line.

    {"timestamp": 1717171717.25, "request": {...}, "response": {...}}

`timestamp` (or `created`) is when the request came: Unix seconds, or ISO 8601 (UTC unless it says otherwise).
`request` (or `body`) is what was sent to /v1/chat/completions (`messages`) or to /v1/completions (`prompt`: a
text or token ids), with `user` or `safety_identifier`. `response` is what came back: `usage` with
`prompt_tokens` and `completion_tokens`, and `choices`. Both may stand in an envelope as in the files of the
Batch API ({"url": ..., "body": {...}}, {"status_code": 200, "body": {...}}). All else is passed over.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Annotated, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import AliasChoices, BaseModel, BeforeValidator, Field, TypeAdapter, model_validator

from suite.errors import BadInput
from suite.trace import REPLY, Request, Segment
from suite.trace_records import MOST_LETTERS
from suite.validation import at
from workloads.parts.part import Name
from workloads.reading.moments import Moment
from workloads.reading.recorded import ANONYMOUS, RecordedRows
from workloads.reading.rows import FewTokens, json_rows, none_left
from workloads.reading.text import Exchange, Found, Ids, Message, Tokenizer, found

CLIENT_RULE = f"`user` of the request, else its `safety_identifier`, else {ANONYMOUS!r}"
OUTPUT_RULE = (
    "`completion_tokens` of the usage, else the tokens of the reply; of a reply that stands in a later "
    "prompt the tokens that stand there"
)
PREFIX_RULE = (
    "found in the token ids; a prompt that goes on from an earlier prompt of its client and the reply to it "
    "waits for that reply; prompts that were not logged share nothing"
)
WITH_TEXT, LENGTHS_ONLY = "with_text", "lengths_only"
"""What becomes of a row: a request, its prompt known or its length alone; else why it is left out."""
FAILED = 400
"""HTTP statuses from here on say that nothing was generated."""


class OpenAILog(RecordedRows):
    """A log, replayed at its recorded times.

    A client is what `client_field` names, a dotted path into the row ("headers.x-user-id"); without it the
    `user` of the request, or its `safety_identifier`. Text becomes token ids with `tokenizer`; a row whose
    text was not logged, but its `usage`, is of the right length, shares nothing and is of no session. Rows
    that failed, had no output or asked with more than text are left out, and counted in the header.
    """

    SOURCE: ClassVar[str] = "request log in the shapes of the OpenAI API"
    LICENCE: ClassVar[str] = "its owner's"

    tokenizer: Name | None = None
    client_field: Name | None = None

    def choices(self) -> dict[str, Any]:
        """The parameters, where what comes from, in words, and how many rows came out how."""
        known = self._tokenizer if self.tokenizer else None
        return super().choices() | {
            "tokenizer": known.name if known else None,
            "tokenizer_sha256": known.digest if known else None,
            "client_rule": f"{self.client_field!r} of the row" if self.client_field else CLIENT_RULE,
            "output_rule": OUTPUT_RULE,
            "prefix_rule": PREFIX_RULE,
            "counts": dict(sorted(self._log.counts.items())),
        }

    def requests(self, seed: int) -> Iterator[Request]:
        """The rows in order of their times, the same under every `seed`."""
        calls, found, _ = self._log
        outputs = {segment.id: segment.tokens for prompt in found.prompts for segment in prompt}
        sessions: dict[str, str] = {}
        for call, prompt, after in zip(calls, found.prompts, found.after, strict=True):
            sessions[call.id] = sessions[after[0]] if after else call.id
            output = outputs.get(f"{REPLY}{call.id}", call.output_tokens)
            whole = prompt or (Segment(f"prompt:{call.id}", call.prompt_tokens),)
            session = sessions[call.id] if prompt else None
            yield Request(call.id, call.client, call.time, whole, output, session, after)

    def tokens(self, seed: int) -> Mapping[str, NDArray[np.int32]]:
        """The token ids of all prompts that were logged."""
        return self._log.found.tokens

    @cached_property
    def _log(self) -> _Log:
        counts: Counter[str] = Counter()
        calls = []
        for number, entry in enumerate(json_rows(self.path, _entry, self.limit)):
            with at(f"{self.path}:{number + 1}"):
                fate = entry.fate()
                counts[fate] += 1
                if fate in (WITH_TEXT, LENGTHS_ONLY):
                    calls.append(self._call(f"row-{number:06}", entry))
        if not calls:
            raise none_left(str(self.path), counts)
        calls.sort(key=lambda call: call.time)
        calls = [call._replace(time=round(call.time - calls[0].time, 6)) for call in calls]
        exchanges = [Exchange(call.id, call.prompt, call.reply, call.client) for call in calls]
        return _Log(calls, found(exchanges), counts)

    def _call(self, id: str, entry: _Entry) -> _Call:
        prompt = np.array(self._prompt(entry.request), np.int32)
        said = entry.response.text if entry.response else None
        usage = entry.response.usage if entry.response else None
        if usage is None and said is None:
            raise BadInput(
                "response: neither `usage` nor `choices`, so its length is not known; log one of them"
            )
        if not len(prompt) and not (usage and usage.prompt_tokens):
            raise BadInput(
                "request: neither `messages` nor `prompt`, nor a `usage` that says how long it was"
            )
        known = len(prompt) and (self.tokenizer or not usage)
        reply = self._reply(entry.request, said, prompt) if said and known else []
        lengths = (usage.prompt_tokens, usage.completion_tokens) if usage else (len(prompt), len(reply))
        return _Call(id, self._client(entry), entry.timestamp, prompt, np.array(reply, np.int32), *lengths)

    def _prompt(self, asked: _Asked) -> list[int]:
        """The token ids of a prompt, none if it was not logged."""
        if asked.messages is not None:
            return self._tokenizer.chat(asked.chat())
        if isinstance(asked.prompt, str):
            return self._tokenizer.whole(asked.prompt)
        return asked.prompt or []

    def _reply(self, asked: _Asked, said: str, prompt: Ids) -> list[int]:
        if asked.messages is None:
            return self._tokenizer.ids(said)
        return self._tokenizer.reply(asked.chat(), said, prompt.tolist())

    def _client(self, entry: _Entry) -> str:
        if self.client_field is None:
            return entry.request.user or entry.request.safety_identifier or ANONYMOUS
        value: Any = entry.row
        for part in self.client_field.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if not isinstance(value, str | int) or not 0 < len(str(value)) <= MOST_LETTERS:
            raise BadInput(
                f"{self.client_field}: names no client (got {str(value)[:60]!r}); "
                f"a name is a text of 1 to {MOST_LETTERS} letters, or a number"
            )
        return str(value)

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise BadInput("the log holds text; `tokenizer` must name the served model's tokenizer")
        return Tokenizer.load(self.tokenizer)


class _Call(NamedTuple):
    """A row as far as it matters; `time` in seconds, `prompt` and `reply` empty where they are not known."""

    id: str
    client: str
    time: float
    prompt: Ids
    reply: Ids
    prompt_tokens: int
    output_tokens: int


class _Log(NamedTuple):
    calls: list[_Call]
    found: Found
    counts: Counter[str]


# -- a row -------------------------------------------------------------------------------------------------


def _unwrapped(value: Any) -> Any:
    """The body of a request or response that stands in an envelope, with the envelope's status."""
    if isinstance(value, Mapping) and isinstance(value.get("body"), Mapping):
        return {"status_code": value.get("status_code"), **value["body"]}
    return value


def _single(prompt: Any) -> Any:
    """The one prompt of a list of prompts."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        if len(prompt) > 1:
            raise ValueError(f"{len(prompt)} prompts in one request; log a row for each")
        return prompt[0]
    return prompt


_Id = Annotated[int, Field(ge=0, lt=2**31)]
_User = Annotated[str, Field(max_length=MOST_LETTERS)]


class _Piece(BaseModel):
    type: str
    text: str = ""


class _Said(BaseModel):
    """A message of a request, or that of a choice."""

    role: Annotated[str, Field(min_length=1)]
    content: str | list[_Piece] | None = None
    tool_calls: list[dict[str, Any]] | None = None

    @property
    def pieces(self) -> list[_Piece]:
        if isinstance(self.content, list):
            return self.content
        return [_Piece(type="text", text=self.content or "")]

    @property
    def text(self) -> str:
        """What was said; calls of tools stand at its end as JSON."""
        return "".join(piece.text for piece in self.pieces) + _json(self.tool_calls)


class _Asked(BaseModel):
    messages: list[_Said] | None = None
    prompt: Annotated[str | list[_Id] | None, BeforeValidator(_single)] = None
    tools: list[dict[str, Any]] | None = None
    user: _User | None = None
    safety_identifier: _User | None = None

    def chat(self) -> list[Message]:
        """The messages for a chat template: texts alone, tools as JSON in a system message before all."""
        tools: list[Message] = [{"role": "system", "content": _json(self.tools)}] if self.tools else []
        said = [({"developer": "system"}.get(one.role, one.role), one.text) for one in self.messages or ()]
        return [*tools, *({"role": role, "content": text} for role, text in said)]


class _Usage(BaseModel):
    prompt_tokens: FewTokens
    completion_tokens: FewTokens


class _Choice(BaseModel):
    message: _Said | None = None
    text: str | None = None


class _Answer(BaseModel):
    status_code: int | None = None
    error: Any = None
    usage: _Usage | None = None
    choices: list[_Choice] = []

    @property
    def text(self) -> str | None:
        """The reply, None if it was not logged; of several choices the first."""
        first = self.choices[0] if self.choices else _Choice()
        return first.message.text if first.message else first.text


class _Entry(BaseModel):
    timestamp: Moment = Field(validation_alias=AliasChoices("timestamp", "created"))
    request: Annotated[
        _Asked, Field(validation_alias=AliasChoices("request", "body")), BeforeValidator(_unwrapped)
    ]
    response: Annotated[_Answer | None, BeforeValidator(_unwrapped)] = None
    error: Any = None
    row: dict[str, Any]
    """All that stands in the line."""

    @model_validator(mode="before")
    @classmethod
    def _kept_whole(cls, row: Any) -> Any:
        return {**row, "row": row} if isinstance(row, Mapping) else row

    def fate(self) -> str:
        """`WITH_TEXT` or `LENGTHS_ONLY` if a request comes of it, else why none does."""
        answer, asked = self.response or _Answer(), self.request
        if self.error or answer.error or (answer.status_code or 0) >= FAILED:
            return "failed"
        if any(piece.type != "text" for said in asked.messages or () for piece in said.pieces):
            return "not_text_alone"
        if answer.usage.completion_tokens == 0 if answer.usage else answer.text == "":
            return "without_output"
        return LENGTHS_ONLY if asked.messages is None and asked.prompt is None else WITH_TEXT


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


_entry = TypeAdapter(_Entry)
