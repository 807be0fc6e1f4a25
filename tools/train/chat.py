"""The Qwen3 chat format in its non-thinking form, and reading prompts in the JSONL form of dspark-bench."""
import json

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ADDED = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>"]
END_OF_TEXT, END_OF_TURN = SPECIAL[0], SPECIAL[2]
NO_THINKING = "<think>\n\n</think>\n\n"


def render_prompt(messages):
    """Prompt text for alternating user and assistant messages (strings) that end with the user's."""
    out = []
    for i, text in enumerate(messages):
        role = "assistant" if i % 2 else "user"
        out.append(f"<|im_start|>{role}\n{text}<|im_end|>\n")
    return "".join(out) + "<|im_start|>assistant\n" + NO_THINKING


def render(messages):
    """A whole conversation that ends with the assistant's message, as the template writes it."""
    return render_prompt(messages[:-1]) + messages[-1] + "<|im_end|>\n"


def read_jsonl(path):
    """Objects of a JSONL file; lines end at a newline only, so other Unicode line breaks inside texts survive."""
    with open(path, encoding="utf-8", newline="\n") as f:
        return [json.loads(line) for line in f.read().split("\n") if line.strip()]


def write_jsonl(path, rows):
    with open(path, "w", encoding="utf-8", newline="\n") as f:
        for row in rows:
            f.write(json.dumps(row, ensure_ascii=False) + "\n")


def prompt_text(row):
    """Text of a prompt: 'prompt' is continued as it is, of 'turns' (user messages) the first is asked."""
    return row["prompt"] if "prompt" in row else render_prompt(row["turns"][:1])
