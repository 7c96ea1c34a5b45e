"""Chat templates say what transformers makes of them, and reach nothing outside."""

import pytest

pytest.importorskip("tokenizers", reason="needs the extra hf")

from longmem_fairseq.tokenizers.chat_template import render_chat  # noqa: E402
from tests.helpers.hf_models import transformers  # noqa: E402
from tests.helpers.hf_tokenizers import make_tokenizer  # noqa: E402

NAMED = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
CHATS = [
    [{"role": "user", "content": "Hello <b>& you</b>"}],
    [
        {"role": "system", "content": " Be short. "},
        {"role": "user", "content": "Hi\n\n"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "naïve 🙂?"},
    ],
]
SMOLLM2 = """{% for message in messages %}
{% if loop.first and messages[0]['role'] != 'system' %}
{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM<|im_end|>\n' }}{% endif %}
{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}
{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
GEMMA = """{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first = messages[0]['content'] | trim + '\n\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}
    {%- set first = '' -%}{%- set rest = messages -%}
{%- endif -%}
{%- for message in rest -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('roles must alternate') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first if loop.first else '') }}
    {{- message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}"""
LLAMA_3 = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = strftime_now('%d %b %Y') %}
{%- endif %}
{%- if tools is not none %}
    tools
{%- endif %}
Today: {{ date_string }}
    {% for message in messages %}
    {{ message | tojson }}
    {{- message.content | tojson(indent=2) }}
    {% endfor %}
{{ eos_token }}{{ missing_token }}
"""
CONTROLS = """{% set ns = namespace(n=0, seen='') %}{% for message in messages %}
{% if loop.index == 3 %}{% break %}{% endif %}
{% if message.role == 'system' %}{% continue %}{% endif %}
{% generation %}{{ message.content.strip().split('\n')[0] }}{% endgeneration %}
{% set ns.n = ns.n + 1 %}{% endfor %}
{{ ns.n }} {{ dict(a=1) | tojson }} {{ messages | length }}"""
TEMPLATES = {"SmolLM2": SMOLLM2, "Gemma": GEMMA, "Llama 3": LLAMA_3, "controls": CONTROLS}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("chat", CHATS, ids=["short", "long"])
def test_the_prompt_is_that_of_transformers(template, chat):
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=make_tokenizer("llama3"), chat_template=template, **NAMED
    )
    expected = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert render_chat(template, chat, NAMED) == expected


@pytest.mark.parametrize(
    "template, message",
    [
        ("{{ raise_exception('no system') }}", "TemplateError: no system"),
        ("{% for", "TemplateSyntaxError"),
        ("{{ messages.append(1) }}", "SecurityError"),
        ("{{ messages.__class__.__mro__ }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os }}", "SecurityError"),
        ("{{ ''.__class__.__base__.__subclasses__() }}", "SecurityError"),
        ("{% set n = namespace(__init__=1) %}", "SecurityError"),
        ("{% set n = namespace() %}{% set n.__class__ = 1 %}", "SecurityError"),
        ("{{ range(10**9) | list }}", "OverflowError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{% include '/etc/passwd' %}", "TypeError: no loader"),
    ],
)
def test_what_a_template_may_not_do_is_one_line(template, message):
    with pytest.raises(ValueError, match="the model's chat template fails") as error:
        render_chat(template, CHATS[0], NAMED)
    assert message in str(error.value)
