"""The template with which a chat model wants its messages written, rendered as transformers does.

A template comes with a model and is a program. It runs in jinja2's sandbox, which can neither change
its input nor reach attributes of Python's own; from version 3.1.6 on no way out of it is known.
"""

import json
from datetime import datetime
from typing import Any, Dict, List, Sequence

Message = Dict[str, Any]  # {"role": "user", "content": "..."}
OLDEST_JINJA = (3, 1, 6)


def render_chat(template: str, messages: Sequence[Message], named_tokens: Dict[str, str]) -> str:
    """The prompt of a chat, up to where the model's answer begins.

    Raises:
        ImportError: jinja2 is missing, or older than 3.1.6
        ValueError: the template is none, refuses the messages, or tries what the sandbox forbids
    """
    environment = _environment()
    try:
        return environment.from_string(template).render(
            messages=[dict(message) for message in messages],
            tools=None,
            documents=None,
            add_generation_prompt=True,
            **named_tokens,
        )
    except Exception as error:  # of a program that came with a model
        raise ValueError(
            f"the model's chat template fails ({type(error).__name__}: {error})"
        ) from error


def _jinja2():
    """The package jinja2, from a version on whose sandbox is safe.

    Raises:
        ImportError: it is missing, or older
    """
    try:
        import jinja2
        import jinja2.ext
        import jinja2.sandbox
    except ImportError:
        raise ImportError("chat templates need jinja2: pip install 'longmem-fairseq[hf]'") from None
    if tuple(map(int, jinja2.__version__.split(".")[:3])) < OLDEST_JINJA:
        raise ImportError(
            f"chat templates need jinja2 3.1.6 or later, and {jinja2.__version__} is installed: older "
            "sandboxes have known holes"
        )
    return jinja2


def _environment():
    """A sandbox with all that templates of transformers use."""
    jinja2 = _jinja2()

    class Generation(jinja2.ext.Extension):
        """``{% generation %}``, with which training marks an answer: its content, and nothing more."""

        tags = {"generation"}

        def parse(self, parser) -> List:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    environment.globals["raise_exception"] = raise_exception
    environment.globals["namespace"] = _namespace(jinja2)
    # a function, of which a template can reach less than of the type
    environment.globals["dict"] = lambda *pairs, **names: dict(*pairs, **names)
    return environment


def _namespace(jinja2):
    """The class ``namespace`` of templates."""

    def check_name(name: str) -> None:
        if name.startswith("_"):
            raise jinja2.exceptions.SecurityError(f"namespace with the attribute {name!r}")

    class Namespace(jinja2.utils.Namespace):
        """Without attributes of Python's own, which jinja2's lets a template set."""

        def __init__(*args, **kwargs):  # as jinja2's: `namespace(self=1)` is a name like any other
            self, *pairs = args
            names = dict(*pairs, **kwargs)
            for name in names:
                check_name(name)
            jinja2.utils.Namespace.__init__(self, names)

        def __setitem__(self, name: str, value: Any) -> None:
            check_name(name)
            super().__setitem__(name, value)

    return Namespace


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    # jinja2's own writes "<" and others as HTML wants them
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
