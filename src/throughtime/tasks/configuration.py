"""The whole configuration of a language-model run: what `config.toml` holds."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from throughtime.configuration import to_toml
from throughtime.data.config import DataConfig
from throughtime.decoding.config import GenerationConfig
from throughtime.models.language import LanguageModelShape
from throughtime.training.config import TrainingConfig

_HEADING = """A throughtime configuration: every key, with its meaning.
Train again with it:  throughtime train lm --config config.toml --run NEW-FOLDER"""


class LanguageConfiguration(BaseModel):
    """[data], [model], [training] and [generation] of a language model."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    data: DataConfig = Field(default_factory=DataConfig, description="The text, and how it becomes tokens.")
    model: LanguageModelShape = Field(default_factory=LanguageModelShape, description="The network.")
    training: TrainingConfig = Field(default_factory=lambda: TrainingConfig.model_validate({}), description="Training.")
    generation: GenerationConfig = Field(
        default_factory=GenerationConfig, description="What `throughtime generate` does when not told otherwise."
    )

    def toml(self) -> str:
        """The complete, commented, re-runnable config.toml."""
        return to_toml(self, heading=_HEADING)
