"""What a run is asked: samples to score by their likelihood, and questions to answer."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipe.conversations import identity
from recipe.conversations.messages import Message
from recipe.conversations.tokens import prompt_ids
from recipe.core.config import Config
from recipe.core.text import progress
from recipe.evaluation import choices, instructions, judge, texts
from recipe.evaluation.instructions import Instruction
from recipe.evaluation.parts import Parts
from recipe.evaluation.texts import Sample

if TYPE_CHECKING:
    from recipe.evaluation.scoring import Losses
    from recipe.model.open import TunedModel
    from recipe.training.dataset import PackedDataset

BATCH = 16  # prompts per batch: on a CPU most of the time of a step is spent on reading the weights
CACHED = 4  # tokens in a cache for one in a training pack: of a 7B model 0.5 MiB of keys and values against 3.5 MiB


@dataclass(frozen=True)
class Test:
    """Samples to score, packed: the validation set, the forgetting probe, texts and multiple choice."""

    name: str
    kind: str
    data: "PackedDataset"
    samples: Sequence[Sample] = ()
    questions: Sequence[choices.Question] = ()
    sha256: str = ""


@dataclass(frozen=True)
class Suite:
    """Everything that base and tuned model are asked; the validation set is the first test."""

    tests: Sequence[Test]
    prompts: Sequence[str]
    identity: Sequence[str] = ()
    instructions: Sequence[Instruction] = ()
    judged: Sequence[judge.Question] = ()

    @property
    def questions(self) -> dict[str, list[str]]:
        """The questions by group. A batch never mixes groups, so that one group does not change another's answers."""
        groups = {
            "prompts": list(self.prompts),
            "identity": list(self.identity),
            "instructions": [item.prompt for item in self.instructions],
            "judged": [item.question for item in self.judged],
        }
        return {name: questions for name, questions in groups.items() if questions}


@dataclass(frozen=True)
class Measured:
    """What one model made of a suite: the losses of every test, the answers to every group of questions."""

    losses: "Sequence[Losses]"
    answers: Mapping[str, list[str]]


def read_suite(config: Config, tokenizer: Any) -> Suite:
    """The tests and questions that the config asks for. Raises RecipeError for a file that cannot be used."""
    wanted = config.evaluate
    return Suite(
        read_tests(config, tokenizer),
        wanted.prompts,
        identity.unseen_questions() if config.corpus.identity_name else (),
        instructions.read() if wanted.instructions else (),
        judge.read_questions() if wanted.judge else (),
    )


def read_tests(config: Config, tokenizer: Any) -> list[Test]:
    """The validation set first, then everything else that is scored by its likelihood."""
    from recipe.training.dataset import PackedDataset, encode_file

    budget, template = config.train.micro_batch_tokens, config.corpus.template
    rows = encode_file(Path(config.corpus.path) / "val.jsonl", tokenizer, template)
    passages, digest = texts.probe()
    out = [
        Test("validation", "validation", PackedDataset(rows, budget)),
        build_test("forgetting probe", "forgetting", texts.encode_texts(tokenizer, passages, budget), budget, digest),
    ]
    names: Counter[str] = Counter()
    for path in map(Path, (*config.evaluate.texts, *config.evaluate.choices)):
        names[path.name] += 1
        name = path.name if names[path.name] == 1 else f"{path.name} ({names[path.name]})"
        if str(path) in config.evaluate.texts:
            out.append(build_test(name, "texts", texts.encode_path(path, tokenizer, template, budget), budget))
        else:
            questions = choices.read(path)
            test = build_test(name, "choices", choices.samples(tokenizer, template, questions, budget), budget)
            out.append(dataclasses.replace(test, questions=questions))
    return out


def build_test(name: str, kind: str, samples: Sequence[Sample], budget: int, digest: str = "") -> Test:
    """The samples, packed into `budget` tokens a pack."""
    from datasets import Dataset

    from recipe.training.dataset import PackedDataset

    rows = Dataset.from_dict({key: [getattr(item, key) for item in samples] for key in ("input_ids", "labels")})
    return Test(name, kind, PackedDataset(rows, budget), samples, sha256=digest)


def measure(suite: Suite, tuned: "TunedModel", name: str, config: Config, parts: Parts) -> Measured:
    """What the model of that name makes of the suite; `parts` has what an earlier evaluation finished."""
    from recipe.evaluation.scoring import score

    losses = [score(tuned.model, name, test.data, test.name, parts) for test in suite.tests]
    answers = {group: ask(tuned, name, group, questions, config, parts) for group, questions in suite.questions.items()}
    return Measured(losses, answers)


def ask(
    tuned: "TunedModel", name: str, group: str, questions: Sequence[str], config: Config, parts: Parts
) -> list[str]:
    """The greedy answer to each question, in batches."""
    from recipe.model.generate import generate

    most = config.evaluate.max_new_tokens
    prompts = [prompt_ids(tuned.tokenizer, tuned.template, [Message("user", question)]) for question in questions]
    size = batch_size(max(map(len, prompts)) + most, config.train.micro_batch_tokens)
    out: list[str] = []
    for start in progress(range(0, len(prompts), size), desc=f"{name}: answers ({group})", unit=" batches"):
        batch = prompts[start : start + size]
        out += parts.get(
            [name, batch, most],
            lambda batch=batch: generate(tuned.model, tuned.tokenizer, batch, most),  # type: ignore[misc]
        )
    return out


def batch_size(length: int, budget: int) -> int:
    """Prompts of a batch, each of at most `length` tokens with its answer: its keys and values take no more memory than
    a pack of `budget` tokens took in training."""
    return max(1, min(BATCH, CACHED * budget // length))
