"""Serves a model and its memory to OpenAI-style clients.

    longmem-serve runs/quickstart/longmem --memory documents.memory

The clients' base URL is http://127.0.0.1:8000/v1. /memory lists the documents in memory; POST
adds one, DELETE /memory/NAME forgets it, and the file of --memory is written after each change; it
need not be there at first. SIGTERM ends the server after the requests that are being answered.
"""

import ipaddress
import os
import socket
from pathlib import Path

from longmem_fairseq.commands.options import check_writable, load_model, make_parser, parse
from longmem_fairseq.utils.cli import run

KEY_VARIABLE = "LONGMEM_API_KEY"
SHUTDOWN_SECONDS = 10
MOST_CONNECTIONS = 512


def main() -> None:
    """Runs the command line of the process."""
    parser = make_parser(__doc__, reads_texts=False)
    add = parser.add_argument_group("server").add_argument
    add("--host", default="127.0.0.1", help="address to listen on (default: 127.0.0.1)")
    add("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    add(
        "--api-key",
        help=f"key that clients have to send as a Bearer token (default: ${KEY_VARIABLE}, else none); "
        "needed for any --host but this machine's own",
    )
    add("--name", help="of the model, for clients (default: the folder's name)")
    add("--timeout", type=float, default=300.0, help="seconds for a request (default: 300)")
    add("--max-body", type=int, default=16, help="MiB that a request may have (default: 16)")
    args = parse(parser)
    api_key = args.api_key if args.api_key is not None else os.environ.get(KEY_VARIABLE)
    _check(args, api_key)
    try:
        import uvicorn

        from longmem_fairseq.serving.app import Service, make_app
    except ImportError as error:
        raise ImportError(
            f"longmem-serve needs the server: pip install 'longmem-fairseq[serve]' ({error})"
        ) from error
    with _listening(args.host, args.port) as listener:
        is_new = args.memory is not None and not Path(args.memory).exists()
        lm = load_model(args, with_memory=not is_new)
        if is_new:
            lm.memory.single_bank(lm.device)  # raises for a model that has no memory
        name = args.name or Path(args.model).resolve().name
        service = Service(lm, name, args.memory, args.timeout, args.max_body << 20)
        config = uvicorn.Config(
            make_app(service, api_key),
            log_config=None,  # the root logger's: warnings and errors
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
            limit_concurrency=MOST_CONNECTIONS,
        )
        host = f"[{args.host}]" if ":" in args.host else args.host
        print(f"serving {name} at http://{host}:{listener.getsockname()[1]}/v1", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


def _check(args, api_key) -> None:
    """Raises ValueError for an option that does not fit."""
    if not 0 <= args.port < 1 << 16:
        raise ValueError(f"--port ({args.port}) must be from 0 to 65535")
    if not 0 < args.timeout < 1e6:
        raise ValueError(f"--timeout ({args.timeout:g}) must be above 0, and below a million")
    if not 1 <= args.max_body <= 1024:
        raise ValueError(f"--max-body ({args.max_body}) must be from 1 to 1024")
    if args.name == "":
        raise ValueError("--name is empty")
    if api_key is not None and (not api_key.isascii() or not api_key.isprintable() or not api_key):
        raise ValueError("--api-key must be of printable ASCII characters, one or more")
    if api_key is None and not _is_loopback(args.host):
        raise ValueError(
            f"--host ({args.host}) can be reached from other machines: give an --api-key that clients "
            "have to send"
        )
    if args.memory is not None:
        check_writable("--memory", args.memory)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: naming both options
    """
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=128)
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"--host ({host}) and --port ({port}) cannot be served: {reason}") from error


def cli() -> None:
    """The console script longmem-serve."""
    run(main)


if __name__ == "__main__":
    cli()
