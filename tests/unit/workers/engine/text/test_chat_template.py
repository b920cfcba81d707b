"""Chat templates mean what they mean to transformers, and a hostile one ends soon."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from jinja2.exceptions import SecurityError
from transformers import PreTrainedTokenizerFast

from workers.engine.core.errors import CheckpointError, InvalidPrompt
from workers.engine.text.template_sandbox import rendered, sandbox
from workers.engine.text.tokenizer import Tokenizer

LLAMA = """{{- bos_token }}
{%- if not tools is defined %}{%- set tools = none %}{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start|>system<|end|>\n\n" }}
{%- if tools is not none %}{{- "tools!" }}{%- endif %}
{{- system_message }}{{- "<|eot|>" }}
{%- for message in messages %}
    {{- '<|start|>' + message['role'] + '<|end|>\n\n' + message['content'] | trim + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start|>assistant<|end|>\n\n' }}
{%- endif %}
"""
QWEN = """{%- if tools %}
    {{- 'tools: ' + (tools | tojson) }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == "user" and message.content is string and not message.content.startswith('<tool') %}
        {%- set ns.last = index %}{%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}
    {%- else %}{%- set content = '' %}{%- endif %}
    {%- if message.role == "assistant" and '</think>' in content and loop.index0 < ns.last %}
        {%- set content = content.split('</think>')[-1].lstrip('\n') %}
    {%- endif %}
    {%- if message.role != "system" %}
        {%- generation %}
        {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
        {%- endgeneration %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
"""
OPERATIONS = """{{ bos_token }}{%- for m in messages %}
{{ "%-9s|%s"|format(m.role, loop.index) }} {{ "{:>9}".format(m.role) }} {{ "%3d%%" % loop.index }}
{{ m.content[2:-2] ~ m.content[::-1] ~ 7 ~ none }} {{ (m.content.split() | map("upper") | join("--")) }}
{{ m | tojson(indent=2) }} {{ [m, 1.5, "é"] | tojson }} {{ m.content | replace(" ", "__") | indent(3, true) }}
{{ "\t".expandtabs(4) ~ m.role.center(12) ~ m.get("content", "") | length }} {{ 3 * [m.role] + ["x"] }}
{% set block %}{{ m.role }}{{ m.content | trim }}{% endset %}{{ block | title | wordwrap(9) }}
{% macro twice(x) %}{{ x }}{{ x }}{% endmacro %}{{ twice(m.role) }} {{ [[1, 2], [3]] | sum(start=[]) }}
{%- endfor %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}{%- set loop_messages = messages %}{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\n\n" + message["content"] + "[/INST]" }}
        {%- else %}{{- "[INST] " + message["content"] + "[/INST]" }}{%- endif %}
    {%- else %}{{- " " + message["content"]|trim + eos_token }}{%- endif %}
{%- endfor %}
"""
GEMMA = """{{ bos_token }}
{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{% for message in messages %}
    {% set role = 'model' if message['role'] == 'assistant' else message['role'] %}
{{ '<start_of_turn>' + role + '\n' }}
    {% if message['content'] is string %}
{{ message['content'] | trim }}
    {% else %}
        {% for item in message['content'] %}
            {% if item['type'] == 'text' %}{{ item['text'] | trim }}{% endif %}
        {% endfor %}
    {% endif %}
{{ '<end_of_turn>\n' }}
{% endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}
"""
STYLES = {"operations": OPERATIONS, "llama": LLAMA, "qwen": QWEN, "mistral": MISTRAL, "gemma": GEMMA}
SYSTEM = {"role": "system", "content": "  Be <brief> & kind. "}
TURNS = [
    {"role": "user", "content": "  Grüße, 世界!  "},
    {"role": "assistant", "content": "<think>hm</think>\nHello 'you' "},
    {"role": "user", "content": "and {{ now }}?\n"},
]


def tokenizers(checkpoint: Path, folder: Path, source: str) -> tuple[Tokenizer, PreTrainedTokenizerFast]:
    """Save a template beside a tokenizer; returns ours and transformers' reading of it."""
    (folder / "tokenizer.json").write_bytes((checkpoint / "tokenizer.json").read_bytes())
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": source}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    theirs = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"), bos_token="<s>", eos_token="</s>"
    )
    theirs.chat_template = source
    return Tokenizer.from_folder(folder), theirs


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("messages", [TURNS, TURNS[:1], [SYSTEM, *TURNS]], ids=["turns", "one", "system"])
def test_prompts_are_those_of_transformers(
    checkpoint: Path, tmp_path: Path, style: str, messages: list[dict[str, str]]
) -> None:
    ours, theirs = tokenizers(checkpoint, tmp_path, STYLES[style])
    if style == "gemma" and messages[0]["role"] == "system":
        with pytest.raises(InvalidPrompt, match="refused the messages: System role not supported"):
            ours.encode_messages(messages)
        return

    text, token_ids = ours.encode_messages(messages)

    assert text == theirs.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert token_ids == theirs.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert token_ids.count(0) == text.count("<s>")


def test_parts_go_to_templates_that_read_them_and_as_lines_to_others(
    checkpoint: Path, tmp_path: Path
) -> None:
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    messages: list[dict[str, Any]] = [{"role": "user", "content": parts}]

    ours, theirs = tokenizers(checkpoint, tmp_path, GEMMA)
    assert ours.encode_messages(messages)[0] == theirs.apply_chat_template(
        messages, tokenize=False, add_generation_prompt=True
    )
    ours, _ = tokenizers(checkpoint, tmp_path, MISTRAL)
    assert ours.encode_messages(messages)[0] == "<s>[INST] one\ntwo[/INST]"


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({"content": "hi"}, "role is None; give text such as 'user'"),
        ({"role": "user"}, "content is None; give text, or parts"),
        ({"role": "user", "content": []}, r"content is \[\]; give text"),
        ({"role": "user", "content": [{"type": "image", "url": "x"}]}, "give text, or parts"),
    ],
)
def test_a_message_without_form_is_refused(
    checkpoint: Path, tmp_path: Path, message: dict[str, Any], reason: str
) -> None:
    ours, _ = tokenizers(checkpoint, tmp_path, LLAMA)

    with pytest.raises(InvalidPrompt, match=reason):
        ours.encode_messages([message])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1 s"),
        ("{% for i in range(99999) %}{{ messages[0].content }}{% endfor %}", "more than 4000000 characters"),
        ("{{ [1]|slice(9999999)|list }}", "more than 1 s"),
        ("{% set x = [1]|slice(9999999)|list %}", "more than 1 s"),
        ("{{ 'x' * 1000000000 }}", "multiplies a text or list beyond 100000"),
        ("{{ [1] * 1000000000 }}", "multiplies a text or list beyond 100000"),
        ("{{ 9 ** 999999999 }}", "raises numbers beyond 100000"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        ("{{ messages.__class__.__mro__ }}", "unsafe"),
    ],
)
def test_a_hostile_template_ends_soon(checkpoint: Path, tmp_path: Path, source: str, reason: str) -> None:
    ours, _ = tokenizers(checkpoint, tmp_path, source)

    with pytest.raises(InvalidPrompt, match=reason):
        ours.encode_messages([{"role": "user", "content": "x" * 10_000}])


class _Finalized:
    def __del__(self) -> None:
        """Be a frame in which nothing can be raised."""


def test_a_template_whose_time_ends_in_a_finalizer_ends_after_it() -> None:
    now = [0.0]

    def run_out() -> str:
        now[0] = 9.0
        del (alive := [_Finalized()])[0]
        return str(alive)

    template = sandbox().from_string("{{ run_out() }}{% for i in range(5) %}{{ i }}{% endfor %}")

    with pytest.raises(SecurityError, match="more than 1 s"):
        rendered(lambda: template.generate(run_out=run_out), lambda: now[0])


BIG = "{% set x = messages[0].content * 9 %}"  # 90,000 characters
LISTS = "{% set ns = namespace(l=[]) %}{% for i in range(1000) %}{% set ns.l = ns.l + [x ~ i] %}{% endfor %}"


@pytest.mark.parametrize(
    "source",
    [
        "{{ 'x'|center(999999999) }}",
        "{{ 'x'.center(999999999) }}",
        "{{ 'x'.zfill(999999999) }}",
        "{{ 'x'.encode().ljust(999999999) }}",
        "{{ (1).to_bytes(999999999) }}",
        "{{ [1]|batch(999999999, 0)|list }}",
        "{{ 'x'|indent(999999999, True) }}",
        "{{ '\t'.expandtabs(999999999) }}",
        "{{ '%0999999999d'|format(1) }}",
        "{{ '%0999999999d' % 1 }}",
        "{{ '{:0999999999}'.format(1) }}",
        "{{ '{0:0999999999}'.format_map({'0': 1}) }}",
        BIG + "{{ ('%s' * 9999)|format(x) }}",
        BIG + "{{ ('%s' * 9999) % x }}",
        BIG + "{{ ('{0}' * 9999).format(x) }}",
        BIG + "{{ [x] * 9999 }}",
        BIG + "{{ ([x] * 9999)|join }}",
        BIG + "{{ ([''] * 9999)|join(x) }}",
        BIG + "{{ x.join([''] * 9999) }}",
        BIG + "{{ ''.join(([x] * 9999)|map('string')) }}",
        BIG + "{{ ([x] * 9999)|tojson }}",
        BIG + "{{ (['']*9999)|tojson(indent=9999) }}",
        BIG + "{{ (['']*9999)|tojson(separators=(x, x)) }}",
        BIG + "{{ x|replace('x', x) }}",
        BIG + "{{ x.replace('x', x) }}",
        BIG + "{{ x.translate({120: x}) }}",
        BIG + "{{ x|wordwrap(1, True, x) }}",
        BIG + "{{ ([x] * 9999)|string|length }}",
        BIG + "{{ [[x] * 9999] ~ '' }}",
        BIG + "{% macro m() %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endmacro %}{{ m()|length }}",
        BIG + "{% set y %}{% for i in range(9999) %}{{ x }}{% endfor %}{% endset %}",
        BIG + "{% set x = x ~ x %}" * 20,
        BIG + "{% set x = x + x %}" * 20,
        BIG + "{% set x = x * 1 ~ x %}" * 5 + LISTS,
        BIG + LISTS.replace("x ~ i", "x[1:]"),
        "{% set ns = namespace(n=3) %}{% for i in range(40) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
        "{{ ([[1] * 9999] * 99)|sum(start=[]) }}",
        "{{ '%*d' % (999999999, 1) }}",
        "{{ '{:{}}'.format(1, 999999999) }}",
    ],
)
def test_no_operation_of_a_template_makes_more_than_its_bound(
    checkpoint: Path, tmp_path: Path, source: str
) -> None:
    ours, _ = tokenizers(checkpoint, tmp_path, source)
    tracemalloc.start()

    with pytest.raises(
        InvalidPrompt, match=r"chat template \(tokenizer_config.json\) was stopped: (it|an op)"
    ):
        ours.encode_messages([{"role": "user", "content": "x" * 10_000}])

    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 200_000_000


@pytest.mark.parametrize(
    "source",
    ["{{ " + "(" * 20_000 + "1" + ")" * 20_000 + " }}", "{% for i in x %}" * 30 + "{% endfor %}" * 30],
    ids=["parentheses", "loops"],
)
def test_a_template_that_is_too_deep_to_compile_is_refused(
    checkpoint: Path, tmp_path: Path, source: str
) -> None:
    with pytest.raises(CheckpointError, match=r"chat template: too deep or large to compile \(\w+Error: "):
        tokenizers(checkpoint, tmp_path, source)


def test_a_template_that_is_no_text_is_named(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"the chat template of .* is 7; give its text"):
        tokenizers(checkpoint, tmp_path, 7)  # type: ignore[arg-type]
