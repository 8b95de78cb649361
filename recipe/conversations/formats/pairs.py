"""Records with a question and its answer in fields of their own: Alpaca and its many relatives."""

from collections.abc import Iterator
from typing import Any

from recipe.conversations.formats.base import Format, Record, are_strings, are_texts, is_list_of, keys
from recipe.conversations.formats.pair_lists import read_history
from recipe.conversations.formats.turns import SYSTEM_KEYS, read_system
from recipe.conversations.messages import Dialogue, alternate, join_texts, read_text

_SCORES = ("scores", "score")
_READS = frozenset({*SYSTEM_KEYS, "history", *_SCORES})
# Parts of the question that a format without a place for them must not leave out.
CONTEXTS = ("context", "contexts", "passage", "document", "article", "choices", "options", "A", "opa", "option_a")
_CONTEXTS = (*CONTEXTS, "input", "instruction")  # those that are a question of their own in other formats, too


def pair_format(shape: str, question: str, answer: str, context: str = "") -> Format:
    """A format with a question field and an answer field; text under `context`, where it is there, is asked about.

    Earlier (question, answer) pairs may be in `history`, a system prompt in `system` or `system_prompt`.
    """

    def matches(record: Record) -> bool:
        if not isinstance(record.get(question), str):
            return False
        answers = record.get(answer)
        return (isinstance(answers, str) or _is_number(answers) or are_texts(answers)) and not _asks_more(
            record, question, context
        )

    def dialogues(record: Record) -> Iterator[Dialogue]:
        yield read_pair(record, join_texts(record[question], record.get(context)), record[answer])

    return Format(shape, keys(f"{question} {answer}"), matches, dialogues, _READS | ({context} - {""}))


def _asks_more(record: Record, question: str, context: str) -> bool:
    """Whether a field that belongs to the question would be left out."""
    if (given := record.get(context)) and given.__class__ is not str and not read_text(given) and given == given:
        return True  # an object, say
    return any(record.get(key) for key in _CONTEXTS if key not in (question, context))


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == value


def read_pair(record: Record, question: str, answers: Any) -> Dialogue:
    """The question with its answer, after the record's system prompt and history.

    Of a list of answers the one with the highest score is taken; without scores the first, and the others are
    `alternatives`.
    """
    before = [*alternate(system=read_system(record)), *read_history(record.get("history"))]
    if not isinstance(answers, list):
        return Dialogue([*before, *alternate(question, answers)])
    best = _find_best(record, answers)
    messages = [*before, *alternate(question, answers[best or 0])]
    if best is None:
        return Dialogue(messages, alternatives=tuple(answers[1:]))
    return Dialogue(messages, passed_over=len(answers) - 1)


def _find_best(record: Record, answers: list[str]) -> int | None:
    """The index of the answer with the highest score; None where there is no score for each."""
    for key in _SCORES:
        scores = record.get(key)
        if (
            isinstance(scores, list)
            and len(scores) == len(answers)
            and all(isinstance(score, (int, float)) for score in scores)
        ):
            return scores.index(max(scores))
    return None


def read_ranked(record: Record) -> Iterator[Dialogue]:
    """The answers are in `output`, the best one first. Only a config can say so: scores are not there."""
    answers = record["output"]
    question = join_texts(record["instruction"], record.get("input"))
    dialogue = read_pair(record, question, answers[0])
    yield Dialogue(dialogue.messages, passed_over=len(answers) - 1)


def is_ranked(record: Record) -> bool:
    return are_strings(record, "instruction") and are_texts(record.get("output"))


def scored_format(shape: str, question: str, answers: str, score: str) -> Format:
    """A format with a list of answers that have a score each, of which the highest is taken."""

    def find(record: Record) -> list[Record]:
        items = record.get(answers)
        items = [item for item in items if isinstance(item, dict)] if isinstance(items, list) else []
        return [item for item in items if are_strings(item, "response") and _is_number(item.get(score))]

    def dialogues(record: Record) -> Iterator[Dialogue]:
        best = max(find(record), key=lambda item: item[score])
        yield Dialogue(alternate(record[question], best["response"]), passed_over=len(find(record)) - 1)

    return Format(
        shape,
        keys(f"{question} {answers}"),
        lambda record: are_strings(record, question) and bool(find(record)),
        dialogues,
    )


def read_hc3(record: Record) -> Iterator[Dialogue]:
    """The first of ChatGPT's answers; the human answers are passed over."""
    answers, human = record["chatgpt_answers"], record.get("human_answers")
    texts = [read_text(answer) for answer in answers] or [""]
    over = len(human) if isinstance(human, list) else 0
    yield Dialogue(alternate(record["question"], texts[0]), over, tuple(texts[1:]))


def read_self_instruct(record: Record) -> Iterator[Dialogue]:
    """A task with instances, each a dialogue."""
    for instance in record["instances"]:
        instance = instance if isinstance(instance, dict) else {}
        yield Dialogue(alternate(join_texts(record["instruction"], instance.get("input")), instance.get("output")))


RANKED = {
    "ranked-alpaca": Format(
        '{"instruction": "...", "input": "", "output": ["best", "worse"]}',
        keys("instruction output"),
        is_ranked,
        read_ranked,
    )
}
PAIRS = {
    "alpaca": pair_format(
        '{"instruction": "...", "input": "...", "output": "..."}', "instruction", "output", context="input"
    ),
    "dolly": Format(
        '{"instruction": "...", "context": "...", "response": "..."}',
        keys("instruction context response"),
        lambda record: are_strings(record, "instruction", "context", "response"),
        lambda record: [read_pair(record, join_texts(record["instruction"], record["context"]), record["response"])],
    ),
    "hc3": Format(
        '{"question": "...", "human_answers": [...], "chatgpt_answers": [...]}',
        keys("question chatgpt_answers"),
        lambda record: are_strings(record, "question") and isinstance(record.get("chatgpt_answers"), list),
        read_hc3,
    ),
    "self-instruct": Format(
        '{"instruction": "...", "instances": [{"input": "", "output": "..."}]}',
        keys("instruction instances"),
        lambda record: are_strings(record, "instruction") and is_list_of(record.get("instances"), "output"),
        read_self_instruct,
    ),
    "belle-eval": pair_format('{"question": "...", "std_answer": "..."}', "question", "std_answer"),
    "gpt4-comparison": scored_format(
        '{"user_input": "...", "responses_and_scores": [{"response": "...", "score": 9.0}, ...]}',
        "user_input",
        "responses_and_scores",
        "score",
    ),
    "ultrafeedback": scored_format(
        '{"instruction": "...", "completions": [{"response": "...", "overall_score": 9.0}, ...]}',
        "instruction",
        "completions",
        "overall_score",
    ),
    "gpteacher": pair_format(
        '{"instruction": "...", "input": "...", "response": "..."}', "instruction", "response", context="input"
    ),
    "prompt-response": pair_format('{"prompt": "...", "response": "..."}', "prompt", "response"),
    "prompt-completion": pair_format('{"prompt": "...", "completion": "..."}', "prompt", "completion"),
    "question-answer": pair_format('{"question": "...", "answer": "..."}', "question", "answer"),
    "question-response": pair_format(
        '{"system_prompt": "...", "question": "...", "response": "..."}', "question", "response"
    ),
    "query-response": pair_format('{"query": "...", "response": "..."}', "query", "response"),
    "inputs-targets": pair_format('{"inputs": "...", "targets": "..."}', "inputs", "targets"),
    "user-assistant": pair_format('{"user": "...", "assistant": "..."}', "user", "assistant"),
    "input-output": pair_format('{"input": "...", "output": "..."}', "input", "output"),
}
