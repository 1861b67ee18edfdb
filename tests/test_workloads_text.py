"""Text as token ids: the model's own chat template, in a sandbox, and prefixes that prompts really share."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from shutil import copytree
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from text_models import CHATML, saved_model
from tokenizers.processors import TemplateProcessing

from suite import hub
from suite.errors import BadInput
from suite.trace import REPLY, Segment
from workloads.reading.text import Exchange, Found, Tokenizer, found

ASKED = [{"role": "user", "content": "what time is it"}]
ANSWERED = [*ASKED, {"role": "assistant", "content": "it is late"}, {"role": "user", "content": "good night"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_model(tmp_path_factory.mktemp("models") / "small")


def spelled(tokenizer: Tokenizer, ids: Sequence[int]) -> str:
    text: str = tokenizer.inner.decode(list(ids), skip_special_tokens=False)
    return text


# -- the tokenizer -----------------------------------------------------------------------------------------


def test_text_comes_back_and_gets_no_special_tokens(model: Path) -> None:
    tokenizer = Tokenizer.load(str(model))
    assert tokenizer.name == "small"
    assert spelled(tokenizer, tokenizer.ids("héllo fox\n")) == "héllo fox\n"
    assert min(tokenizer.ids("the lazy dog")) > 1


def test_special_tokens_around_a_prompt_are_those_of_completions_alone(model: Path, tmp_path: Path) -> None:
    """As served: the completions endpoint adds them, a chat has those that its template writes."""
    folder = Path(copytree(model, tmp_path / "begun"))
    inner = Tokenizer.load(str(model)).inner
    inner.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", 0)])
    inner.save(str(folder / "tokenizer.json"))
    tokenizer = Tokenizer.load(str(folder))
    assert tokenizer.whole("the fox") == [0, *tokenizer.ids("the fox")]
    assert tokenizer.chat(ASKED) == Tokenizer.load(str(model)).chat(ASKED)


def test_a_file_is_as_good_as_its_folder(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, file = Tokenizer.load(str(model)), Tokenizer.load(str(model / "tokenizer.json"))
    monkeypatch.chdir(model)
    for other in (file, Tokenizer.load("."), Tokenizer.load("tokenizer.json")):
        assert (other.name, other.digest) == (folder.name, folder.digest) == ("small", folder.digest)
        assert other.chat(ASKED) == folder.chat(ASKED)


def test_a_chat_is_rendered_by_the_models_own_template(model: Path) -> None:
    tokenizer = Tokenizer.load(str(model))
    ids = tokenizer.chat(ANSWERED)
    assert spelled(tokenizer, ids) == (
        "<|im_start|>user\nwhat time is it<|im_end|>\n<|im_start|>assistant\nit is late<|im_end|>\n"
        "<|im_start|>user\ngood night<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(0) == 4, "each <|im_start|> is the one special token"


def test_without_a_template_roles_stand_before_colons(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(str(saved_model(tmp_path / "plain", template=None)))
    ids = tokenizer.chat(ANSWERED)
    assert (
        spelled(tokenizer, ids) == "user:what time is it\nassistant:it is late\nuser:good night\nassistant:"
    )
    asked, reply = tokenizer.chat(ASKED), tokenizer.ids("it is late")
    assert ids[: len(asked) + len(reply)] == asked + reply


def test_the_template_in_a_file_of_its_own_counts(tmp_path: Path) -> None:
    folder = saved_model(tmp_path / "own", template="from the config")
    (folder / "chat_template.jinja").write_text("from the file")
    tokenizer = Tokenizer.load(str(folder))
    assert spelled(tokenizer, tokenizer.chat(ASKED)) == "from the file"


def test_of_several_templates_the_default_counts(tmp_path: Path) -> None:
    named = [{"name": "tools", "template": "tools"}, {"name": "default", "template": "plain talk"}]
    tokenizer = Tokenizer.load(str(saved_model(tmp_path / "named", named)))
    assert spelled(tokenizer, tokenizer.chat(ASKED)) == "plain talk"
    with pytest.raises(BadInput, match="none of its chat templates is called 'default'"):
        Tokenizer.load(str(saved_model(tmp_path / "other", named[:1])))


def test_a_template_knows_the_special_tokens_and_one_day_only(tmp_path: Path) -> None:
    template = (
        "{{ bos_token }}{{ eos_token }}{{ strftime_now('%d %b %Y') }}{% if tools is not none %}!{% endif %}"
    )
    folder = saved_model(
        tmp_path / "m", template, bos_token="<s>", eos_token={"content": "</s>", "lstrip": False}
    )
    tokenizer = Tokenizer.load(str(folder))
    assert spelled(tokenizer, tokenizer.chat(ASKED)) == "<s></s>26 Jul 2024"


def test_what_marks_replies_for_training_changes_nothing(tmp_path: Path) -> None:
    template = "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}{% endfor %}"
    tokenizer = Tokenizer.load(str(saved_model(tmp_path / "m", template)))
    assert spelled(tokenizer, tokenizer.chat(ASKED)) == "what time is it"


def test_json_in_a_template_is_spelled_as_asked(tmp_path: Path) -> None:
    template = "{{ 'é' | tojson }}{{ {'b': 2, 'a': 1} | tojson(separators=(',', ':'), sort_keys=true) }}"
    tokenizer = Tokenizer.load(str(saved_model(tmp_path / "m", template)))
    assert spelled(tokenizer, tokenizer.chat(ASKED)) == '"é"{"a":1,"b":2}'


LLAMA_2 = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' <|im_end|>' }}{% endif %}{% endfor %}"
)
"""As Llama 2's: a space stands between prompt and reply, and in no prompt's end."""
RUNNING_ON = (
    "{% for m in messages %}{{ m.role + ':' + m.content + 't' }}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""What follows a reply merges with its end."""


@pytest.mark.parametrize("said", ["it is late", " it is late\n", "\n\nit", "what i", "é", "t"])
@pytest.mark.parametrize("template", [CHATML, LLAMA_2, RUNNING_ON, None])
def test_a_reply_has_the_ids_that_later_prompts_have(tmp_path: Path, template: Any, said: str) -> None:
    tokenizer = Tokenizer.load(str(saved_model(tmp_path / "m", template)))
    answered = [*ASKED, {"role": "assistant", "content": said}, {"role": "user", "content": "good night"}]
    prompt, later = tokenizer.chat(ASKED), tokenizer.chat(answered)
    reply = tokenizer.reply(ASKED, said, prompt)
    assert later[: len(prompt) + len(reply)] == prompt + reply
    assert spelled(tokenizer, reply).strip().removesuffix("t") == said.strip().removesuffix("t")


def test_white_space_before_a_reply_goes_into_its_first_token(tmp_path: Path) -> None:
    tokenizer = Tokenizer.load(str(saved_model(tmp_path / "m", LLAMA_2)))
    alone, within = tokenizer.ids("it is late"), tokenizer.reply(ASKED, "it is late", tokenizer.chat(ASKED))
    assert [spelled(tokenizer, [id]) for id in within] == [" it", " is", " late"]
    assert [spelled(tokenizer, [id]) for id in alone] == ["i", "t", " is", " late"]


@pytest.mark.parametrize(
    ("template", "why"),
    [
        ("{{ messages[0].content }}", "the reply stands in no later prompt"),
        ("{{ messages | length }}{{ messages[-1].content }}", "a later prompt begins otherwise"),
        ("{% if messages | length > 1 %}{{ raise_exception('once') }}{% endif %}one", "it is refused"),
        ("{{ 'i' }}{{ messages[1].content if messages | length > 1 }}", "the prompt's last token merges"),
    ],
)
def test_a_reply_that_no_later_prompt_repeats_has_the_ids_of_its_text(
    tmp_path: Path, template: str, why: str
) -> None:
    tokenizer = Tokenizer.load(str(saved_model(tmp_path / "m", template)))
    assert tokenizer.reply(ASKED, "t is late", tokenizer.chat(ASKED)) == tokenizer.ids("t is late"), why


def test_it_says_how_prompts_are_made(tmp_path: Path) -> None:
    rules = {
        template: Tokenizer.load(str(saved_model(tmp_path / str(i), template))).rule
        for i, template in enumerate(["{{ bos_token }}x", None, "{{ strftime_now('%d') }}"])
    }
    assert rules["{{ bos_token }}x"] == "the tokenizer's chat template"
    assert rules["{{ strftime_now('%d') }}"] == "the tokenizer's chat template, on 26 Jul 2024"
    assert rules[None] == "no chat template: each message is its role, a colon, its content and a newline"


def test_the_digest_tells_templates_apart(tmp_path: Path) -> None:
    digests = {
        Tokenizer.load(str(saved_model(tmp_path / str(i), text))).digest for i, text in enumerate("ab")
    }
    assert len(digests) == 2


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{ raise_exception('no system\nrole') }}", "its chat template fails: no system role"),
        ("{{ messages.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "access to attribute"),
        ("{{ messages.append(1) }}", "access to attribute 'append'"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].role.nothing.more }}", "has no attribute"),
        ("{# nothing #}", "its chat template makes an empty prompt"),
    ],
    ids=["refuses", "class", "subclasses", "changes", "range", "syntax", "undefined", "nothing"],
)
def test_what_a_template_must_not_do_is_one_line(tmp_path: Path, template: str, message: str) -> None:
    tokenizer = Tokenizer.load(str(saved_model(tmp_path / "bad", template)))
    with pytest.raises(BadInput, match=message) as caught:
        tokenizer.chat(ASKED)
    assert str(caught.value).startswith("tokenizer 'bad': ")
    assert "\n" not in str(caught.value)


def test_what_is_no_tokenizer_is_told(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no tokenizer\.json; give the folder of a model"):
        Tokenizer.load(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BadInput, match=r"cannot be read: .*; fetch it again"):
        Tokenizer.load(str(tmp_path))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "no JSON"),
        ("[]", "must hold a JSON object"),
        ('{"chat_template": 3}', "must be a text or a list"),
    ],
)
def test_a_config_that_makes_no_sense_is_told(model: Path, tmp_path: Path, config: str, message: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes((model / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(config)
    with pytest.raises(BadInput, match=message):
        Tokenizer.load(str(tmp_path))


def test_without_a_network_half_of_a_tokenizer_in_the_cache_is_none(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its configuration it would have no chat template, and prompts come out as other ones."""

    def offline(*_: str) -> str:
        raise ConnectionError("Cannot reach the hub. Try later")

    folder = Path(copytree(model, tmp_path / "cache"))
    monkeypatch.setattr(hub, "commit", offline)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(folder))
    assert Tokenizer.load("maker/thing").template is not None
    (folder / "tokenizer_config.json").unlink()
    with pytest.raises(BadInput, match=r"^tokenizer: 'maker/thing' .*: no connection: Cannot reach the hub;"):
        Tokenizer.load("maker/thing")


# -- shared prefixes ---------------------------------------------------------------------------------------


def shared(one: Sequence[Segment], other: Sequence[Segment]) -> int:
    """How many tokens two prompts share, by the rule of the trace: as far as their segments agree."""
    tokens = 0
    for mine, theirs in zip(one, other, strict=False):
        if mine.id != theirs.id:
            break
        tokens += min(mine.tokens, theirs.tokens)
        if mine.tokens != theirs.tokens:
            break
    return tokens


def really_shared(one: Sequence[Any], other: Sequence[Any]) -> int:
    pairs = zip(one, other, strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def ids_of(prompt: Sequence[Segment], of: Found, replies: dict[str, list[int]]) -> list[int]:
    parts = [
        replies[id.removeprefix(REPLY)] if id.startswith(REPLY) else of.tokens[id].tolist()
        for id, _ in prompt
    ]
    return [id for part in parts for id in part]


few_ids = st.lists(st.integers(0, 2), min_size=1, max_size=6)


@given(st.lists(few_ids, min_size=1, max_size=12))
def test_two_prompts_share_exactly_their_common_prefix(prompts: list[list[int]]) -> None:
    made = found([Exchange(str(i), prompt) for i, prompt in enumerate(prompts)])
    for (i, one), (j, other) in combinations(enumerate(prompts), 2):
        assert shared(made.prompts[i], made.prompts[j]) == really_shared(one, other)
    for prompt, segments in zip(prompts, made.prompts, strict=True):
        assert ids_of(segments, made, {}) == prompt
        assert all(len(made.tokens[id]) == tokens for id, tokens in segments)
    assert made.after == [()] * len(prompts)


@st.composite
def talks(draw: st.DrawFn) -> list[Exchange]:
    """Exchanges of two sessions, many of which go on from earlier ones."""
    made: list[Exchange] = []
    for number in range(draw(st.integers(1, 10))):
        before: list[int] = []
        if made and draw(st.booleans()):
            earlier = draw(st.sampled_from(made))
            before = [*earlier.prompt, *earlier.reply]
        prompt = before + draw(few_ids)
        reply = draw(st.lists(st.integers(0, 2), max_size=2))
        made.append(Exchange(str(number), prompt, reply, draw(st.sampled_from(["x", "y", None]))))
    return made


def naive_parent(exchanges: Sequence[Exchange], i: int) -> int | None:
    """The longest, then latest, earlier exchange of the session with which the prompt begins."""
    prompt = list(exchanges[i].prompt)
    fitting = [
        (len(one.prompt) + len(one.reply), j)
        for j, one in enumerate(exchanges[:i])
        if one.session is not None and one.session == exchanges[i].session and len(one.reply)
        if prompt[: len(one.prompt) + len(one.reply)] == [*one.prompt, *one.reply]
    ]
    return max(fitting)[1] if fitting else None


def marked(exchanges: Sequence[Exchange], i: int) -> list[Any]:
    """The prompt, with a reply that it goes on from as a thing of its own."""
    prompt: list[Any] = list(exchanges[i].prompt)
    parent = naive_parent(exchanges, i)
    if parent is None:
        return prompt
    said = len(exchanges[parent].prompt)
    reply = len(exchanges[parent].reply)
    return marked(exchanges, parent) + [f"reply {parent}"] * reply + prompt[said + reply :]


@given(talks())
def test_replies_are_shared_by_those_alone_that_go_on_from_them(exchanges: list[Exchange]) -> None:
    made = found(exchanges)
    replies = {one.id: list(one.reply) for one in exchanges}
    for i, exchange in enumerate(exchanges):
        parent = naive_parent(exchanges, i)
        assert made.after[i] == (() if parent is None else (str(parent),))
        assert ids_of(made.prompts[i], made, replies) == list(exchange.prompt)
        for j in range(i):
            assert shared(made.prompts[i], made.prompts[j]) == really_shared(
                marked(exchanges, i), marked(exchanges, j)
            )
        for id, tokens in made.prompts[i]:
            if id.startswith(REPLY):
                assert tokens == len(replies[id.removeprefix(REPLY)])


def test_segments_are_named_by_what_stands_before_them(model: Path) -> None:
    made = found([Exchange("a", [1, 2, 3]), Exchange("b", [1, 2, 4])])
    head = made.prompts[0][0]
    assert head == made.prompts[1][0] == Segment("text:782486f75e626020", 2)
    alone = found([Exchange("a", np.array([1, 2]))])
    assert alone.prompts == [(head,)], "the same text has the same name in any company"
    assert found([Exchange("a", [7, 2])]).prompts[0][0].id != head.id


def test_segments_of_one_name_have_one_length(model: Path) -> None:
    """What ends alike but begins elsewhere, as other prompts part elsewhere, is another segment."""
    whole = found([Exchange("a", [1, 2, 3])]).prompts[0]
    cut = found([Exchange("a", [1, 2, 3]), Exchange("b", [1, 9])]).prompts[0]
    assert [tokens for _, tokens in whole + cut] == [3, 1, 2]
    assert len({id for id, _ in whole + cut}) == 3


def test_turns_of_a_chat_go_on_from_one_another(model: Path) -> None:
    tokenizer = Tokenizer.load(str(model))
    first = Exchange("first", tokenizer.chat(ASKED), tokenizer.ids("it is late"), "chat")
    made = found([first, Exchange("second", tokenizer.chat(ANSWERED), (), "chat")])
    assert made.after == [(), ("first",)]
    opening, reply, rest = made.prompts[1]
    assert made.prompts[0] == (opening,)
    assert reply == Segment("reply:first", len(first.reply))
    assert spelled(tokenizer, made.tokens[rest.id]).startswith("<|im_end|>\n<|im_start|>user\ngood night")


def test_nothing_is_found_in_nothing() -> None:
    assert found([]) == Found([], [], {})
    assert found([Exchange("a", [])]).prompts == [()]
