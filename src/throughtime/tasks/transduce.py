"""Sequence to sequence, wired: pairs → tokens → buckets → encoder-decoder → training → evaluation → answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from throughtime.configuration import read_toml, validate
from throughtime.data.pair_batches import LeftOut, PairBatch, PairSource, PairTokens
from throughtime.data.pairs import Pair, escaped
from throughtime.data.tokenizers import Tokenizer
from throughtime.decoding.search_config import SearchConfig
from throughtime.errors import DataError, RunFolderError
from throughtime.layers import in_evaluation_mode
from throughtime.models import EncoderDecoder, EncoderDecoderConfig
from throughtime.storage import write_file
from throughtime.tasks.pair_metrics import Judged, check_metrics, measured
from throughtime.tasks.pair_texts import (
    PairTexts,
    PairTokenizers,
    absolute,
    given_pairs,
    names,
    prepare_pairs,
    refuse_longer_targets,
    told_of_unknown,
)
from throughtime.tasks.runs import begun, check_kept, configured, reading, trained
from throughtime.tasks.trainee import Trainee
from throughtime.tasks.transduce_configuration import TransduceConfiguration, training_input
from throughtime.tasks.transducer import Answered, Transducer
from throughtime.training import distributed
from throughtime.training.distributed import Distribution
from throughtime.training.loop import Outcome, Trainer
from throughtime.training.run_folder import RunFolder
from throughtime.training.task import Loss

NAME = "transduce"
# The tokenizers of a run folder; that of the targets is the model's own.
_SOURCE, _TARGET = "source-tokenizer.json", "tokenizer.json"
# The keys of [data] that it hangs on.
_VOCABULARY = (
    "source_tokenizer", "target_tokenizer", "shared_vocabulary", "source_vocabulary_size", "target_vocabulary_size",
)  # fmt: skip
# Pairs that are evaluated at once.
_ROWS = 256

Tell = Callable[[str], None]


class TransduceTask:
    """An encoder-decoder and its pairs, as the training loop wants them (`throughtime.training.task.Task`)."""

    name = NAME

    def __init__(
        self, model: EncoderDecoder, texts: PairTexts, config: TransduceConfiguration, distribution: Distribution
    ) -> None:
        self.translator = model
        self.model: nn.Module = Trainee(model, training_input(config.training, model))
        self.texts = texts
        self.config = config
        self.distribution = distribution
        self.source = PairSource(
            texts.train,
            batch_size=config.training.batch_size,
            batch_tokens=config.data.batch_tokens,
            seed=config.training.seed,
        )
        self.batches_per_epoch = max(1, self.source.batches_per_epoch // distribution.world_size)
        every = _by_source(texts.held_out)
        self.held_out_sources = len(every)
        self.asked = dict(list(every.items())[: config.training.evaluate_sources])
        # Now, and not after the first epoch: what of [generation] cannot be had is told when this is made.
        Transducer(model, texts.tokenizers, config.generation)
        greedy = config.generation.model_copy(update={"beam": 1, "n_best": 1})
        self.transducer = Transducer(model, texts.tokenizers, greedy)

    def batch(self, index: int) -> tuple[PairBatch, int]:
        """Batch `index` of this process, and its number."""
        place = index * self.distribution.world_size + self.distribution.rank
        return self.source.batch(place).to(self.distribution.device), index

    def loss(self, model: nn.Module, batch: tuple[PairBatch, int], carried: tuple[torch.Tensor, ...] | None) -> Loss:
        """The policy's loss of a batch; whole sequences carry nothing."""
        return Loss(model(*batch), batch[0].predictions, None)

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """The held-out loss, and the metrics of greedy answers to some held-out sources."""
        results = _loss(self.translator, self.texts.valid)
        if self.asked:
            judged = _judged(self.transducer, self.asked)
            results |= measured(self.config.generation.metrics, judged, self.texts.tokenizers.target)
        return results

    def describe(self, loss: float) -> dict[str, float]:
        """The perplexity of a token."""
        return {"perplexity": math.exp(min(loss, 700.0))}

    def save_model(self, folder: Path) -> None:
        """The model with both tokenizers."""
        self.translator.save(folder)
        write_file(folder / _SOURCE, self.texts.tokenizers.source.to_json())


def train(
    run: Path,
    *,
    data: Mapping[str, Any] | None = None,
    config_file: Path | None = None,
    overrides: Sequence[str] = (),
    resume: bool = False,
    tensorboard: bool = False,
    tell: Tell = print,
) -> Outcome:
    """Train an encoder-decoder into the folder `run`, or go on with one (`resume`).

    The configuration is that of the run itself when resuming, then that of `config_file`, then what `overrides` set
    as "section.key=value", then the keys of [data] in `data`. `tell` is handed what a user should know of the pairs.

    Raises:
        ConfigError: unknown keys or values out of range, all at once.
        DataError: pairs that cannot be read.
        RunFolderError: `run` is taken, or is no run of this task, or its pairs have changed.
        DivergedError, Interrupted, CheckpointError, StorageError: see `Trainer.fit`.
    """
    section: dict[str, dict[str, Any]] = {"data": dict(data or {})}
    if tensorboard:
        section["training"] = {"tensorboard": True}
    config = configured(
        TransduceConfiguration, run, NAME, config_file=config_file, overrides=overrides, given=section, resume=resume
    )
    return train_configured(config, run, resume=resume, tell=tell)


def train_configured(config: TransduceConfiguration, run: Path, *, resume: bool = False, tell: Tell = print) -> Outcome:
    """Train by a whole configuration; see `train`."""
    if not (config.data.paths or config.data.source):
        raise DataError("data: no pairs given; name data.paths, or data.source and data.target")
    distribution = distributed.start(config.training)
    try:
        # Now, and not after minutes with many pairs.
        distribution.on_main(lambda: _check_kept(run, config) if resume else RunFolder.check_free(run))
        again = resume and begun(RunFolder.open(run, NAME))
        with reading(names(config.data), again=again, processes=distribution.world_size):
            texts = prepare_pairs(
                config.data, _tokenizers(run) if again else None, max_target_length=config.max_target_length
            )
        target = texts.tokenizers.target
        model = EncoderDecoder(
            EncoderDecoderConfig(
                **config.model.model_dump(),
                source_vocabulary_size=texts.tokenizers.source.vocabulary_size,
                target_vocabulary_size=target.vocabulary_size,
                border_id=target.border_id,
            )
        )
        model.tokenizer_json = target.to_json()
        task = TransduceTask(model, texts, config, distribution)
        folder = _folder(run, config, texts, distribution, resume=resume)
        if distribution.is_main:
            for line in about(task, run):
                tell(line)
        return Trainer(task, config.training, folder, distribution).fit(resume=resume)
    finally:
        distribution.close()


def _check_kept(run: Path, config: TransduceConfiguration) -> None:
    check_kept(run, NAME, model=config.model, data=absolute(config.data), vocabulary=_VOCABULARY)


def about(task: TransduceTask, run: Path) -> list[str]:
    """What a user should know of the pairs: how many there are, what is padding, left out, read as unknown, judged."""
    texts, source = task.texts, task.source
    lines = [
        f"{len(texts.train):,} pairs to train on, {len(texts.valid):,} held out; "
        f"{source.batches_per_epoch:,} batches an epoch, {source.padding_share:.1%} of their positions padding"
    ]
    for name, tokens in (("to be trained on", texts.train), ("to be held out", texts.valid)):
        if tokens.left_out:
            first = tokens.left_out[0]
            lines.append(
                f"{len(tokens.left_out):,} pairs {name} were left out, the first, {first.where}: {first.reason}; "
                f"all are listed in {run / 'left-out.tsv'}"
            )
        lines += told_of_unknown(tokens, name)
    if 0 < len(task.asked) < task.held_out_sources:
        lines.append(
            f"answers are judged of the first {len(task.asked):,} of {task.held_out_sources:,} held-out sources "
            "(training.evaluate_sources), greedily; the loss is of all"
        )
    return lines


def _folder(
    run: Path, config: TransduceConfiguration, texts: PairTexts, distribution: Distribution, *, resume: bool
) -> RunFolder:
    """The run folder with its configuration, tokenizers and a note of the pairs; only then is it a run.

    Raises:
        RunFolderError: resumed on other pairs than the run was begun with.
    """
    note = {"fingerprint": texts.fingerprint(), "train": len(texts.train), "valid": len(texts.valid)}
    if resume and begun(RunFolder.open(run, NAME)):
        _check_same_pairs(run, note)

    def make() -> None:
        folder = RunFolder.open(run, NAME) if resume else RunFolder.create(run, NAME)
        with folder.held():
            # Absolute paths, so that the pairs are found from every working folder when this is read again.
            write_file(folder.config, config.model_copy(update={"data": absolute(config.data)}).toml())
            write_file(run / _SOURCE, texts.tokenizers.source.to_json())
            write_file(run / _TARGET, texts.tokenizers.target.to_json())
            left_out = [*texts.train.left_out, *texts.valid.left_out]
            write_file(run / "left-out.tsv", "".join(map(_line, left_out)))
            write_file(run / "data.json", json.dumps(note, indent=2) + "\n")
            folder.tidy()

    distribution.on_main(make)
    return RunFolder.open(run, NAME)


def _line(left_out: LeftOut) -> str:
    # A source of .jsonl may hold what ends a line or a field.
    return "\t".join(map(escaped, (left_out.where, left_out.reason, left_out.source))) + "\n"


def _check_same_pairs(run: Path, note: Mapping[str, Any]) -> None:
    try:
        before = json.loads((run / "data.json").read_text("utf-8"))
        changed = [part for part, digest in note["fingerprint"].items() if before["fingerprint"][part] != digest]
        count = before[changed[0]] if changed else 0
    except (OSError, ValueError, KeyError, TypeError):
        raise RunFolderError(
            f"run folder {run}: its data.json is missing or damaged; restore it, or train into another --run"
        ) from None
    if changed:
        raise RunFolderError(
            f"run folder {run}: the {' and '.join(changed)} pairs are not those that the run was begun with "
            f"({count:,} then, {note[changed[0]]:,} now); restore them, or train into another --run"
        )


def _tokenizers(run: Path) -> PairTokenizers:
    source, target = Tokenizer.load(run / _SOURCE), Tokenizer.load(run / _TARGET)
    return PairTokenizers(source, target)


def load(run: Path) -> tuple[EncoderDecoder, PairTokenizers, TransduceConfiguration]:
    """The model, the tokenizers and the configuration of a run folder.

    Raises:
        RunFolderError: no run folder, one of another task or of a newer version, or one without a model yet.
        CheckpointError: the weights are damaged.
    """
    folder = trained(run, NAME)
    config = validate(TransduceConfiguration, read_toml(folder.config), where=str(folder.config))
    return EncoderDecoder.load(run), _tokenizers(run), config


def transducer(run: Path, *, together: Sequence[Path] = (), **search: Any) -> Transducer:
    """What answers sources as a run folder's model does; keys of [generation] in `search` replace the run's own.

    With other runs of the same vocabularies, all their models answer `together`, by the mean of their probabilities.

    Raises:
        ConfigError: unknown keys or values out of range.
        RunFolderError, CheckpointError: see `load`; runs with other vocabularies.
    """
    model, tokenizers, config = load(run)
    chosen = validate(SearchConfig, {**config.generation.model_dump(), **search}, where="search")
    models = [model, *(_of_same_vocabularies(other, tokenizers, run) for other in together)]
    return Transducer(models, tokenizers, chosen, max_source_length=config.data.max_length)


def _of_same_vocabularies(run: Path, tokenizers: PairTokenizers, first: Path) -> EncoderDecoder:
    """The model of a run that is to answer together with that of the run `first`.

    Raises:
        RunFolderError: its vocabularies are others.
    """
    model, own, _ = load(run)
    for side in ("source", "target"):
        if getattr(own, side).digest != getattr(tokenizers, side).digest:
            raise RunFolderError(
                f"run folder {run}: expected the {side} vocabulary of {first}, got another; runs answer together where "
                "they were trained on the same pairs, or with the same tokenizer.json"
            )
    return model


def evaluate(
    run: Path,
    data: Sequence[str],
    *,
    metrics: Sequence[str] | None = None,
    reading: Mapping[str, Any] | None = None,
    answered: Callable[[Answered, Sequence[str]], None] | None = None,
    together: Sequence[Path] = (),
    tell: Tell | None = None,
    **search: Any,
) -> dict[str, Any]:
    """How well a run's model answers the sources of `data`: loss, and metrics of its best answers.

    Both are of whole sources, however long, and of the same pairs: those that are left out have no part in either.
    `tell` is handed which these are, line by line, and what is read as unknown. With other runs that answer `together`
    with it, as of `transducer`, there are the metrics alone.

    Pairs with one source are one question with several right answers. `metrics` and `search` (keys of [generation])
    are the run's own where they are not given, and so is how files are read, but for the keys of [data] in `reading`:
    source_column, target_column, errors; or source and target, two parallel files in place of `data`. `answered` is
    handed each question's answers with its references.

    Raises:
        ConfigError: keys of a search or of the reading that are unknown or out of range.
        RunFolderError, CheckpointError: see `load`.
        DataError: pairs that cannot be read, or are all left out.
        UsageError: there is no metric of a name.
    """
    model, tokenizers, config = load(run)
    check_metrics(metrics or ())
    pairs = given_pairs(config.data, data, reading or {})
    tokens = PairTokens(pairs, tokenizers.source, tokenizers.target)
    left_out = [f"{pair.where}: left out: {pair.reason}" for pair in tokens.left_out]
    if not len(tokens):
        raise DataError(f"{left_out[0]}, and so are all of the {len(pairs):,} pairs; give others")
    if not together:
        refuse_longer_targets(pairs, tokens, config.max_target_length)
    if tell is not None:
        for line in (*left_out, *told_of_unknown(tokens, "to be evaluated")):
            tell(line)
    chosen = validate(SearchConfig, {**config.generation.model_dump(), **search}, where="search")
    models = [model, *(_of_same_vocabularies(other, tokenizers, run) for other in together)]
    ask = Transducer(models, tokenizers, chosen)
    questions = _by_source([pairs[index] for index in tokens.kept])
    judged = _judged(ask, questions, answered)
    return {
        **({} if together else _loss(model, tokens)),
        **measured(metrics or chosen.metrics, judged, tokenizers.target),
        "sources": len(questions),
        "pairs": len(tokens),
        "left_out": len(tokens.left_out),
    }


def _by_source(pairs: Sequence[Pair]) -> dict[str, tuple[str, ...]]:
    """The targets of each distinct source, in the order of their first pairs."""
    found: dict[str, list[str]] = {}
    for pair in pairs:
        found.setdefault(pair.source, []).append(pair.target)
    return {source: tuple(targets) for source, targets in found.items()}


def _judged(
    ask: Transducer,
    questions: Mapping[str, tuple[str, ...]],
    answered: Callable[[Answered, Sequence[str]], None] | None = None,
) -> list[Judged]:
    judged = []
    for found in ask.stream(questions):
        references = questions[found.source]
        if answered is not None:
            answered(found, references)
        judged.append(Judged(found.answers[0].text if found.answers else "", references))
    return judged


def _loss(model: EncoderDecoder, tokens: PairTokens) -> dict[str, float]:
    """Nats per target, ends included, by teacher forcing."""
    total, count = 0.0, 0
    order = sorted(range(len(tokens)), key=lambda row: (tokens.source.lengths[row], tokens.target.lengths[row]))
    device = next(model.parameters()).device
    with torch.no_grad(), in_evaluation_mode(model):
        for start in range(0, len(order), _ROWS):
            batch = tokens.select(order[start : start + _ROWS]).to(device)
            total += float(model(batch.x, targets=batch.targets, lengths=batch.lengths).double().sum())
            count += batch.predictions
    loss = total / max(count, 1)
    return {"loss": loss, "perplexity": math.exp(min(loss, 700.0))}
