"""LoRA fine-tuning of Vicuna-7B on one 16 GB Tesla P100: from raw weights and conversations to a model that talks."""

import signal
import sys

# While the modules of a command load, Ctrl-C ends it without a traceback; then `cli.entry` handles it.
if sys.argv[:1] == ["-m"] and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
