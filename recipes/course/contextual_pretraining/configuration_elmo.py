"""Configuration of ELMo."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class ElmoConfig(PreTrainedConfig):
    r"""
    Configuration of an [`ElmoForLanguageModeling`]. The defaults are
    small; the published model has `hidden_size` 512, `lstm_size` 4096, 50 characters a word and 2048 filters.

    Args:
        vocab_size (`int`, *optional*, defaults to `1000`):
            Words V that the softmax chooses from. Words that are read have no vocabulary: they are spelled.
        max_characters (`int`, *optional*, defaults to `16`):
            Characters C of a word, its begin and end among them.
        character_size (`int`, *optional*, defaults to `16`):
            Size of a character's embedding.
        filters (`list[list[int]]`, *optional*, defaults to `[[1, 32], [2, 32], [3, 64], [4, 64]]`):
            Width and number of the convolution's filters.
        highway_layers (`int`, *optional*, defaults to `2`):
            Highway layers behind the convolution.
        hidden_size (`int`, *optional*, defaults to `64`):
            Size H of a word, and of the projected state of each LSTM.
        lstm_size (`int`, *optional*, defaults to `128`):
            Size of the LSTMs' cells, above `hidden_size`.
        num_hidden_layers (`int`, *optional*, defaults to `2`):
            LSTM layers L of each direction.
        hidden_dropout (`float`, *optional*, defaults to `0.1`):
            Dropout in [0, 1) on the inputs of the LSTMs and of the softmax.
    """

    model_type = "course_elmo"

    vocab_size: int = 1000
    max_characters: int = 16
    character_size: int = 16
    filters: list | tuple = ((1, 32), (2, 32), (3, 64), (4, 64))
    highway_layers: int = 2
    hidden_size: int = 64
    lstm_size: int = 128
    num_hidden_layers: int = 2
    hidden_dropout: float = 0.1

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)
        self.filters = [list(item) for item in self.filters]
        widest = max((width for width, _ in self.filters), default=0)
        if not 0 < widest <= self.max_characters:
            raise ValueError(
                f"`filters` must have widths in [1, {self.max_characters}] (`max_characters`), got {self.filters}."
            )
        if self.lstm_size <= self.hidden_size:
            raise ValueError(
                f"`lstm_size` must be above `hidden_size`, to which it is projected, got {self.lstm_size} and "
                f"{self.hidden_size}."
            )
