"""Does this machine meet the requirements of the run? One line per check, hints, a verdict; exit 3: it does not."""

import sys
from typing import Any

from recipe.core.cli import build_parser, entry, load_config
from recipe.core.config import Config
from recipe.core.text import show, table
from recipe.environment import checks as machine
from recipe.environment import device
from recipe.environment.checks import Check
from recipe.planning import sizing


def run(config: Config | None) -> list[Check]:
    """All checks in the order of the report; those of a run (memory, disk, files) need its config.

    Raises UsageError for a config that cannot be right.
    """
    shape = sizing.known_shape(config) if config else None
    if config:
        sizing.check_numbers(config)
    if config and shape:
        sizing.check_targets(config, shape)
    found = [machine.check_python(), machine.check_glibc(), machine.check_packages(), machine.check_torch()]
    if found[-1].verdict == "ok":
        found += [*device.check_device(config, shape), *device.run_probes()]
        if config and shape and config.train.matmul_accumulation == "fp16":
            found.append(device.check_accumulation(config, shape))
    if config and shape:
        found += [machine.check_ram(config, shape, _has_cuda()), *machine.check_disk(config, shape)]
    if config:
        found.append(machine.check_artefact("weights", config.base.path, "convert"))
        found.append(machine.check_artefact("corpus", config.corpus.path, "corpus"))
    return found


def _has_cuda() -> bool:
    try:
        import torch
    except (ImportError, OSError):  # its own check says so
        return False
    return torch.cuda.is_available()


def verdict(checks: list[Check]) -> str:
    """One line."""
    failed = [check.name for check in checks if check.verdict == "fail"]
    warned = [check.name for check in checks if check.verdict == "warn"]
    missing = [check.name for check in checks if check.verdict == "todo"]
    if failed:
        return f"UNFIT: {', '.join(failed)}"
    line = "FIT" + (f", but look at: {', '.join(warned)}" if warned else "")
    return line + (f"; still to make: {', '.join(missing)}" if missing else "")


def text(checks: list[Check]) -> str:
    """The report for a person."""
    rows = [["check", "", "found"], *([check.name, check.verdict, check.found] for check in checks)]
    hints = [f"{check.name}: {check.hint}" for check in checks if check.hint]
    return "\n".join([table(rows), "", *hints, verdict(checks)])


def main(argv: list[str] | None = None) -> int:
    example = "python -m recipe.doctor --config recipe/configs/vicuna-7b-p100.toml"
    args = build_parser("doctor", __doc__ or "", example).parse_args(argv)
    checks = run(load_config(args) if args.config else None)
    fit = all(check.verdict != "fail" for check in checks)
    result: dict[str, Any] = {"fit": fit, "verdict": verdict(checks), "checks": [vars(check) for check in checks]}
    show(result, text(checks), args.json)
    return 0 if fit else 3


if __name__ == "__main__":
    sys.exit(entry(main))
