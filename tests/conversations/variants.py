"""Records of published layouts that are variants of a format, written by hand after the publishers' descriptions."""

from tests.conversations.published import QA, SQA, A, S, U

QARB = [[*QA[0], (U, "r"), (A, "b")]]
CALL = '{"name": "f", "arguments": {"x": 1}}'
TOOLS = 'You can call these tools, with JSON as your whole answer:\n[{"name": "f"}]'
WITH_CALL = [[(S, TOOLS), (U, "q"), (A, CALL), (U, "7"), (A, "seven")]]
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
    "Firefly's pair in a table with both fields": (
        "firefly",
        {"kind": "k", "input": "q", "target": "a", "conversation": None},
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
    "pairs with an instruction (COIG)": (
        "xtuner",
        {"instruction": "s", "conversations": [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]},
        [[*SQA[0], (U, "r"), (A, "b")]],
        [0],
    ),
    "pairs as lists": ("xtuner", {"id": 1, "conversation": [["q", "a"], ["r", "b"]]}, QARB, [0]),
    "history as turns (ChatGLM3, Qwen)": (
        "query-response",
        {"query": "r", "response": "b", "history": [{"role": "user", "content": "q"}, {"role": "bot", "content": "a"}]},
        QARB,
        [0],
    ),
    "history as pairs of fields": (
        "prompt-response",
        {"prompt": "r", "response": "b", "history": [{"user": "q", "assistant": "a"}]},
        QARB,
        [0],
    ),
    "history as texts": ("alpaca", {"instruction": "r", "output": "b", "history": ["q", "a"]}, QARB, [0]),
    "a number as input and as answer": (
        "alpaca",
        {"instruction": "Double it.", "input": 2, "output": 4},
        [[(U, "Double it.\n\n2"), (A, "4")]],
        [0],
    ),
    "no input in a table of pandas": ("alpaca", {"instruction": "q", "input": float("nan"), "output": "a"}, QA, [0]),
    "a list as input": (
        "alpaca",
        {"instruction": "Sort:", "input": ["b", "a"], "output": "a, b"},
        [[(U, "Sort:\n\nb\na"), (A, "a, b")]],
        [0],
    ),
    "Gemini's contents": (
        "messages",
        {
            "systemInstruction": {"role": "system", "parts": [{"text": "s"}]},
            "contents": [{"role": "user", "parts": [{"text": "q"}]}, {"role": "model", "parts": [{"text": "a"}]}],
        },
        SQA,
        [0],
    ),
    "parts without a type (Bedrock)": (
        "messages",
        {
            "schemaVersion": "bedrock-conversation-2024",
            "system": [{"text": "s"}],
            "messages": [
                {"role": "user", "content": [{"text": "q"}]},
                {"role": "assistant", "content": [{"text": "a"}]},
            ],
        },
        SQA,
        [0],
    ),
    "parts of a table, where every part has every field": (
        "messages",
        {
            "tools": "None",
            "messages": [
                {"role": "user", "content": [{"text": "q", "image": None}], "tool_calls": None, "weight": None},
                {"role": "assistant", "content": [{"text": "a", "image": None}], "tool_calls": None, "weight": None},
            ],
        },
        QA,
        [0],
    ),
    "a chosen answer that quotes a transcript": (
        "preference",
        {"prompt": "q", "chosen": "a\n\nHuman: x\n\nAssistant: y", "rejected": "x"},
        [[(U, "q"), (A, "a\n\nHuman: x\n\nAssistant: y")]],
        [1],
    ),
    "rendered by Llama 2's template": (
        "rendered-text",
        {"text": "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] a </s><s>[INST] r [/INST] b </s>"},
        [[*SQA[0], *QARB[0][2:]]],
        [0],
    ),
    "rendered by Llama 3's template": (
        "rendered-text",
        {
            "text": "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nq<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\na<|eot_id|>"
        },
        QA,
        [0],
    ),
    "rendered by Zephyr's template": (
        "rendered-text",
        {"text": "<|system|>\ns</s>\n<|user|>\nq</s>\n<|assistant|>\na</s>\n"},
        SQA,
        [0],
    ),
    "messages beside their rendered text": (
        "messages",
        {
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "text": "<|system|>\nt</s>\n<|user|>\nq</s>\n<|assistant|>\na</s>\n",
        },
        QA,
        [0],
    ),
    "blocks of tools (Anthropic)": (
        "messages",
        {
            "tools": [{"name": "f"}],
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}}]},
                {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1", "content": "7"}]},
                {"role": "assistant", "content": [{"type": "text", "text": "seven"}]},
            ],
        },
        WITH_CALL,
        [0],
    ),
    "tools in the system turn, a result as an object (ChatGLM4)": (
        "messages",
        {
            "messages": [
                {"role": "system", "content": "", "tools": [{"type": "function", "function": {"name": "f"}}]},
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": CALL},
                {"role": "observation", "content": {"x": 7}},
                {"role": "assistant", "content": "seven"},
            ]
        },
        [[*WITH_CALL[0][:3], (U, '{"x": 7}'), (A, "seven")]],
        [0],
    ),
    "tool calls as JSON text, described as functions": (
        "messages",
        {
            "functions": {"name": "f"},
            "messages": [
                {"role": "user", "content": "q"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": '[{"function": {"name": "f", "arguments": {"x": 1}}}]',
                },
                {"role": "ipython", "content": "7"},
                {"role": "assistant", "content": "seven"},
            ],
        },
        WITH_CALL,
        [0],
    ),
    "a call of an unknown kind": (
        "messages",
        {
            "messages": [
                {"role": "user", "content": "q"},
                {"role": "assistant", "content": None, "tool_calls": [{"do": "f"}]},
                {"role": "tool", "content": "7"},
                {"role": "assistant", "content": "seven"},
            ]
        },
        [[(U, "q"), (A, '{"do": "f"}'), (U, "7"), (A, "seven")]],
        [0],
    ),
    "two system prompts": (
        "messages",
        {
            "system": "s",
            "system_message": "t",
            "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
        },
        [[(S, "s\n\nt"), *QA[0]]],
        [0],
    ),
    "preferred output (OpenAI)": (
        "preference",
        {
            "input": {"messages": [{"role": "user", "content": "q"}], "tools": [], "parallel_tool_calls": True},
            "preferred_output": [{"role": "assistant", "content": "a"}],
            "non_preferred_output": [{"role": "assistant", "content": "x"}],
        },
        QA,
        [1],
    ),
}
