"""Options that the task has of the model: the same names, types and choices on the command line."""

import argparse

from fairseq.dataclass.utils import gen_parser_from_dataclass

from longmem_fairseq.models.longmem_config import LongMemConfig
from longmem_fairseq.tasks.config import MODEL_OPTIONS, ModelOptions


def actions_of(options):
    """Everything that the command line says of an option but its default."""
    parser = argparse.ArgumentParser()
    gen_parser_from_dataclass(parser, options)
    said = {a.dest: (a.option_strings, a.type, a.choices, a.nargs) for a in parser._actions[1:]}
    return said, vars(parser.parse_args([]))


def test_the_task_has_the_models_options_without_their_values():
    (ours, values), (models, _) = actions_of(ModelOptions()), actions_of(LongMemConfig())
    assert tuple(ours) == MODEL_OPTIONS
    assert ours == {name: models[name] for name in MODEL_OPTIONS}
    assert values == {**dict.fromkeys(MODEL_OPTIONS), "no_memory": False}
