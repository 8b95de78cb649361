"""The picture of the page in the README, taken from a finished run of the demo in a headless Chromium.

    python tests/bench/screenshot.py --run runs/demo/latest

Asks two questions as a person would, waits for both answers to each and writes tests/bench/results/serve.png.
"""

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))
from programs import ROOT, Tab, open_tab, start_server

QUESTIONS = ("Who are you?", "What does a GPU do?")
PICTURE = ROOT / "tests" / "bench" / "results" / "serve.png"
TOKENS = 64


async def talk(tab: Tab, picture: Path) -> None:
    """Ask the questions and take the picture."""
    await tab.look(1100, 860, "light")
    await tab.js(f"document.querySelector('#max_tokens').value = {TOKENS}")
    for number, question in enumerate(QUESTIONS, start=1):
        await tab.type(question)
        await tab.until(f"document.querySelectorAll('section').length == {number}")
        await tab.until("document.querySelectorAll('[aria-busy]').length == 0", seconds=600)
    await tab.js("document.activeElement.blur()")
    await tab.screenshot(picture)


async def visit(address: str) -> None:
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        async with open_tab(address, Path(folder)) as tab:
            await talk(tab, PICTURE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, metavar="DIR", help="a finished run of the demo")
    args = parser.parse_args()
    with start_server() as start:
        asyncio.run(visit(start("--run", args.run)[1]))


if __name__ == "__main__":
    main()
