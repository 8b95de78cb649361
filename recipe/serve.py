"""Serve a run's base and tuned model: a page to compare them, and OpenAI's HTTP API."""

import asyncio
import logging
import os
import sys
from pathlib import Path

from recipe.core.cli import add_run, build_parser, entry, load_run
from recipe.core.errors import UsageError
from recipe.core.text import say, show
from recipe.serving.access import KEY, Access

STAGE = "serve"


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", "python -m recipe.serve --run runs/demo/latest --port 8000")
    add_run(parser)
    parser.add_argument("--model", type=Path, metavar="DIR", help="a merged or converted folder, instead of --run")
    parser.add_argument(
        "--precision", choices=("int8", "fp16", "fp32"), default="fp16", help="for --model (default fp16)"
    )
    parser.add_argument("--port", type=int, default=8000, metavar="N", help="port (default 8000; 0: any free one)")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="ADDRESS",
        help=f"address to listen on (default 127.0.0.1, this machine only); another one needs a secret in {KEY}",
    )
    args = parser.parse_args(argv)
    if bool(args.run or args.config) == bool(args.model):
        raise UsageError("pass either a run (--run runs/demo/latest) or a folder of weights (--model DIR)")
    if not 0 <= args.port < 65536:
        raise UsageError(f"--port is {args.port}; expected a number from 0 to 65535")
    access = Access(args.host, os.environ.get(KEY, ""))
    if args.dry_run:
        source = args.model or load_run(args)[1].folder
        where = f"http://{args.host}:{args.port}/"
        show({"run": str(source), "address": where}, f"would serve {source} at {where}", args.json)
        return 0
    from transformers import logging as transformers_logging

    from recipe.serving.open import open_engine, open_folder
    from recipe.serving.server import Server, bind, serve

    transformers_logging.set_verbosity_error()
    logging.getLogger("aiohttp").setLevel(logging.CRITICAL)  # its messages quote requests
    bound = bind(access.host, args.port)
    say("loading the model")
    engine = open_folder(args.model, args.precision) if args.model else open_engine(*load_run(args))
    asyncio.run(serve(Server(engine, access), bound))
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
