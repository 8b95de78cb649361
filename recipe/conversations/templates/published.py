"""The chat templates that this project knows by name, each with its source."""

from recipe.conversations.templates.definition import Template

_VICUNA = (
    "A chat between a curious {user} and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the {user}'s questions."
)

PUBLISHED = (
    # FastChat's conversation template of the same name. The space before an answer belongs to the answer: sentencepiece
    # joins it to the first word.
    Template(
        name="vicuna_v1.1",
        system=_VICUNA.replace("{user}", "user"),
        system_turn="{system} ",
        user_turn="USER: {user}",
        assistant_header=" ASSISTANT:",
        assistant_turn=" {assistant}{eos}",
    ),
    # FastChat's docs/vicuna_weights_version.md, "weights v0", and its template "one_shot" without the example turns.
    # The end mark is text: `###` also starts a heading in Markdown, which is why v1.1 replaced it with EOS.
    Template(
        name="vicuna_v0",
        system=_VICUNA.replace("{user}", "human"),
        system_turn="{system}\n###",
        without_system="###",
        user_turn=" Human: {user}",
        assistant_header="\n### Assistant:",
        assistant_turn=" {assistant}\n###",
    ),
    # FastChat's "alpaca". Stanford's prompt (github.com/tatsu-lab/stanford_alpaca, train.py, PROMPT_DICT) has line
    # breaks where this one has spaces after the colons, and it knows a single turn only.
    Template(
        name="alpaca",
        system=(
            "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        ),
        system_turn="{system}\n\n",
        user_turn="### Instruction: {user}",
        assistant_header="\n\n### Response:",
        assistant_turn=" {assistant}{eos}",
    ),
    # github.com/tloen/alpaca-lora, templates/alpaca_short.json: Stanford's layout without the preamble. It knows a
    # single turn only; further turns follow EOS as they do in "alpaca".
    Template(
        name="alpaca_short",
        system_turn="{system}\n\n",
        user_turn="### Instruction:\n{user}",
        assistant_header="\n\n### Response:\n",
        assistant_turn="{assistant}{eos}",
    ),
    # github.com/meta-llama/llama, llama/generation.py, chat_completion: B_INST, E_INST, B_SYS, E_SYS.
    Template(
        name="llama-2",
        begin="{bos}[INST] ",
        system_turn="<<SYS>>\n{system}\n<</SYS>>\n\n",
        separator="{bos}[INST] ",
        user_turn="{user}",
        assistant_header=" [/INST]",
        assistant_turn=" {assistant} {eos}",
    ),
    # github.com/meta-llama/llama3, llama/tokenizer.py, ChatFormat: every content is stripped.
    Template(
        name="llama-3",
        system_turn="<|start_header_id|>system<|end_header_id|>\n\n{system}<|eot_id|>",
        user_turn="<|start_header_id|>user<|end_header_id|>\n\n{user}<|eot_id|>",
        assistant_header="<|start_header_id|>assistant<|end_header_id|>\n\n",
        assistant_turn="{assistant}<|eot_id|>",
        special_tokens=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        strip=True,
    ),
    # github.com/openai/openai-python, chatml.md. The line break after an answer is not rendered at the very end.
    Template(
        name="chatml",
        system_turn="<|im_start|>system\n{system}<|im_end|>\n",
        separator="\n",
        user_turn="<|im_start|>user\n{user}<|im_end|>\n",
        assistant_header="<|im_start|>assistant\n",
        assistant_turn="{assistant}<|im_end|>",
        special_tokens=("<|im_start|>", "<|im_end|>"),
    ),
    # The chat_template of HuggingFaceH4/zephyr-7b-beta. Its role names are plain text, its end mark is EOS.
    Template(
        name="zephyr",
        system_turn="<|system|>\n{system}{eos}\n",
        separator="\n",
        user_turn="<|user|>\n{user}{eos}\n",
        assistant_header="<|assistant|>\n",
        assistant_turn="{assistant}{eos}",
    ),
)
