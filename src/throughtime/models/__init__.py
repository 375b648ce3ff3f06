"""The designs: networks that define probability distributions over sequences."""

from throughtime.models.conditional_recurrent import ConditionalRecurrent
from throughtime.models.context_to_sequence import ContextToSequence
from throughtime.models.design import Design, DesignConfig
from throughtime.models.echo_state import EchoState, EchoStateConfig, EchoStateNetwork, spectral_radius
from throughtime.models.encoder_decoder import EncoderDecoder
from throughtime.models.encoder_decoder_config import EncoderDecoderConfig, EncoderDecoderShape
from throughtime.models.feedback import FeedbackDesign, FeedbackModel
from throughtime.models.hidden_recurrent import HiddenRecurrent
from throughtime.models.language import LanguageModel, LanguageModelConfig, LanguageModelShape
from throughtime.models.model import Model
from throughtime.models.output_recurrent import OutputRecurrent
from throughtime.models.probability import SequenceLogProb
from throughtime.models.sequence_summary import SequenceSummary

__all__ = [
    "ConditionalRecurrent",
    "ContextToSequence",
    "Design",
    "DesignConfig",
    "EchoState",
    "EchoStateConfig",
    "EchoStateNetwork",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "EncoderDecoderShape",
    "FeedbackDesign",
    "FeedbackModel",
    "HiddenRecurrent",
    "LanguageModel",
    "LanguageModelConfig",
    "LanguageModelShape",
    "Model",
    "OutputRecurrent",
    "SequenceLogProb",
    "SequenceSummary",
    "spectral_radius",
]
