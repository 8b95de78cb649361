"""Talk to a run's model, or to a merged folder, with the template it was trained on."""

import sys
from pathlib import Path
from typing import Any

from recipe.conversations.messages import Message
from recipe.core.cli import add_run, build_parser, entry, load_run
from recipe.core.errors import RecipeError, UsageError
from recipe.core.files import MANIFEST
from recipe.core.manifest import read_manifest
from recipe.core.text import printable, say, show

STAGE = "chat"
TEMPLATE = "vicuna_v1.1"  # for a folder that does not say which


class Chat:
    """A model, its tokenizer and the conversation so far."""

    def __init__(self, model: Any, tokenizer: Any, template: str, max_new_tokens: int, temperature: float) -> None:
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        self.messages: list[Message] = []

    def say(self, text: str, on_text: Any = None) -> str:
        """The answer to `text`, which joins the conversation; where that outgrows the context its oldest turns go."""
        from recipe.model.generate import generate

        turns = [*self.messages, Message("user", text)]
        prompt = self.fit(turns)
        (reply,) = generate(self.model, self.tokenizer, [prompt], self.max_new_tokens, self.temperature, on_text)
        self.messages = [*turns, Message("assistant", reply)]
        return reply

    def fit(self, turns: list[Message]) -> list[int]:
        """Prompt ids that leave room for the answer. Raises RecipeError where the last question alone is too long."""
        from recipe.conversations.tokens import prompt_ids

        room = self.model.config.max_position_embeddings - self.max_new_tokens
        while True:
            prompt = prompt_ids(self.tokenizer, self.template, turns)
            if len(prompt) <= room:
                return prompt
            if len(turns) == 1:
                raise RecipeError(
                    f"the question has {len(prompt)} tokens with its template, the model's context leaves {room}; "
                    "ask a shorter one or lower --max-new-tokens"
                )
            del turns[:2]


def from_run(args: Any) -> Chat:
    """Base plus adapter of --run."""
    from recipe.model.open import open_run

    config, opened = load_run(args)
    tuned = open_run(opened, config)
    return Chat(tuned.model, tuned.tokenizer, tuned.template, args.max_new_tokens, args.temperature)


def from_folder(args: Any) -> Chat:
    """A merged or merely converted folder of --model."""
    from recipe.model.load import default_device, load_cached, load_tokenizer

    template = TEMPLATE
    if (args.model / MANIFEST).is_file():
        template = read_manifest(args.model)["config"].get("template", TEMPLATE)
    loaded = load_cached(args.model, args.precision, default_device())
    return Chat(loaded, load_tokenizer(args.model), template, args.max_new_tokens, args.temperature)


def loop(chat: Chat) -> None:
    """Ask and answer until the input ends. Ctrl-C ends an answer, Ctrl-D the chat, an empty line is not sent."""
    say("Ctrl-C stops an answer, Ctrl-D ends the chat, /new forgets the conversation.")
    while True:
        try:
            text = input("\nyou> " if sys.stdin.isatty() else "").strip()
        except (EOFError, KeyboardInterrupt):
            say("")
            return
        if text == "/new":
            chat.messages = []
        elif text:
            stream(chat, text)


def stream(chat: Chat, text: str) -> None:
    """One answer, printed as it comes; whatever a model writes, it cannot move the terminal's cursor."""
    try:
        chat.say(text, on_text=lambda piece: print(printable(piece, keep="\n\t"), end="", flush=True))
        print()
    except KeyboardInterrupt:
        print(" (stopped)")
    except RecipeError as error:
        say(f"error: {error}")


def main(argv: list[str] | None = None) -> int:
    parser = build_parser(STAGE, __doc__ or "", 'python -m recipe.chat --run runs/demo/latest --prompt "Who are you?"')
    add_run(parser)
    parser.add_argument("--model", type=Path, metavar="DIR", help="a merged or converted folder, instead of --run")
    parser.add_argument("--prompt", metavar="TEXT", help="answer this one question and leave")
    parser.add_argument(
        "--precision", choices=("int8", "fp16", "fp32"), default="fp16", help="for --model (default fp16)"
    )
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="longest answer (default 256)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default) always takes the likeliest"
    )
    args = parser.parse_args(argv)
    if bool(args.run or args.config) == bool(args.model):
        raise UsageError("name either a run (--run runs/demo/latest) or a folder of weights (--model DIR)")
    if args.dry_run:
        show(
            {"run": str(args.run or args.config or args.model)},
            f"would talk to {args.run or args.config or args.model}",
            args.json,
        )
        return 0
    from transformers import logging

    logging.set_verbosity_error()
    say("loading the model")
    chat = from_folder(args) if args.model else from_run(args)
    if args.prompt is None:
        loop(chat)
    elif args.json:
        show({"question": args.prompt, "answer": chat.say(args.prompt)}, "", as_json=True)
    else:
        stream(chat, args.prompt)
    return 0


if __name__ == "__main__":
    sys.exit(entry(main))
