"""An encoder-decoder's weights in the order in which the native engine reads them, packed once for all its searches."""

from __future__ import annotations

import threading
import weakref
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from throughtime.kernels.native.attention import PackedAttention, PackedMemory
from throughtime.kernels.native.generation import Ends, LayerState, PackedModel, StatelessStepper, fingerprint
from throughtime.kernels.native.ranking import PackedReadout
from throughtime.layers import Attention, Memory
from throughtime.models import EncoderDecoder
from throughtime.models.recurrent_layers import recurrent_layers
from throughtime.nn import GRU, LSTM, RNN, RecurrentLayer
from throughtime.nn.stepping import layer_weights, stepping_refusal


class PackedDecoder(NamedTuple):
    """An encoder that reads one-hot vectors, and the layers of a decoder, its attention and its readout.

    encoder: None where the source's vocabulary is no smaller than its embeddings; see `folded_encoder`.
    attention: None where there is none, or it is of another kind than "dot" and "general". memory: what it looks at,
    made from such an encoder's outputs; None without one of the two.
    reads_tokens: whether the layers take y(t-1) itself: what it contributes to the first layer is then looked up.
    """

    encoder: RecurrentLayer | None
    layers: PackedModel
    memory: PackedMemory | None
    attention: PackedAttention | None
    readout: PackedReadout
    reads_tokens: bool

    def remember(self, outputs: Float[Tensor, "S B H"], lengths: Int[Tensor, " B"] | None) -> Memory:
        """As `Attention.remember` does, with W_c m_j in place of m_j, and zeros on padding."""
        assert self.memory is not None
        inside = None if lengths is None else torch.arange(len(outputs), device=lengths.device) < lengths[:, None]
        made = self.memory.remember(outputs.contiguous(), inside)
        return Memory(made.values, made.keys, inside)


class DecoderSteps:
    """Steps of a packed decoder's layers for any number of rows; states are handed in and handed back."""

    def __init__(self, packed: PackedDecoder, kind: Any) -> None:
        self.reads_tokens = packed.reads_tokens
        self._stepper = StatelessStepper(packed.layers)
        self._kind = kind

    def advance(
        self, x: Float[Tensor, "N I"] | Int[Tensor, " N"], states: list[Any], picked: Int[Tensor, " N"]
    ) -> tuple[Float[Tensor, "N H"], list[Any]]:
        """h(t) of the last layer after one more step of the rows `picked` of the states, and their new states."""
        fields = [[field.contiguous() for field in state] for state in states]
        before = [LayerState(own[0], own[1] if len(own) > 1 else None) for own in fields]
        h, after = self._stepper.advance(x.contiguous(), before, picked)
        return h, [self._kind(*(field for field in state if field is not None)) for state in after]


def packed_decoder(model: EncoderDecoder) -> PackedDecoder | None:
    """The packed weights of a model; None where the native engine does not take its decoder, and under autocast.

    A model is packed once, and again when its parameters have other values.
    """
    weight = model.readout.weight_ho
    if stepping_refusal(model.decoder) is not None or weight.dtype != torch.float32:
        return None
    if torch.is_autocast_enabled("cpu"):
        return None
    now = tuple(fingerprint(parameter) for parameter in model.parameters())
    with _lock:
        known = _packings.get(model)
        if known is None or known[0] != now:
            known = _packings[model] = (now, _packed(model))
        return known[1]


def _packed(model: EncoderDecoder) -> PackedDecoder:
    decoder, weight, bias = model.decoder, model.readout.weight_ho, model.readout.bias_ho
    reads_tokens = decoder.input_size == model.config.embedding_size
    ends = Ends(model.target_embedding.weight) if reads_tokens else None
    layers = PackedModel(layer_weights(decoder), ends, residual=decoder.residual)
    encoder, memory, attention = folded_encoder(model), None, None
    own = type(getattr(model, "attention", None)) is Attention
    if own and model.config.attention in ("dot", "general") and not model.config.coverage:
        of_context, of_h = model.combine.weight.chunk(2, dim=1)  # W_c and W_h
        attention = PackedAttention(of_h)
        if encoder is not None:
            memory = PackedMemory(model.attention.weight if model.attention.kind == "general" else None, of_context)
    return PackedDecoder(encoder, layers, memory, attention, PackedReadout(weight, bias), reads_tokens)


def folded_encoder(model: EncoderDecoder) -> RecurrentLayer | None:
    """The encoder with U E in place of U in its first layer, E the embeddings: it reads one-hot vectors of tokens.

    U (E x) = (U E) x: where there are fewer tokens than an embedding has numbers, that is the smaller product. Its
    other weights are the model's own. None where the vocabulary is larger, where encoding is not the model's own alone
    (another class, a hook, other parameters), and where numbers are not finite, which would reach every token.
    """
    config, encoder, embedding = model.config, model.encoder, model.source_embedding
    own = type(encoder) in (RNN, LSTM, GRU) and type(embedding) is nn.Embedding
    hooked = any(part._forward_hooks or part._forward_pre_hooks for part in (encoder, embedding))
    changed = type(model).encode is not EncoderDecoder.encode or not own or hooked
    if config.source_vocabulary_size >= config.embedding_size or changed:
        return None
    directions = 2 if config.bidirectional else 1
    with torch.device("meta"):  # no random numbers are drawn for weights that are replaced
        folded = recurrent_layers(
            config, config.source_vocabulary_size, config.hidden_size // directions, bidirectional=config.bidirectional
        )
    state = {name: value.detach() for name, value in encoder.state_dict().items()}
    if state.keys() != folded.state_dict().keys():
        return None
    for name in ("weight_ih_l0", "weight_ih_l0_reverse"):
        if name in state:
            state[name] = state[name] @ embedding.weight.detach().mT
            if not state[name].isfinite().all():
                return None
    folded.load_state_dict(state, assign=True)
    return folded.eval().requires_grad_(False)


_packings: weakref.WeakKeyDictionary[nn.Module, tuple[Any, PackedDecoder]] = weakref.WeakKeyDictionary()
_lock = threading.Lock()
