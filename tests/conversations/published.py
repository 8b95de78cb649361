"""A minimal record of every published format and its variants, written by hand after the publishers' descriptions."""

U, A, S = "user", "assistant", "system"

# format -> (record as published, the dialogues in it, turns passed over in each)
SAMPLES = {
    "sharegpt": (
        {"id": "a", "conversations": [{"from": "gpt", "value": "hi"}, {"from": "human", "value": "q"}]},
        [[(A, "hi"), (U, "q")]],
        [0],
    ),
    "messages": (
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
            ]
        },
        [[(S, "s"), (U, "q")]],
        [0],
    ),
    "alpaca": (
        {"instruction": "i", "input": "x", "output": "o", "history": [["q", "a"], ["r", "b"]], "system": "s"},
        [[(S, "s"), (U, "q"), (A, "a"), (U, "r"), (A, "b"), (U, "i\n\nx"), (A, "o")]],
        [0],
    ),
    "hh-rlhf": (
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nwith two parts\n\nHuman: r\n\nAssistant: b",
            "rejected": "\n\nHuman: q\n\nAssistant: x",
        },
        [[(U, "q"), (A, "a\n\nwith two parts"), (U, "r"), (A, "b")]],
        [1],
    ),
    "firefly": ({"kind": "MRC", "input": "q", "target": "a"}, [[(U, "q"), (A, "a")]], [0]),
    "belle": (
        {"instruction": "Human:q\nAssistant:a\nHuman:r\nAssistant:\n", "input": "", "output": "b"},
        [[(U, "q"), (A, "a"), (U, "r"), (A, "b")]],
        [0],
    ),
    "moss": (
        {
            "conversation_id": 1,
            "meta_instruction": "You are MOSS.\n",
            "num_turns": 2,
            "chat": {
                "turn_1": {
                    "Human": "<|Human|>: q<eoh>\n",
                    "Inner Thoughts": "<|Inner Thoughts|>: None<eot>\n",
                    "Commands": "<|Commands|>: None<eoc>\n",
                    "Tool Responses": "<|Results|>: None<eor>\n",
                    "MOSS": "<|MOSS|>: a<eom>\n",
                },
                "turn_2": {"Human": "<|Human|>: r<eoh>\n", "MOSS": "<|MOSS|>: b<eom>\n"},
            },
        },
        [[(S, "You are MOSS."), (U, "q"), (A, "a"), (U, "r"), (A, "b")]],
        [0],
    ),
    "baize": (
        {
            "topic": "t",
            "input": "The conversation between human and AI assistant.\n"
            "[|Human|] q\n[|AI|] a\n[|Human|] r\n[|AI|] b\n[|Human|] ",
        },
        [[(U, "q"), (A, "a"), (U, "r"), (A, "b")]],
        [0],
    ),
    "dolly": (
        {"instruction": "i", "context": "c", "response": "r", "category": "closed_qa"},
        [[(U, "i\n\nc"), (A, "r")]],
        [0],
    ),
    "hc3": (
        {"question": "q", "human_answers": ["h", "g"], "chatgpt_answers": ["a", "b"], "source": "x"},
        [[(U, "q"), (A, "a")]],
        [3],
    ),
    "lima": ({"conversations": ["q", "a", "r", "b"], "source": "x"}, [[(U, "q"), (A, "a"), (U, "r"), (A, "b")]], [0]),
    "ultrachat": ({"id": "0", "data": ["q", "a"]}, [[(U, "q"), (A, "a")]], [0]),
    "self-instruct": (
        {
            "id": "seed_task_0",
            "instruction": "i",
            "instances": [{"input": "x", "output": "y"}, {"input": "", "output": "z"}],
            "is_classification": False,
        },
        [[(U, "i\n\nx"), (A, "y")], [(U, "i"), (A, "z")]],
        [0, 0],
    ),
    "dialogstudio": (
        {
            "new dialog id": "d--1",
            "log": [
                {"turn id": 1, "user utterance": "q", "system response": "a", "dialog history": ""},
                {"turn id": 2, "user utterance": "r", "system response": "b", "dialog history": "<USER> q"},
            ],
        },
        [[(U, "q"), (A, "a"), (U, "r"), (A, "b")]],
        [0],
    ),
    "crosswoz": (
        {"sys-usr": [1, 2], "messages": [{"role": "usr", "content": "q"}, {"role": "sys", "content": "a"}], "goal": []},
        [[(U, "q"), (A, "a")]],
        [0],
    ),
    "belle-eval": ({"question": "q", "class": "code", "std_answer": "a"}, [[(U, "q"), (A, "a")]], [0]),
}
TREE = {
    "message_tree_id": "t",
    "prompt": {
        "text": "q",
        "role": "prompter",
        "replies": [
            {"text": "worse", "role": "assistant", "rank": 1, "replies": []},
            {
                "text": "best",
                "role": "assistant",
                "rank": 0,
                "replies": [{"text": "r", "role": "prompter", "replies": [{"text": "b", "role": "assistant"}]}],
            },
            {"text": "unranked", "role": "assistant"},
        ],
    },
}
BEST = [(U, "q"), (A, "best"), (U, "r"), (A, "b")]
SAMPLES["oasst"] = (TREE, [BEST], [2])
SAMPLES["chatgpt"] = (
    {
        "title": "t",
        "conversation_id": "c",
        "current_node": "4",
        "mapping": {
            "0": {"id": "0", "message": None, "parent": None, "children": ["1"]},
            "1": {
                "id": "1",
                "message": {"author": {"role": "system"}, "content": {"content_type": "text", "parts": [""]}},
                "parent": "0",
                "children": ["2"],
            },
            "2": {
                "id": "2",
                "message": {"author": {"role": "user"}, "content": {"content_type": "text", "parts": ["q"]}},
                "parent": "1",
                "children": ["3", "4"],
            },
            "3": {
                "id": "3",
                "message": {"author": {"role": "assistant"}, "content": {"content_type": "text", "parts": ["old"]}},
                "parent": "2",
                "children": [],
            },
            "4": {
                "id": "4",
                "message": {"author": {"role": "assistant"}, "content": {"content_type": "text", "parts": ["new"]}},
                "parent": "2",
                "children": [],
            },
        },
    },
    [[(U, "q"), (A, "new")]],
    [1],
)
QA = [[(U, "q"), (A, "a")]]
SQA = [[(S, "s"), (U, "q"), (A, "a")]]
SAMPLES |= {
    "preference": (
        {"prompt": "q", "chosen": "a", "rejected": "x", "score_chosen": 8.0},
        QA,
        [1],
    ),
    "xtuner": ({"conversation": [{"system": "s", "input": "q", "output": "a"}]}, SQA, [0]),
    "gpt4-comparison": (
        {"user_input": "q", "responses_and_scores": [{"response": "x", "score": 2.0}, {"response": "a", "score": 9.0}]},
        QA,
        [1],
    ),
    "gpteacher": ({"instruction": "i", "input": "x", "response": "r"}, [[(U, "i\n\nx"), (A, "r")]], [0]),
    "prompt-response": ({"prompt": "q", "response": "a", "history": [["p", "o"]]}, [[(U, "p"), (A, "o"), *QA[0]]], [0]),
    "prompt-completion": ({"prompt": "q", "completion": "a"}, QA, [0]),
    "question-answer": ({"question": "q", "answer": "a"}, QA, [0]),  # GSM8K
    "question-response": ({"id": "t0.1", "system_prompt": "s", "question": "q", "response": "a"}, SQA, [0]),  # OpenOrca
    "query-response": (
        {"query": "q", "response": "a", "type": "GSM_SV", "original_question": "o"},
        QA,
        [0],
    ),  # MetaMath
    "input-output": ({"input": "q", "output": "a"}, QA, [0]),
    "labelled-text": (
        {"text": "### Human: q### Assistant: a### Human: r### Assistant: b"},
        [[*QA[0], (U, "r"), (A, "b")]],
        [0],
    ),
    "ultrafeedback": (
        {
            "instruction": "q",
            "models": ["m", "n"],
            "completions": [{"response": "x", "overall_score": 2.5}, {"response": "a", "overall_score": 8.5}],
        },
        QA,
        [1],
    ),
    "inputs-targets": ({"inputs": "q", "targets": "a", "language": "English"}, QA, [0]),  # Aya, xP3, Flan
    "user-assistant": ({"system": "s", "user": "q", "assistant": "a"}, SQA, [0]),
    "rendered-text": (
        {
            "text": "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n"
            "<|im_start|>assistant\na<|im_end|>\n"
        },
        SQA,
        [0],
    ),
    "guanaco": (
        {"instruction": "User: q\nAssistant: a", "input": "User: r", "output": "b"},  # GuanacoDataset
        [[*QA[0], (U, "r"), (A, "b")]],
        [0],
    ),
}
RANKED = ({"instruction": "i", "input": "", "output": ["best", "worse", "bad"]}, [[(U, "i"), (A, "best")]], [2])
