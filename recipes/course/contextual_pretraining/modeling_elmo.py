"""ELMo: a language model in each direction over words that are read as characters.

Both directions have the same character encoder and the same softmax, but LSTMs of their own; the loss is the sum of
the two mean negative log-likelihoods. Each LSTM is projected down, and from the second layer on its input is added.

Source: Peters et al. 2018 (arXiv 1802.05365, sections 3.1 and 3.4). Deviations: the softmax is over the whole
vocabulary, which is small here, where the published model samples; states are not carried over from batch to batch.

Shapes: B rows, T words, C characters, H size of a word, L layers, V vocabulary.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import ModelOutput

from hf_evidenceflow.recipes.course.contextual_pretraining.character_encoder import CharacterEncoder
from hf_evidenceflow.recipes.course.contextual_pretraining.configuration_elmo import ElmoConfig
from hf_evidenceflow.recipes.course.contextual_pretraining.elmo_data import CHARACTERS, IGNORED


@dataclass
class ElmoOutput(ModelOutput):
    """
    Args:
        loss, forward_loss, backward_loss (`torch.Tensor`, *optional*):
            Sum of both directions, and each, in nats a word; `None` without labels.
        hidden_states (`tuple[torch.Tensor]` of L + 1 tensors of shape `(B, T, 2 H)`):
            The word's vector twice, then each layer's forward and backward state.
    """

    loss: torch.Tensor | None = None
    forward_loss: torch.Tensor | None = None
    backward_loss: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None


def reverse_words(states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """
    Turn the words of each row around and leave its padding, at the right, where it is. Twice is the identity.

    Args:
        states (`torch.Tensor` of shape `(B, T, H)`):
            Rows of words.
        lengths (`torch.Tensor` of shape `(B,)`):
            Words of each row.

    Returns:
        `torch.Tensor` of shape `(B, T, H)`.
    """
    places = torch.arange(states.shape[1], device=states.device)[None]
    source = torch.where(places < lengths[:, None], lengths[:, None] - 1 - places, places)  # [B, T]
    return states.gather(1, source[..., None].expand_as(states))


class DirectedLSTM(nn.Module):
    """
    The LSTMs of one direction: each projected to H, with a sum around all but the first.

    Args:
        config ([`ElmoConfig`]):
            Sizes.
    """

    def __init__(self, config: ElmoConfig):
        super().__init__()
        sizes = (config.hidden_size, config.lstm_size)
        self.layers = nn.ModuleList(
            nn.LSTM(*sizes, batch_first=True, proj_size=config.hidden_size) for _ in range(config.num_hidden_layers)
        )
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, words: torch.Tensor) -> list[torch.Tensor]:
        """
        Args:
            words (`torch.Tensor` of shape `(B, T, H)`):
                Words in the order of reading.

        Returns:
            `list[torch.Tensor]` of L tensors of shape `(B, T, H)`: states of each layer.
        """
        states, layers = words, []
        for index, lstm in enumerate(self.layers):
            output = lstm(self.dropout(states))[0]
            states = output if index == 0 else output + states
            layers.append(states)
        return layers


class ElmoForLanguageModeling(PreTrainedModel):
    """
    ELMo with its two language models.

    Args:
        config ([`ElmoConfig`]):
            Configuration.
    """

    config_class = ElmoConfig
    base_model_prefix = "elmo"
    main_input_name = "characters"

    def __init__(self, config: ElmoConfig):
        super().__init__(config)
        self.encoder = CharacterEncoder(
            CHARACTERS, config.character_size, config.filters, config.highway_layers, config.hidden_size
        )
        self.forward_lstm = DirectedLSTM(config)
        self.backward_lstm = DirectedLSTM(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.softmax = nn.Linear(config.hidden_size, config.vocab_size)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        # Each module knows its own: torch's, and that of the highways' gates
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()

    def forward(
        self,
        characters: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> ElmoOutput:
        """
        Args:
            characters (`torch.Tensor` of shape `(B, T, C)`):
                Words as characters, the begin and the end of the text among them.
            attention_mask (`torch.Tensor` of shape `(B, T)`, *optional*):
                1 at words, 0 at padding, which stands at the right. If not given, there is none.
            labels (`torch.Tensor` of shape `(B, T)`, *optional*):
                Each word's index in the vocabulary; -100 is not predicted.

        Returns:
            [`ElmoOutput`]: states, and the losses if there are labels.
        """
        if attention_mask is None:
            attention_mask = characters.new_ones(characters.shape[:2])
        lengths = attention_mask.sum(1)
        words = self.encoder(characters)  # [B, T, H]
        ahead = self.forward_lstm(words)
        back = [reverse_words(layer, lengths) for layer in self.backward_lstm(reverse_words(words, lengths))]
        hidden_states = (torch.cat([words, words], -1), *(torch.cat(pair, -1) for pair in zip(ahead, back)))
        if labels is None:
            return ElmoOutput(hidden_states=hidden_states)
        # The state at a word predicts the next one, or the one before it; padding predicts nothing
        labels = labels.masked_fill(attention_mask == 0, IGNORED)
        before = labels[:, :-1].masked_fill(attention_mask[:, 1:] == 0, IGNORED)
        forward_loss = self._loss(ahead[-1][:, :-1], labels[:, 1:])
        backward_loss = self._loss(back[-1][:, 1:], before)
        return ElmoOutput(forward_loss + backward_loss, forward_loss, backward_loss, hidden_states)

    def _loss(self, states: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.softmax(self.dropout(states))  # [B, T - 1, V]
        return nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORED)
