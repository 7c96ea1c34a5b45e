"""lm-evaluation-harness with the model ``longmem``: its own command line, under another name.

    longmem-lm-eval --model longmem --tasks lambada_openai,wikitext --batch_size 8 \\
        --model_args pretrained=runs/quickstart/longmem,memory=documents.memory

``--model_args``: pretrained=FOLDER, memory=FILE, excerpts=, memory_size=, window=, dtype=,
add_bos_token=, and the options of the model (k=, memory_index=, ...). Every other option is the
harness's: ``--help``.
"""

from longmem_fairseq.utils.cli import run


def main() -> None:
    """Runs the command line of the process."""
    try:
        from lm_eval.__main__ import cli_evaluate

        import longmem_fairseq.harness.model  # noqa: F401, registers longmem
    except ImportError as error:
        raise ImportError(
            f"longmem-lm-eval needs the harness: pip install 'longmem-fairseq[harness]' ({error})"
        ) from error
    cli_evaluate()


def cli() -> None:
    """The console script longmem-lm-eval."""
    run(main)
