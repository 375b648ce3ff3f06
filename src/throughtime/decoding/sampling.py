"""Greedy and random decoding: y(t) chosen from p(y(t) | y(<t)), fed back as the next input.

The prompt is read once; each further token costs one step of the model, however long the text is.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from throughtime.decoding.engines import chosen_model
from throughtime.decoding.filters import Filters
from throughtime.decoding.protocol import Reading, Steppable
from throughtime.decoding.randomness import RowUniforms, new_seed
from throughtime.decoding.search import fault_of_number
from throughtime.decoding.stop import StopRule, border_of, end_of
from throughtime.errors import ConfigError, DivergedError, PromptError, ShapeError, UsageError
from throughtime.kernels.native.generation import ChoiceRule, Chunk, PackedModel, Stepper
from throughtime.layers.modes import in_evaluation_mode
from throughtime.models import Design, EncoderDecoder

PromptIds: TypeAlias = "Tensor | Sequence[int] | None"

# A prompt is read in parts of this many steps, so that a long one needs no more memory than a short one.
_READ_STEPS = 1024
# How long the native loop runs before its tokens are handed on.
_CHUNK_SECONDS = 0.05


class Decoded(NamedTuple):
    """Sequences, time-major; behind a row's end, `tokens` holds the end symbol and `log_probs` zeros.

    tokens: (T, B) int64, the prompt not among them.
    lengths: (B,) int64, tokens of each row before its end symbol.
    log_probs: (T, B) in nats, log p(y(t) | y(<t)) under the model itself (before any filter), end symbol included. The
        sum over T is log p of a sequence and its length; where lengths are predicted, log p(τ) stands in the first row.
    """

    tokens: Tensor
    lengths: Tensor
    log_probs: Tensor


def greedy(
    model: Steppable,
    prompt: PromptIds = None,
    *,
    length: int,
    samples: int = 1,
    stop: StopRule | None = None,
    precision: str = "fp32",
    engine: str = "auto",
) -> Decoded:
    """The likeliest token at every step, which need not be the likeliest sequence.

    Arguments, results and errors are those of `sample`.
    """
    return sample(
        model,
        prompt,
        length=length,
        samples=samples,
        seed=0,
        temperature=0.0,
        stop=stop,
        precision=precision,
        engine=engine,
    )


def sample(
    model: Steppable,
    prompt: PromptIds = None,
    *,
    length: int,
    samples: int = 1,
    seed: int | torch.Generator | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    stop: StopRule | None = None,
    precision: str = "fp32",
    engine: str = "auto",
) -> Decoded:
    """Ancestral sampling: y(t) drawn from p(y(t) | y(<t)), as the filters change it (`throughtime.decoding.filters`).

    Args:
        model: anything `Steppable`; a `torch.nn.Module` is decoded as in eval mode. A design of chapter 10 is, once
            `tt.decoding.given` its context or inputs.
        prompt: what is read first: (T,) ids for all rows, or (T, B); by default the model's border token.
        length: tokens to draw, at most.
        samples: rows drawn at once from a (T,) prompt, each independent of the others.
        seed: an int or a `torch.Generator`; the same one gives the same draws, on every device. Row i's draws do not
            depend on the number of rows. (A model may round differently in batches of different sizes.)
        temperature: divides the logits; 0 is greedy.
        top_k: choose among the k likeliest tokens; 0: off.
        top_p: choose among the likeliest tokens that sum to this probability; 1: off.
        min_p: choose among tokens at least this fraction as likely as the likeliest; 0: off.
        repetition_penalty: above 1, makes tokens of the prompt and output less likely; 1: off.
        stop: what ends a row: `EndSymbol`, or the rule that a design was built for, which is what it has without.
            Without one, a model that is no design writes `length` tokens in every row.
        precision: "fp32", or how the native engine stores the weights: "bf16", "int8".
        engine: "auto", "native" or "model", the model's own steps; `tt.decoding.explain` tells which one runs. The same
            seed gives the same tokens on both, where no draw falls within rounding of a border between two tokens.

    Raises:
        PromptError: an empty prompt where the model has no border token, or ids outside its vocabulary.
        ShapeError: the prompt is neither (T,) nor (T, B), or (T, B) together with `samples`.
        ConfigError: a filter's setting is out of range, or `stop` is none of the model's.
        EngineError: the engine or the precision cannot be had for this model.
        DivergedError: the logits are not numbers.
    """
    filters = Filters(temperature, top_k, top_p, min_p, repetition_penalty)
    ids = prompt_ids(model, prompt, samples)  # (T, B)
    chunks = list(
        decode(model, ids, length=length, seed=seed, filters=filters, stop=stop, precision=precision, engine=engine)
    )
    nothing = [torch.empty(0, ids.shape[1], dtype=kind) for kind in (torch.int64, torch.bool, torch.float64)]
    # Joined outside of inference mode, so that a loss of these tokens may be differentiated.
    tokens, alive, log_probs = (torch.cat(part) for part in zip(*chunks, strict=True)) if chunks else nothing
    return Decoded(tokens, alive.sum(0), log_probs)


def stream(
    model: Steppable,
    prompt: PromptIds = None,
    *,
    length: int,
    samples: int = 1,
    seed: int | torch.Generator | None = None,
    filters: Filters | None = None,
    stop: StopRule | None = None,
    precision: str = "fp32",
    engine: str = "auto",
) -> Iterator[Int[Tensor, " B"]]:
    """The tokens of `sample`, one (B,) on the CPU for each step, as they are drawn: some at a time, within moments.

    Arguments and errors are those of `sample`. Close the iterator to stop earlier.
    """
    ids = prompt_ids(model, prompt, samples)  # (T, B)
    chunks = decode(
        model,
        ids,
        length=length,
        seed=seed,
        filters=filters or Filters(),
        stop=stop,
        precision=precision,
        engine=engine,
    )
    # Copied outside of inference mode, so that a loss of these tokens may be differentiated.
    return (tokens for chunk in chunks for tokens in chunk.tokens.clone())


@torch.inference_mode()
def decode(
    model: Steppable,
    tokens: Int[Tensor, "T B"],
    *,
    length: int,
    seed: int | torch.Generator | None,
    filters: Filters,
    stop: StopRule | None,
    precision: str,
    engine: str,
) -> Iterator[Chunk]:
    """The steps after the prompt `tokens`, some at a time, until `length` or until every row has ended.

    Raises:
        ConfigError, EngineError, DivergedError: see `sample`.
    """
    if (fault := fault_of_number("length", length, 0)) is not None:
        raise ConfigError(f"decoding: {fault}")
    end = end_of(model, stop)
    uniforms = RowUniforms(tokens.shape[1], new_seed() if seed is None else seed)
    packed = chosen_model(model, precision=precision, engine=engine)
    if length == 0:
        return
    if packed is not None:
        chunks = _native_chunks(packed, tokens, length, filters, uniforms, end)
    else:
        chunks = _own_steps(model, tokens, length, filters, uniforms, end)
    for chunk in chunks:
        sound = chunk.log_probs.isfinite()  # (n, B)
        if not sound.all():
            yield Chunk(*(part[: int(sound.all(-1).long().cumprod(0).sum())] for part in chunk))
            raise diverged(model)
        yield chunk
        if not chunk.alive[-1].any():
            return


def diverged(model: Steppable) -> DivergedError:
    """What to raise where logits are no numbers."""
    return DivergedError(
        f"decoding: {type(model).__name__} gave logits that are not finite; its weights have diverged: train again "
        "with a lower learning rate, or take an earlier checkpoint"
    )


def _native_chunks(
    packed: PackedModel, tokens: Tensor, length: int, filters: Filters, uniforms: RowUniforms, end: int | None
) -> Iterator[Chunk]:
    """Chunks of the native loop, each of about `_CHUNK_SECONDS`: between them an interrupt comes through."""
    rows = tokens.shape[1]
    stepper = Stepper(packed, rows)
    for part in torch.split(tokens, _READ_STEPS):
        stepper.read(part.contiguous())
    seen = _seen(tokens, packed.vocabulary_size) if filters.counts_repetitions else None
    rule = ChoiceRule(**asdict(filters), end=-1 if end is None else end)
    alive = torch.ones(rows, dtype=torch.bool)
    first, made, steps = None, 0, 1
    while made < length:
        steps = min(steps, length - made)
        began = time.perf_counter()
        chunk = stepper.generate(steps, rule, uniforms=uniforms.block(steps), alive=alive, first=first, seen=seen)
        made += steps
        first = chunk.tokens[-1]
        seconds = time.perf_counter() - began
        steps = steps * 2 if seconds < _CHUNK_SECONDS / 2 else steps if seconds < _CHUNK_SECONDS else -(-steps // 2)
        yield chunk


def _own_steps(
    model: Steppable, tokens: Tensor, length: int, filters: Filters, uniforms: RowUniforms, end: int | None
) -> Iterator[Chunk]:
    """The model's own steps, one in each chunk; what comes before a sequence begins is told with its first token."""
    alive = torch.ones(tokens.shape[1], dtype=torch.bool)
    seen = _seen(tokens, model.vocabulary_size) if filters.counts_repetitions else None
    logits, state = read_prompt(model, tokens)
    silent = silent_actions(model)
    before = torch.zeros(tokens.shape[1], dtype=torch.float64)
    for index in range(silent + length):
        chosen = _draw(logits, seen, filters, uniforms, end)  # (B,)
        log_probs = _log_probs(logits, chosen).where(alive, 0.0)
        if index < silent:
            before = before + log_probs
        else:
            if end is not None:
                chosen = chosen.where(alive, end)
                alive = alive & (chosen != end)
            yield Chunk(chosen[None], alive[None], (log_probs + before if index == silent else log_probs)[None])
        if index + 1 == silent + length:
            return
        fed = chosen.to(logits.device)
        if seen is not None:
            seen.scatter_(-1, fed[:, None], True)
        with in_evaluation_mode(model):
            logits, state = model.step(fed, state)


def silent_actions(model: Steppable) -> int:
    """How many actions of a model come before the tokens of a sequence: see `Conditioned`."""
    return int(getattr(model, "silent_actions", 0))


def prompt_ids(model: Steppable, prompt: PromptIds, samples: int) -> Int[Tensor, "T B"]:
    """The prompt of every row, on the model's device."""
    if isinstance(model, Design | EncoderDecoder):
        raise UsageError(
            f"decoding: {type(model).__name__} has no step of its own; say what it is given: "
            "tt.decoding.given(model, context=...), or inputs=..."
        )
    if (fault := fault_of_number("samples", samples, 1)) is not None:
        raise ConfigError(f"decoding: {fault}")
    tokens = torch.as_tensor([] if prompt is None else prompt)
    if tokens.numel() and (tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool):
        raise PromptError(
            f"decoding: a prompt must be whole numbers, the ids of tokens, got {tokens.dtype}; encode a text with the "
            "model's own tokenizer"
        )
    tokens = tokens.to(_device_of(model, prompt), torch.int64)
    if tokens.dim() not in (1, 2) or (tokens.dim() == 2 and samples != 1):
        raise ShapeError(
            f"decoding: a prompt must be (T,), or (T, B) with samples=1, got {tuple(tokens.shape)} with "
            f"samples={samples}; time comes first"
        )
    if not len(tokens):
        border = border_of(model)
        if border is None:
            raise PromptError(f"decoding: {type(model).__name__} has no border_id to begin with; give it a prompt")
        tokens = torch.full((1, *tokens.shape[1:]), border, device=tokens.device)
    outside = tokens[(tokens < 0) | (tokens >= model.vocabulary_size)]
    if len(outside):
        raise PromptError(
            f"decoding: prompt ids must be in 0..{model.vocabulary_size - 1}, the vocabulary of "
            f"{type(model).__name__}, got {int(outside[0])}; encode the prompt with the model's own tokenizer"
        )
    if tokens.dim() == 1 and samples == 1:
        sources = getattr(model, "batch_size", None)
        samples = 1 if sources is None else sources
    return tokens if tokens.dim() == 2 else tokens[:, None].expand(-1, samples)  # (T, B)


def _device_of(model: Steppable, prompt: PromptIds) -> torch.device:
    parameter = next(model.parameters(), None) if isinstance(model, nn.Module) else None
    if parameter is not None:
        return parameter.device
    return prompt.device if isinstance(prompt, Tensor) else torch.device("cpu")


def _seen(tokens: Int[Tensor, "T B"], vocabulary_size: int) -> Tensor:
    """Which tokens each row's prompt holds, (B, V) bool."""
    seen = torch.zeros(tokens.shape[1], vocabulary_size, dtype=torch.bool, device=tokens.device)
    return seen.scatter_(-1, tokens.T, True)


def read_prompt(model: Steppable, tokens: Int[Tensor, "T B"]) -> tuple[Tensor, object]:
    """Logits (B, V) after the whole prompt, and the state."""
    with in_evaluation_mode(model):
        state = model.initial_state(tokens.shape[1])
        if isinstance(model, Reading):
            for part in torch.split(tokens, _READ_STEPS):
                logits, state = model.read(part, state)
        else:
            for row in tokens:
                logits, state = model.step(row, state)
    return logits, state


def _draw(
    logits: Float[Tensor, "B V"], seen: Tensor | None, filters: Filters, uniforms: RowUniforms, end: int | None
) -> Int[Tensor, " B"]:
    """One token of each row, on the CPU, by inverting the cumulative distribution."""
    if seen is not None and end is not None:
        # The end of a text is no repetition: a border in the prompt must not make texts run on.
        seen[:, end] = False
    allowed = filters.apply(logits, seen)
    if filters.temperature == 0:
        return allowed.argmax(-1).cpu()
    cumulative = allowed.softmax(-1).cpu().cumsum(-1)  # (B, V), float64
    heights = uniforms.draw()[:, None] * cumulative[:, -1:]  # (B, 1)
    # right=True finds the first token that rises above the height: it has a probability, even at height 0.
    chosen = torch.searchsorted(cumulative, heights, right=True)[:, 0]
    # Only where the logits are not numbers is there no such token; `_log_probs` tells of that.
    return chosen.clamp(max=logits.shape[-1] - 1)


def _log_probs(logits: Float[Tensor, "B V"], chosen: Int[Tensor, " B"]) -> Float[Tensor, " B"]:
    """log p of the chosen tokens under the model itself, in nats."""
    return logits.double().log_softmax(-1).cpu().gather(-1, chosen[:, None])[:, 0]
