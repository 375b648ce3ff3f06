"""The designs: networks that define probability distributions over sequences."""

from throughtime.models.language import LanguageModel, LanguageModelConfig, LanguageModelShape, SequenceLogProb
from throughtime.models.model import Model

__all__ = ["LanguageModel", "LanguageModelConfig", "LanguageModelShape", "Model", "SequenceLogProb"]
