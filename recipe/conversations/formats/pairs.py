"""Records with a question and its answer in fields of their own: Alpaca and its many relatives."""

from collections.abc import Callable, Iterator
from typing import Any

from recipe.conversations.formats.base import Format, Record, are_strings, are_texts, is_list_of, keys, read_list
from recipe.conversations.formats.turns import is_zero, read_system
from recipe.conversations.messages import Dialogue, Message, alternate, join_texts, read_text

_SCORES = ("scores", "score")
_READS = frozenset({"system", "system_prompt", "history", *_SCORES})
_KNOWN_EXTRA = ("context", "passage", "choices", "options")  # a part of the question that other formats do not read


def pair_format(shape: str, question: str, answer: str, context: str = "") -> Format:
    """A format with a question field and an answer field; text under `context`, where it is there, is asked about.

    Earlier (question, answer) pairs may be in `history`, a system prompt in `system` or `system_prompt`.
    """

    def matches(record: Record) -> bool:
        if not isinstance(record.get(question), str):
            return False
        answers = record.get(answer)
        return (isinstance(answers, str) or are_texts(answers)) and not _asks_more(record, context)

    def dialogues(record: Record) -> Iterator[Dialogue]:
        yield read_pair(record, join_texts(record[question], record.get(context)), record[answer])

    return Format(shape, keys(f"{question} {answer}"), matches, dialogues, _READS | ({context} - {""}))


def _asks_more(record: Record, context: str) -> bool:
    """Whether a field that belongs to the question would be left out."""
    return any(record.get(key) for key in _KNOWN_EXTRA if key != context)


def read_pair(record: Record, question: str, answers: str | list[str]) -> Dialogue:
    """The question with its answer, after the record's system prompt and history.

    Of a list of answers the one with the highest score is taken; without scores the first, and the others are
    `alternatives`.
    """
    before = alternate(*read_history(record.get("history")), system=read_system(record))
    if isinstance(answers, str):
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


def read_history(history: Any) -> list[Any]:
    """Earlier turns as a flat list: `history` holds (question, answer) pairs, or is JSON text of such a list."""
    history = read_list(history)
    pairs = [pair for pair in history if isinstance(pair, (list, tuple))] if isinstance(history, list) else []
    return [turn for pair in pairs for turn in (*pair, "", "")[:2]]


def read_ranked(record: Record) -> Iterator[Dialogue]:
    """The answers are in `output`, the best one first. Only a config can say so: scores are not there."""
    answers = record["output"]
    question = join_texts(record["instruction"], record.get("input"))
    dialogue = read_pair(record, question, answers[0])
    yield Dialogue(dialogue.messages, passed_over=len(answers) - 1)


def is_ranked(record: Record) -> bool:
    return are_strings(record, "instruction") and are_texts(record.get("output"))


def read_scored(record: Record) -> Iterator[Dialogue]:
    """GPT-4's comparison data: answers with a score each, the highest of which is taken."""
    answers = [item for item in record["responses_and_scores"] if is_scored(item)]
    best = max(answers, key=lambda item: item["score"])
    yield Dialogue(alternate(record["user_input"], best["response"]), passed_over=len(answers) - 1)


def is_scored(item: Any) -> bool:
    return isinstance(item, dict) and are_strings(item, "response") and isinstance(item.get("score"), (int, float))


def read_firefly(record: Record) -> Iterator[Dialogue]:
    """Firefly's pairs in `conversation`, or one pair as `input` and `target` with its `kind`."""
    if "conversation" in record:
        yield from _read_pairs(record, "human", "assistant")
    else:
        yield Dialogue(alternate(record["input"], record["target"]))


def is_firefly(record: Record) -> bool:
    return is_list_of(record.get("conversation"), "human") or are_strings(record, "kind", "input", "target")


def read_xtuner(record: Record) -> Iterator[Dialogue]:
    """XTuner's pairs in `conversation`; `output_with_loss: false` marks an answer as context."""
    return _read_pairs(record, "input", "output")


def is_xtuner(record: Record) -> bool:
    return bool(record.get("conversation")) and is_list_of(record["conversation"], "input", "output")


def _read_pairs(record: Record, question: str, answer: str) -> Iterator[Dialogue]:
    messages: list[Message] = []
    for pair in record["conversation"]:
        pair = pair if isinstance(pair, dict) else {}
        system = read_system(pair) or (read_system(record) if not messages else "")
        messages += alternate(pair.get(question), system=system)
        messages.append(Message("assistant", read_text(pair.get(answer)), not is_zero(pair.get("output_with_loss"))))
    yield Dialogue(messages)


def read_hc3(record: Record) -> Iterator[Dialogue]:
    """The first of ChatGPT's answers; the human answers are passed over."""
    answers, human = record["chatgpt_answers"], record.get("human_answers")
    texts = [read_text(answer) for answer in answers] or [""]
    over = len(human) if isinstance(human, list) else 0
    yield Dialogue(alternate(record["question"], texts[0]), over, tuple(texts[1:]))


def read_list_of_texts(key: str) -> Callable[[Record], Iterator[Dialogue]]:
    def read(record: Record) -> Iterator[Dialogue]:
        yield Dialogue(alternate(*record[key], system=read_system(record)))

    return read


def read_self_instruct(record: Record) -> Iterator[Dialogue]:
    """A task with instances, each a dialogue."""
    for instance in record["instances"]:
        instance = instance if isinstance(instance, dict) else {}
        yield Dialogue(alternate(join_texts(record["instruction"], instance.get("input")), instance.get("output")))


def read_dialogstudio(record: Record) -> Iterator[Dialogue]:
    turns = [turn if isinstance(turn, dict) else {} for turn in record["log"]]
    yield Dialogue(alternate(*(turn.get(side) for turn in turns for side in ("user utterance", "system response"))))


RANKED = {
    "ranked-alpaca": Format(
        '{"instruction": "...", "input": "", "output": ["best", "worse"]}',
        keys("instruction output"),
        is_ranked,
        read_ranked,
    )
}
PAIRS = {
    "lima": Format(
        '{"conversations": ["question", "answer", ...]}',
        keys("conversations"),
        lambda record: are_texts(record.get("conversations")),
        read_list_of_texts("conversations"),
    ),
    "ultrachat": Format(
        '{"data": ["question", "answer", ...]}',
        keys("data"),
        lambda record: are_texts(record.get("data")),
        read_list_of_texts("data"),
    ),
    "firefly": Format(
        '{"kind": "...", "input": "...", "target": "..."}',
        keys("conversation", "kind input target"),
        is_firefly,
        read_firefly,
    ),
    "xtuner": Format(
        '{"conversation": [{"system": "...", "input": "...", "output": "..."}]}',
        keys("conversation"),
        is_xtuner,
        read_xtuner,
    ),
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
    "dialogstudio": Format(
        '{"log": [{"user utterance": "...", "system response": "..."}]}',
        keys("log"),
        lambda record: is_list_of(record.get("log"), "user utterance"),
        read_dialogstudio,
    ),
    "belle-eval": pair_format('{"question": "...", "std_answer": "..."}', "question", "std_answer"),
    "gpt4-comparison": Format(
        '{"user_input": "...", "responses_and_scores": [{"response": "...", "score": 9.0}, ...]}',
        keys("user_input responses_and_scores"),
        lambda record: (
            are_strings(record, "user_input")
            and isinstance(record.get("responses_and_scores"), list)
            and any(map(is_scored, record["responses_and_scores"]))
        ),
        read_scored,
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
    "input-output": pair_format('{"input": "...", "output": "..."}', "input", "output"),
}
