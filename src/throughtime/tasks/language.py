"""Language modelling, wired: text → tokens → streams → model → training → evaluation → generation."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from throughtime.configuration import read_toml, validate
from throughtime.data.formats import ErrorPolicy
from throughtime.data.sources import TextSource
from throughtime.data.streams import Batch, TokenStreams
from throughtime.data.tokenizers import Tokenizer
from throughtime.data.tokens import TokenFile
from throughtime.errors import RunFolderError
from throughtime.models.flow import model_flow
from throughtime.models.language import LanguageModel, LanguageModelConfig
from throughtime.storage import write_file
from throughtime.tasks.configuration import LanguageConfiguration
from throughtime.tasks.evaluation import TextSize, nats, units
from throughtime.tasks.runs import begun, check_kept, configured, trained
from throughtime.tasks.texts import Texts, absolute, prepare_texts, prepared
from throughtime.training import distributed
from throughtime.training.distributed import Distribution
from throughtime.training.loop import Outcome, Trainer
from throughtime.training.run_folder import RunFolder
from throughtime.training.task import Loss

NAME = "lm"

# What `training.flow_every` measures each time: rows of the batch, and losses of each.
_FLOW_ROWS = 4
_FLOW_LOSSES = 4


class LanguageTask:
    """A language model and its text, as the training loop wants them (`throughtime.training.task.Task`)."""

    name = NAME

    def __init__(
        self, model: LanguageModel, texts: Texts, config: LanguageConfiguration, distribution: Distribution
    ) -> None:
        self.model: nn.Module = model
        self._save = model.save
        self.texts = texts
        self.distribution = distribution
        self.batch_size, self.window = config.training.batch_size, config.training.window
        self.streams = TokenStreams(
            texts.train,
            self.batch_size,
            self.window,
            rank=distribution.rank,
            world_size=distribution.world_size,
        )
        self.batches_per_epoch = self.streams.batches_per_epoch
        self._size = TextSize.of(texts.train)
        self._valid_size = TextSize.of(texts.valid)

    def batch(self, index: int) -> Batch:
        """Window `index` of the contiguous streams."""
        return self.streams.batch(index)

    def loss(self, model: nn.Module, batch: Batch, carried: tuple[Tensor, ...] | None) -> Loss:
        """L = −Σ log p(y(t) | y(1..t−1)) over a window, from the state carried over and cleared at borders."""
        nats, state = model(batch.inputs, carried, targets=batch.targets, resets=batch.resets)
        return Loss(nats.sum(), batch.count, tuple(tensor.detach() for tensor in state))

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The held-out loss in every unit, over all processes."""
        loss = nats(
            model,
            self.texts.valid,
            batch_size=self.batch_size,
            window=self.window,
            rank=self.distribution.rank,
            world_size=self.distribution.world_size,
            total=self.distribution.sum,
        )
        return {"loss": loss, **units(loss, self._valid_size)}

    def describe(self, loss: float) -> dict[str, float]:
        """The units that people read for this tokenizer."""
        names = {"bytes": ("bits_per_byte",), "chars": ("bits_per_character",)}.get(
            self.texts.tokenizer.kind, ("bits_per_character", "perplexity")
        )
        every = units(loss, self._size)
        return {name: every[name] for name in names}

    def flow(self, batch: Batch, carried: tuple[Tensor, ...] | None) -> dict[str, float]:
        """How the gradients of a few of a window's losses flow back through time (`Flow.summary`)."""
        few = slice(_FLOW_ROWS)
        flow = model_flow(
            self.model,
            batch.inputs[:, few],
            None if carried is None else tuple(state[:, few] for state in carried),
            targets=batch.targets[:, few],
            resets=None if batch.resets is None else batch.resets[:, few],
            at=_FLOW_LOSSES,
        )
        return flow.summary()

    def save_model(self, folder: Path) -> None:
        """model.safetensors, config.json and tokenizer.json."""
        self._save(folder)


def train(
    data: Sequence[str],
    run: Path,
    *,
    valid: Sequence[str] = (),
    column: str | None = None,
    errors: str | None = None,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    tensorboard: bool = False,
) -> Outcome:
    """Train a language model into the folder `run`, or go on with one (`resume`).

    The configuration is that of the run itself when resuming, then that of `config_file`, then what `overrides` set
    as "section.key=value", then the other arguments.

    Raises:
        ConfigError: unknown keys or values out of range, all at once.
        DataError: a text that cannot be read, or is too short.
        RunFolderError: `run` is taken, or is no run of this task, or its text has changed.
        DivergedError, Interrupted, CheckpointError, StorageError: see `Trainer.fit`.
    """
    given: dict[str, Any] = {"paths": list(data), "valid": list(valid), "column": column, "errors": errors}
    section: dict[str, dict[str, Any]] = {"data": {key: value for key, value in given.items() if value}}
    if tensorboard:
        section["training"] = {"tensorboard": True}
    config = configured(
        LanguageConfiguration, run, NAME, config_file=config_file, overrides=overrides, given=section, resume=resume
    )
    return train_configured(config, run, resume=resume)


def train_configured(config: LanguageConfiguration, run: Path, *, resume: bool = False) -> Outcome:
    """Train by a whole configuration; see `train`."""
    distribution = distributed.start(config.training)
    try:
        # Now, and not after hours with a large text.
        distribution.on_main(lambda: _check_kept(run, config) if resume else RunFolder.check_free(run))
        again = resume and begun(RunFolder.open(run, NAME))
        texts = prepare_texts(
            config.data, distribution, tokenizer=Tokenizer.load(run / "tokenizer.json") if again else None
        )
        model = LanguageModel(
            LanguageModelConfig(
                **config.model.model_dump(),
                vocabulary_size=texts.tokenizer.vocabulary_size,
                border_id=texts.tokenizer.border_id,
            )
        )
        model.tokenizer_json = texts.tokenizer.to_json()
        task = LanguageTask(model, texts, config, distribution)
        folder = _folder(run, config, texts, distribution, resume=resume)
        return Trainer(task, config.training, folder, distribution).fit(resume=resume)
    finally:
        distribution.close()


def _check_kept(run: Path, config: LanguageConfiguration) -> None:
    vocabulary = ("tokenizer", "vocabulary_size")
    check_kept(run, NAME, model=config.model, data=absolute(config.data), vocabulary=vocabulary)


def _folder(
    run: Path, config: LanguageConfiguration, texts: Texts, distribution: Distribution, *, resume: bool
) -> RunFolder:
    """The run folder with its configuration, tokenizer and a note of the text; only then is it a run.

    Raises:
        RunFolderError: resumed on another text than the run was begun with.
    """
    note = {part: _size_note(stream) for part, stream in (("train", texts.train), ("valid", texts.valid))}
    if resume and begun(RunFolder.open(run, NAME)):
        _check_same_text(run, note)

    def make() -> None:
        folder = RunFolder.open(run, NAME) if resume else RunFolder.create(run, NAME)
        with folder.held():
            # Absolute paths, so that the text is found from every working folder when this is read again.
            write_file(folder.config, config.model_copy(update={"data": absolute(config.data)}).toml())
            write_file(run / "tokenizer.json", texts.tokenizer.to_json())
            write_file(run / "data.json", json.dumps(note, indent=2) + "\n")
            folder.tidy()

    distribution.on_main(make)
    return RunFolder.open(run, NAME)


def _size_note(stream: TokenFile) -> dict[str, Any]:
    return {**TextSize.of(stream)._asdict(), "documents": stream.n_documents, "fingerprint": stream.folder.name}


def _check_same_text(run: Path, note: Mapping[str, Any]) -> None:
    try:
        before = json.loads((run / "data.json").read_text("utf-8"))
        changed = [part for part in note if before[part]["fingerprint"] != note[part]["fingerprint"]]
        size = before[changed[0]]["bytes"] if changed else 0
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(
            f"run folder {run}: its data.json is missing or damaged; restore it, or train into another --run"
        ) from None
    if changed:
        raise RunFolderError(
            f"run folder {run}: the {' and '.join(changed)} text is not the one that the run was begun with "
            f"({size:,} bytes then, {note[changed[0]]['bytes']:,} now); "
            "restore it, or train into another --run"
        )


def load(run: Path) -> tuple[LanguageModel, Tokenizer, LanguageConfiguration]:
    """The model, tokenizer and configuration of a run folder.

    Raises:
        RunFolderError: no run folder, one of another task or of a newer version, or one without a model yet.
        CheckpointError: the weights are damaged.
    """
    folder = trained(run, NAME)
    config = validate(LanguageConfiguration, read_toml(folder.config), where=str(folder.config))
    return LanguageModel.load(run), Tokenizer.load(run / "tokenizer.json"), config


def evaluate(
    run: Path, data: Sequence[str], *, column: str | None = None, errors: ErrorPolicy | None = None
) -> dict[str, Any]:
    """How well a run's model predicts `data`: nats, bits and perplexity, over every token once.

    `column` and `errors` are the run's own where they are not given.

    Raises:
        RunFolderError, CheckpointError: see `load`.
        DataError: a text that cannot be read.
    """
    model, tokenizer, config = load(run)
    source = TextSource(data, column=column or config.data.column, errors=errors or config.data.errors)
    stream = prepared(source, tokenizer)
    size = TextSize.of(stream)
    loss = nats(model, stream, batch_size=config.training.batch_size, window=config.training.window)
    return {"nats_per_token": loss, **units(loss, size), **size._asdict(), "documents": stream.n_documents}
