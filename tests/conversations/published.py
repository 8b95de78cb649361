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
}
CALL = '{"name": "f", "arguments": {"x": 1}}'
TOOLS = 'You can call these tools, with JSON as your whole answer:\n[{"name": "f"}]'
WITH_CALL = [[(S, TOOLS), (U, "q"), (A, CALL), (U, "7"), (A, "seven")]]
RANKED = ({"instruction": "i", "input": "", "output": ["best", "worse", "bad"]}, [[(U, "i"), (A, "best")]], [2])

# what it is -> (format that is recognized, record, dialogues, turns passed over)
VARIANTS = {
    "ShareGPT with tools (LLaMA-Factory)": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": "q"},
                {"from": "function_call", "value": '{"name": "f"}'},
                {"from": "observation", "value": "7"},
                {"from": "gpt", "value": "seven"},
            ],
            "system": "Be brief.",
            "tools": '[{"name": "f"}]',
        },
        [
            [
                (S, 'Be brief.\n\nYou can call these tools, with JSON as your whole answer:\n[{"name": "f"}]'),
                (U, "q"),
                (A, '{"name": "f"}'),
                (U, "7"),
                (A, "seven"),
            ]
        ],
        [0],
    ),
    "OpenAI tool calls": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"x": 1}'}},
                    ],
                },
                {"role": "tool", "tool_call_id": "1", "content": "7"},
                {"role": "assistant", "content": "seven"},
            ],
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        WITH_CALL,
        [0],
    ),
    "OpenAI function call": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": "Wait.", "function_call": {"name": "f", "arguments": "{}"}},
                {"role": "function", "name": "f", "content": "7"},
            ]
        },
        [[(U, "q"), (A, 'Wait.\n\n{"name": "f", "arguments": {}}'), (U, "7")]],
        [0],
    ),
    "ChatGLM3 with a tool": (
        "messages",
        {
            "tools": [{"name": "f"}],
            "conversations": [
                {"role": "user", "content": "q"},
                {"role": "tool", "name": "f", "parameters": {"x": 1}, "observation": "7"},
                {"role": "assistant", "content": "seven"},
            ],
        },
        WITH_CALL,
        [0],
    ),
    "conversation with role and content (LMSYS, WildChat)": (
        "messages",
        {
            "conversation_id": "c",
            "conversation": [{"content": "q", "role": "user"}, {"content": "a", "role": "assistant"}],
        },
        QA,
        [0],
    ),
    "developer is system; other names of the assistant": (
        "messages",
        {
            "messages": [
                {"role": "developer", "content": "s"},
                {"role": "user", "content": "q"},
                {"role": "bot", "content": "a"},
            ]
        },
        SQA,
        [0],
    ),
    "text under text": (
        "messages",
        {"messages": [{"role": "user", "text": "q"}, {"role": "AI", "text": "a"}]},
        QA,
        [0],
    ),
    "typed parts with value": (
        "sharegpt",
        {
            "conversations": [
                {"from": "human", "value": [{"type": "text", "value": "q"}]},
                {"from": "gpt-4", "value": "a"},
            ]
        },
        QA,
        [0],
    ),
    "system beside conversations": (
        "sharegpt",
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "chatbot", "value": "a"}]},
        SQA,
        [0],
    ),
    "system_prompt beside messages": (
        "messages",
        {"system_prompt": "s", "messages": [{"role": "user", "content": "q"}, {"role": "model", "content": "a"}]},
        SQA,
        [0],
    ),
    "messages as a JSON string": (
        "messages",
        {"messages": '[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]'},
        QA,
        [0],
    ),
    "ShareGPT's items": (
        "sharegpt",
        {"id": "x", "items": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        QA,
        [0],
    ),
    "chosen as a turn beside conversations (LLaMA-Factory)": (
        "preference",
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "x"},
        },
        QA,
        [1],
    ),
    "chosen as the whole list (UltraFeedback)": (
        "preference",
        {
            "prompt": "q",
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "x"}],
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        },
        QA,
        [1],
    ),
    "chosen as a list of one turn (TRL)": (
        "preference",
        {
            "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "q"}],
            "chosen": [{"role": "assistant", "content": "a"}],
            "rejected": [{"role": "assistant", "content": "x"}],
        },
        SQA,
        [1],
    ),
    "chosen as a string beside conversations (MedicalGPT)": (
        "preference",
        {
            "conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "q"}],
            "chosen": "a",
            "rejected": "x",
        },
        SQA,
        [1],
    ),
    "response_chosen (MedicalGPT)": (
        "preference",
        {"system": "s", "history": [], "question": "q", "response_chosen": "a", "response_rejected": "x"},
        SQA,
        [1],
    ),
    "a transcript as prompt": (
        "preference",
        {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": "a", "rejected": "x"},
        QA,
        [1],
    ),
    "instruction with chosen and rejected": (
        "preference",
        {"instruction": "q", "chosen": "a", "rejected": "x"},
        QA,
        [1],
    ),
    "prompt and completion as turns (TRL)": (
        "preference",
        {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant", "content": "a"}]},
        QA,
        [0],
    ),
    "Firefly's pairs": ("firefly", {"conversation_id": 1, "conversation": [{"human": "q", "assistant": "a"}]}, QA, [0]),
    "MOSS 002": ("moss", {"plain_text": "[Human]: q<eoh>\n[MOSS]: a<eoa>\n", "num_turns": 1}, QA, [0]),
    "scores beside a list of answers": (
        "alpaca",
        {"instruction": "q", "output": ["x", "a"], "scores": [1, 4.5]},
        QA,
        [1],
    ),
    "a list of answers without scores": ("alpaca", {"instruction": "q", "output": ["a", "b"]}, QA, [1]),
    "OIG": ("labelled-text", {"text": "s\n<human>: q\n<bot>: a", "metadata": {}}, SQA, [0]),
    "Alpaca with its prompt as text": (
        "alpaca",
        {"instruction": "q", "input": "", "output": "a", "text": "Below is q. a"},
        QA,
        [0],
    ),
    "a pair and the same turns": (
        "messages",
        {
            "prompt": "q",
            "response": "a",
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        },
        QA,
        [0],
    ),
}
