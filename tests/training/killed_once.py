"""recipe.train as torchrun starts it, but that its second process is killed in step 4, unless torchrun restarted it."""

import os

from recipe.train import main
from recipe.training.launch import exit_with
from tests.forks import die_in

if __name__ == "__main__":
    if (os.environ["RANK"], os.environ["TORCHELASTIC_RESTART_COUNT"]) == ("1", "0"):
        die_in(4)
    exit_with(main)
