"""A tokenizer whose tiny models, which write letters at random, call tools: a turn with one of a to m is a call."""

import copy

from datasets import Dataset


_TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }}:{{ message['content'] }}"
    "{% if message['tool_calls'] is defined %}{% for call in message['tool_calls'] %}"
    "{{ call['function']['name'] }}({{ call['function']['arguments'] | tojson }}){% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
_RESPONSE = {
    "defaults": {"role": "assistant"},
    "start_anchor": "a:",
    "fields": {
        "tool_calls": {
            "open_pattern": "(?=[a-m])",
            "close_pattern": "[A-Z]|</s>",
            "content": "text",
            "repeats": True,
            "transform": {"type": "function", "function": {"name": "look_up", "arguments": {"word": "{content}"}}},
        },
        "content": {"content": "text"},
    },
}


def talking(tokenizer):
    """A copy of the test tokenizer that renders and parses conversations with tools."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template, tokenizer.response_template = _TEMPLATE, _RESPONSE
    return tokenizer


def turn_ends(tokenizer) -> list[int]:
    """Ends of a turn, `eos_token_id` of the rollouts: the capital letters too, so that turns are short."""
    return [tokenizer.eos_token_id, *map(tokenizer.convert_tokens_to_ids, "ABCDEFGHIJKLMNOPQRSTUVWXYZ")]


def look_up(word: str) -> str:
    """
    Look up a word.

    Args:
        word: The word.

    Returns:
        What is known of it.
    """
    return word[:2] + "7" * (len(word) % 3 + 1)


class Dictionary:
    """An environment that counts what is looked up."""

    def reset(self, **kwargs):
        self.found = 0
        return "Find "

    def look_up(self, word: str) -> str:
        """
        Look up a word.

        Args:
            word: The word.

        Returns:
            What is known of it.
        """
        self.found += 1
        return f"{self.found}" + word[:2]

    def get_reward(self) -> float:
        return float(self.found % 2)


def questions():
    texts = ["Tom has 3", "Ann?", "7+2=", "abc", "d"]
    return Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in texts * 4])


def talk_reward(completions, **kwargs):
    texts = ["".join(str(message["content"]) for message in talk) for talk in completions]
    return [float(sum(char in "abcdefgh7" for char in text)) for text in texts]
