"""Talk to a run's model, or to a merged folder, with the template it was trained on."""

import argparse
import contextlib
import io
import select
import sys
from pathlib import Path
from typing import Any

from recipe.core.cli import add_run, build_parser, entry, load_run
from recipe.core.errors import RecipeError, UsageError
from recipe.core.text import printable, say, show, snippet
from recipe.serving.session import Session, save

STAGE = "chat"
BLOCK = '"""'
PASTE_SECONDS = 0.05  # a line that follows another one sooner was pasted, not typed
HELP = """\
/system TEXT   set the system message; without TEXT: back to that of the template
/new           begin a new conversation
/retry         answer the last question again
/save FILE     write the conversation as JSON Lines, which recipe.corpus reads
/help          this list
Ctrl-C stops an answer, Ctrl-D ends the chat.
Pasted lines are one question; so are lines between two lines of \"\"\"."""


def loop(sessions: list[Session]) -> None:
    """Ask and answer until the input ends. Ctrl-C at the prompt ends the chat too; an empty line is not sent."""
    say("/help lists the commands. Ctrl-C stops an answer, Ctrl-D ends the chat.")
    while True:
        try:
            text = read_question()
        except (EOFError, KeyboardInterrupt):
            say("")
            return
        try:
            if text.startswith("/") and "\n" not in text:
                command(sessions, *text.split(None, 1))
            elif text:
                answer(sessions, text)
        except RecipeError as error:
            say(f"error: {error}")


def read_question() -> str:
    """One question: a line, a block between lines of three quotes, or all lines of a paste."""
    lines = [input("\nyou> " if sys.stdin.isatty() else "")]
    if lines[0].strip() == BLOCK:
        lines = []
        with contextlib.suppress(EOFError):
            while (line := input()).strip() != BLOCK:
                lines.append(line)
    elif sys.stdin.isatty():
        while select.select([sys.stdin], [], [], PASTE_SECONDS)[0]:
            try:
                lines.append(input())
            except EOFError:
                break
    return "\n".join(lines).strip()


def command(sessions: list[Session], name: str, argument: str = "") -> None:
    """Run a command such as /new. Raises RecipeError for an unknown one."""
    if name == "/new":
        for session in sessions:
            session.forget()
    elif name == "/system":
        for session in sessions:
            session.system = argument.strip()
            session.forget()
        say("new conversation with " + ("this system message" if argument.strip() else "the template's system message"))
    elif name == "/retry":
        questions = [session.take_back() for session in sessions]
        if questions[0] is None:
            raise RecipeError("there is no question to answer again; ask one first")
        answer(sessions, questions[0])
    elif name == "/save":
        save_as(sessions, argument.strip())
    elif name == "/help":
        say(HELP)
    else:
        raise RecipeError(f"there is no command {snippet(name)}; /help lists them")


def save_as(sessions: list[Session], name: str) -> None:
    """/save, with a failure as one sentence."""
    if not name:
        raise RecipeError("/save needs the name of a file, such as /save talk.jsonl")
    try:
        save(sessions, Path(name))
    except FileExistsError:
        raise RecipeError(f"{snippet(name)} exists already; choose another name") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise RecipeError(f"{snippet(name)} cannot be written ({reason}); choose another name") from None
    say(f"saved {snippet(name)}")


def answer(sessions: list[Session], text: str) -> None:
    """One answer of every model, printed as it is generated. Ctrl-C stops it, and the question is not remembered."""
    before = [list(session.messages) for session in sessions]
    try:
        for session in sessions:
            if len(sessions) > 1:
                print(f"{session.model}> ", end="", flush=True)
            session.ask(text, lambda piece: print(printable(piece, keep="\n\t"), end="", flush=True))
            print()
            if session.left_out:
                say(f"(the oldest {session.left_out} messages no longer fit into the context and were left out)")
    except (KeyboardInterrupt, RecipeError) as error:
        for session, messages in zip(sessions, before, strict=True):
            session.messages = messages
        if isinstance(error, RecipeError):
            raise
        print(" (stopped)")


def accept_any_text() -> None:
    """Read bytes that are not UTF-8 as U+FFFD."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")


def without_surrogates(text: str) -> str:
    """Text of an argument or a line, with U+FFFD for bytes that were not UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """The flags of `recipe.serving.engine.Sampling`."""
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default): always the most probable token"
    )
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P", help="sample from this probability mass")
    parser.add_argument("--top-k", type=int, default=0, metavar="K", help="sample from the K most probable; 0: all")
    parser.add_argument(
        "--repetition-penalty", type=float, default=1.0, metavar="R", help="above 1: repetitions become less probable"
    )
    parser.add_argument("--seed", type=int, metavar="N", help="the same answers every time, when sampling")


def sampling_of(args: argparse.Namespace) -> Any:
    """The flags as `Sampling`. Raises UsageError for a value out of range."""
    from recipe.serving.engine import Sampling

    ranges = {
        "temperature": (0 <= args.temperature <= 10, "from 0 to 10"),
        "top-p": (0 < args.top_p <= 1, "above 0, at most 1"),
        "top-k": (args.top_k >= 0, "0 or more"),
        "repetition-penalty": (0 < args.repetition_penalty <= 10, "above 0, at most 10"),
        "seed": (args.seed is None or 0 <= args.seed < 2**63, "from 0 to 2**63 - 1"),
        "max-new-tokens": (args.max_new_tokens > 0, "1 or more"),
    }
    for name, (fits, expected) in ranges.items():
        if not fits:
            raise UsageError(f"--{name} is {getattr(args, name.replace('-', '_'))}; expected a number {expected}")
    return Sampling(args.temperature, args.top_p, args.top_k, args.repetition_penalty, args.seed)


def open_sessions(args: argparse.Namespace) -> list[Session]:
    """The tuned model of a run, with --compare after its base; or the model of a folder."""
    from recipe.serving.open import open_engine, open_folder

    sampling = sampling_of(args)
    engine = open_folder(args.model, args.precision) if args.model else open_engine(*load_run(args))
    models = ["base", "tuned"] if args.compare else engine.models[:1]
    return [Session(engine, model, args.max_new_tokens, sampling) for model in models]


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", 'python -m recipe.chat --run runs/demo/latest --prompt "Who are you?"')
    add_run(parser)
    parser.add_argument("--model", type=Path, metavar="DIR", help="a merged or converted folder, instead of --run")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this one question and exit")
    parser.add_argument("--compare", action="store_true", help="answers of the base and the tuned model of a run")
    parser.add_argument(
        "--precision", choices=("int8", "fp16", "fp32"), default="fp16", help="for --model (default fp16)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")
    add_sampling(parser)
    args = parser.parse_args(argv)
    if bool(args.run or args.config) == bool(args.model):
        raise UsageError("pass either a run (--run runs/demo/latest) or a folder of weights (--model DIR)")
    if args.compare and args.model:
        raise UsageError("--compare needs a run, which has a base and a tuned model; pass --run instead of --model")
    if args.dry_run:
        source = args.model or load_run(args)[1].folder
        show({"run": str(source)}, f"would talk to {source}", args.json)
        return 0
    from transformers import logging

    logging.set_verbosity_error()
    accept_any_text()
    say("loading the model")
    sessions = open_sessions(args)
    if args.prompt is None:
        if sys.stdin.isatty():
            import readline  # noqa: F401 - gives input() its history and editing
        loop(sessions)
    elif args.json:
        question = without_surrogates(args.prompt)
        answers = {session.model: session.ask(question) for session in sessions}
        first = {"answers": answers} if args.compare else {"answer": answers[sessions[0].model]}
        show({"question": question, **first}, "", as_json=True)
    else:
        answer(sessions, without_surrogates(args.prompt))
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
