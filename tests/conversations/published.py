"""A minimal record of every layout, written by hand after its publishers' descriptions."""

U, A, S = "user", "assistant", "system"

# name -> (record as published, the dialogues in it, turns passed over in each)
SAMPLES = {
    "sharegpt": (
        {"id": "a", "conversations": [{"from": "gpt", "value": "hi"}, {"from": "human", "value": "q"}]},
        [[(A, "hi"), (U, "q")]],
        [0],
    ),
    "sharegpt-tools": (
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
    "ranked-alpaca": (
        {"instruction": "i", "input": "", "output": ["best", "worse", "bad"]},
        [[(U, "i"), (A, "best")]],
        [2],
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
