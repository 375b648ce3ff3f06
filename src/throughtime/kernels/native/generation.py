"""Recurrent layers one time step at a time, in C++: weights packed once, states kept, tokens chosen in the same loop.

A step of a few rows waits for the weights to come from memory, so that how they are stored is what counts:

    fp32  as they are
    bf16  rounded to bfloat16, widened again where they are multiplied; vectors and sums stay float32
    int8  whole numbers of -127..127 with a scale for each row of a matrix, W[j] ≈ s_j w_j, s_j = max_k |W[j, k]| / 127;
          the vectors that meet them likewise with one scale each, anew at every step;
          sums are exact in 32 bits; biases, gates and states stay float32

What a token contributes to the first layer, embedding · W_ihᵀ + b, is looked up in a float32 table where that is small
(64 MiB); beyond, it is computed like the rest. Results depend neither on the number of rows nor on that of threads.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from throughtime.errors import EngineError, ShapeError
from throughtime.kernels.native import library
from throughtime.kernels.native.tensors import check_tensor, float_tensor

PRECISIONS = ("fp32", "bf16", "int8")

# Beyond, a sum of products of bytes could leave 32 bits.
_MOST_DEPTH_OF_BYTES = 66_000


class LayerWeights(NamedTuple):
    """One layer: I inputs, H units, G gates; the tensors are float32 on the CPU.

    cell: "rnn_tanh", "rnn_relu", "lstm" or "gru" (the reset gate behind the product, as PyTorch has it).
    zoneout: the share of its old value that each of h and c keeps at a step.
    """

    cell: str
    weight_ih: Tensor  # (G · H, I)
    weight_hh: Tensor  # (G · H, H)
    bias_ih: Tensor | None = None  # (G · H)
    bias_hh: Tensor | None = None  # (G · H)
    weight_peephole: Tensor | None = None  # (3, H) for i, f, o
    zoneout: tuple[float, float] = (0.0, 0.0)

    @property
    def units(self) -> int:
        """H."""
        return int(self.weight_hh.shape[1])

    @property
    def inputs(self) -> int:
        """I."""
        return int(self.weight_ih.shape[1])


class Ends(NamedTuple):
    """What stands before and behind the layers of a language model: V tokens, E inputs of the first layer.

    Without a readout tokens are read, and there are no logits.
    """

    embedding: Tensor  # (V, E)
    readout: Tensor | None = None  # (V, H)
    bias: Tensor | None = None  # (V)


class LayerState(NamedTuple):
    """h (B, H) of one layer, and the memory c (B, H) of an LSTM."""

    h: Tensor
    c: Tensor | None


class ChoiceRule(NamedTuple):
    """How tokens are chosen; the first five are the settings of `throughtime.decoding.Filters`.

    end: the token that ends a row, -1 for none.
    """

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    end: int


class Chunk(NamedTuple):
    """Some steps of all rows; behind a row's end, `tokens` holds the end symbol and `log_probs` zeros.

    tokens: (n, B) int64.
    alive: (n, B) bool, rows that have not ended with the step.
    log_probs: (n, B) float64 in nats, under the model itself, before any filter.
    """

    tokens: Tensor
    alive: Tensor
    log_probs: Tensor


class PackedModel:
    """Weights in the order in which one step reads them: packed once, read by any number of steppers and threads.

    The weights are copied; only a large embedding (see the module) is read where it is.

    Raises:
        EngineError: the native engine is not there, an unknown precision, or layers too wide for int8.
        ShapeError: tensors that do not fit each other, or are not float32 on the CPU.
    """

    def __init__(
        self,
        layers: Sequence[LayerWeights],
        ends: Ends | None = None,
        *,
        residual: bool = False,
        precision: str = "fp32",
    ) -> None:
        if precision not in PRECISIONS:
            raise EngineError(f"native generation: precision must be one of {', '.join(PRECISIONS)}, got {precision!r}")
        _check_sizes(layers, ends, residual)
        widest = max(max(layer.inputs, layer.units) for layer in layers)
        if precision == "int8" and widest > _MOST_DEPTH_OF_BYTES:
            raise EngineError(
                f"native generation: int8 is for layers of up to {_MOST_DEPTH_OF_BYTES} inputs, got {widest}; take bf16"
            )
        self.precision = precision
        self.residual = residual
        self.layers = tuple((layer.cell == "lstm", layer.units) for layer in layers)
        self.input_size = layers[0].inputs
        self.vocabulary_size = 0 if ends is None else len(ends.embedding)
        in_layers = [_contiguous(layer._asdict()) for layer in layers]
        at_ends = {} if ends is None else _contiguous(ends._asdict())
        described = [
            {
                "cell": layer.cell,
                "inputs": layer.inputs,
                "units": layer.units,
                "zoneout_h": layer.zoneout[0],
                "zoneout_c": layer.zoneout[1],
                **_addresses(tensors),
            }
            for layer, tensors in zip(layers, in_layers, strict=True)
        ]
        self.native: Any = library.load().pack_model(
            precision, described, residual, self.vocabulary_size, _addresses(at_ends), torch.get_num_threads()
        )
        self.has_table = bool(self.native.has_table)
        self.has_readout = bool(self.native.has_readout)
        self._embedding = None if self.has_table else at_ends.get("embedding")

    @property
    def bytes(self) -> int:
        """Bytes of weights that one step of fewer than 16 rows reads; more rows read a second packing in float32."""
        return int(self.native.bytes)


class Stepper:
    """Rows on their way through a packed model: a state each, zero at first. Nothing here is differentiable.

    A model with ends takes tokens and gives logits, where it has a readout; one without takes vectors and gives the
    last layer's outputs. All tensors are on the CPU. It may be used by one thread at a time.

    Raises (every method):
        ShapeError: a tensor of another shape, type or layout than told.
        IndexError: a token outside the vocabulary, an index outside the rows.
    """

    def __init__(self, model: PackedModel, rows: int = 1) -> None:
        self.model = model
        self._native = library.load().Stepper(model.native)
        self.begin(rows)

    def begin(self, rows: int) -> None:
        """Begin anew with `rows` rows, all states zero."""
        if rows < 1:
            raise ShapeError(f"Stepper: rows must be at least 1, got {rows}")
        self._native.begin(rows)
        self._resized(rows)

    def _resized(self, rows: int) -> None:
        self.rows = rows
        self._vectors = torch.Size((rows, self.model.input_size))
        self._outputs = torch.Size((rows, self.model.layers[-1][1]))
        self._tokens = torch.Size((rows,))
        self._logits = torch.Size((rows, self.model.vocabulary_size))

    def feed(self, inputs: Tensor, *, out: Tensor | None = None) -> Tensor:
        """One step of a model without ends: vectors (B, I) in, h(t) of the last layer (B, H) out.

        `out` is written into and returned; without it a new tensor is made.
        """
        if self.model.vocabulary_size:
            raise ShapeError("Stepper: this model reads tokens, got vectors; step(tokens) advances it")
        check_tensor("Stepper: inputs", inputs, self._vectors, torch.float32)
        if out is None:
            out = float_tensor(*self._outputs)
        else:
            check_tensor("Stepper: out", out, self._outputs, torch.float32)
        self._native.feed(inputs.data_ptr(), out.data_ptr(), torch.get_num_threads())
        return out

    def step(self, tokens: Tensor, *, log_probs: bool = False, out: Tensor | None = None) -> Tensor:
        """One step: a token of each row (B,) int64 in, the next one's logits or log-probabilities (B, V) out.

        `out` is written into and returned; without it a new tensor is made.
        """
        self._check_has_logits()
        check_tensor("Stepper: tokens", tokens, self._tokens, torch.int64)
        if out is None:
            out = float_tensor(*self._logits)
        else:
            check_tensor("Stepper: out", out, self._logits, torch.float32)
        self._native.step(tokens.data_ptr(), out.data_ptr(), log_probs, torch.get_num_threads())
        return out

    def read(self, tokens: Tensor) -> None:
        """T steps at once: tokens (T, B) int64. `logits` then tells of the next ones."""
        if not self.model.vocabulary_size:
            raise ShapeError("Stepper: this model reads vectors, not tokens; feed(inputs) advances it")
        check_tensor("Stepper: tokens", tokens, torch.Size((len(tokens), self.rows)), torch.int64)
        if len(tokens):
            self._native.read(tokens.data_ptr(), len(tokens), torch.get_num_threads())

    def logits(self, *, log_probs: bool = False) -> Tensor:
        """Logits or log-probabilities (B, V) of the next token of each row.

        Raises:
            RuntimeError: nothing has been read since the states were last set.
        """
        self._check_has_logits()
        out = float_tensor(*self._logits)
        self._native.logits(out.data_ptr(), log_probs, torch.get_num_threads())
        return out

    def generate(
        self,
        steps: int,
        rule: ChoiceRule,
        *,
        uniforms: Tensor,
        alive: Tensor,
        first: Tensor | None = None,
        seen: Tensor | None = None,
    ) -> Chunk:
        """Choose a token for each row and feed it, `steps` times or until all rows have ended.

        Args:
            steps: tokens to choose, at most.
            rule: how.
            uniforms: (B, steps) float64 in [0, 1), a row's numbers for its draws.
            alive: (B,) bool, rows that have not ended; it is kept up to date.
            first: (B,) int64, the tokens to feed before the first choice: the last ones of the chunk before. Without
                it the first choice is made from the logits that are there.
            seen: (B, V) bool, tokens that rows have, for the repetition penalty; tokens that are fed are added.

        Raises:
            RuntimeError: no `first`, and nothing has been read since the states were last set.
        """
        self._check_has_logits()
        check_tensor("Stepper: uniforms", uniforms, torch.Size((self.rows, steps)), torch.float64)
        check_tensor("Stepper: alive", alive, self._tokens, torch.bool)
        if first is not None:
            check_tensor("Stepper: first", first, self._tokens, torch.int64)
        if seen is not None:
            check_tensor("Stepper: seen", seen, self._logits, torch.bool)
        if rule.end < 0 and not alive.all():
            raise ShapeError("Stepper: rows can have ended only where rule.end is a token")
        tokens = torch.empty(steps, self.rows, dtype=torch.int64, device="cpu")
        went_on = torch.empty(steps, self.rows, dtype=torch.bool, device="cpu")
        log_probs = torch.empty(steps, self.rows, dtype=torch.float64, device="cpu")
        made = self._native.generate(
            steps,
            0 if first is None else first.data_ptr(),
            tuple(rule),
            uniforms.data_ptr(),
            0 if seen is None else seen.data_ptr(),
            alive.data_ptr(),
            tokens.data_ptr(),
            went_on.data_ptr(),
            log_probs.data_ptr(),
            torch.get_num_threads(),
        )
        return Chunk(tokens[:made], went_on[:made], log_probs[:made])

    def reorder(self, indices: Tensor) -> None:
        """Row i becomes what row indices[i] was, every part of its state; (B',) int64, another number of rows too."""
        check_tensor("Stepper: indices", indices, torch.Size((indices.numel(),)), torch.int64)
        if not len(indices):
            raise ShapeError("Stepper: indices must name at least one row, got none")
        self._native.reorder(indices.data_ptr(), len(indices))
        self._resized(len(indices))

    def state(self) -> tuple[LayerState, ...]:
        """A copy of the state of every layer."""
        return tuple(
            LayerState(self._copied(layer, units, False), self._copied(layer, units, True) if lstm else None)
            for layer, (lstm, units) in enumerate(self.model.layers)
        )

    def _copied(self, layer: int, units: int, memory: bool) -> Tensor:
        values = float_tensor(self.rows, units)
        self._native.copy_state(layer, memory, values.data_ptr())
        return values

    def set_state(self, state: Iterable[LayerState]) -> None:
        """Take over a state, one `LayerState` for each layer."""
        layers = tuple(state)
        if len(layers) != len(self.model.layers):
            raise ShapeError(f"Stepper: expected the states of {len(self.model.layers)} layers, got {len(layers)}")
        for layer, ((lstm, units), (h, c)) in enumerate(zip(self.model.layers, layers, strict=True)):
            if (c is not None) != lstm:
                raise ShapeError(f"Stepper: layer {layer} has {'h and c' if lstm else 'h only'}")
            for memory, values in ((False, h), (True, c)):
                if values is not None:
                    check_tensor(
                        f"Stepper: {'c' if memory else 'h'} of layer {layer}", values, (self.rows, units), torch.float32
                    )
                    self._native.set_state(layer, memory, values.data_ptr())

    def _check_has_logits(self) -> None:
        if not self.model.vocabulary_size:
            raise ShapeError("Stepper: this model reads vectors, not tokens; feed(inputs) advances it")
        if not self.model.has_readout:
            raise ShapeError("Stepper: this model has no readout, and no logits; read(tokens) advances it")


class StatelessStepper:
    """Steps of a packed model for any number of rows, whose states are handed in and handed out.

    What several rows that go on from one row have in common is computed once. Weights are fp32 or bf16; like all steps
    of 16 rows and more, it reads them from a second packing, in float32. It may be used by one thread at a time.

    Raises:
        EngineError: weights in int8.
    """

    def __init__(self, model: PackedModel) -> None:
        if model.precision == "int8":
            raise EngineError("native generation: int8 weights step with a Stepper, which keeps the states")
        self.model = model
        self._native = library.load().StatelessStepper(model.native)

    def advance(
        self, read: Tensor, states: Sequence[LayerState], picked: Tensor
    ) -> tuple[Tensor, tuple[LayerState, ...]]:
        """One step: the last layer's outputs (B, H), and the states after it.

        Args:
            read: tokens (B,) int64 where the model has an embedding, else vectors (B, I).
            states: one for each layer, of any number of rows.
            picked: (B,) int64, which row of the states each row goes on from.

        Raises:
            ShapeError: tensors of other shapes, types or layouts than told; states that do not fit the layers.
            IndexError: a token outside the vocabulary, an index outside the rows of the states.
        """
        model, rows = self.model, len(read)
        if model.vocabulary_size:
            check_tensor("StatelessStepper: tokens", read, (rows,), torch.int64)
        else:
            check_tensor("StatelessStepper: inputs", read, (rows, model.input_size), torch.float32)
        check_tensor("StatelessStepper: picked", picked, (rows,), torch.int64)
        if [state.c is not None for state in states] != [lstm for lstm, _ in model.layers]:
            raise ShapeError(f"StatelessStepper: expected states of {len(model.layers)} layers, c for LSTMs alone")
        parents = len(states[0].h)
        after = []
        for (lstm, units), state in zip(model.layers, states, strict=True):
            for name, values in state._asdict().items():
                if values is not None:
                    check_tensor(f"StatelessStepper: {name}", values, (parents, units), torch.float32)
            after.append(LayerState(float_tensor(rows, units), float_tensor(rows, units) if lstm else None))
        last = after[-1].h
        tensors = {"tokens" if model.vocabulary_size else "inputs": read, "picked": picked}
        if model.residual and len(after) > 1:
            last = tensors["outputs"] = torch.empty_like(last)
        if rows:
            places = [[(h.data_ptr(), 0 if c is None else c.data_ptr()) for h, c in each] for each in (states, after)]
            self._native.advance(rows, parents, _addresses(tensors), *places, torch.get_num_threads())
        return last, tuple(after)


def fingerprint(tensor: Tensor) -> int:
    """A number that changes with the values of a tensor on the CPU, whoever writes them, at the speed of memory."""
    tensor = tensor.detach().contiguous()
    return int(library.load().fingerprint(tensor.data_ptr(), tensor.nbytes))


def _contiguous(values: dict[str, Any]) -> dict[str, Tensor]:
    """The tensors among `values`, each in one piece."""
    return {name: value.detach().contiguous() for name, value in values.items() if isinstance(value, Tensor)}


def _addresses(tensors: dict[str, Tensor]) -> dict[str, int]:
    return {name: tensor.data_ptr() for name, tensor in tensors.items()}


def _check_sizes(layers: Sequence[LayerWeights], ends: Ends | None, residual: bool) -> None:
    """Whether the tensors fit each other.

    Raises:
        ShapeError: they do not.
    """
    expected: list[tuple[str, Tensor | None, tuple[int, ...]]] = []
    for index, layer in enumerate(layers):
        gates = {"lstm": 4, "gru": 3}.get(layer.cell, 1)
        inputs = layers[index - 1].units if index else layer.inputs
        wide = gates * layer.units
        expected += [
            (f"weight_ih of layer {index}", layer.weight_ih, (wide, inputs)),
            (f"weight_hh of layer {index}", layer.weight_hh, (wide, layer.units)),
            (f"bias_ih of layer {index}", layer.bias_ih, (wide,)),
            (f"bias_hh of layer {index}", layer.bias_hh, (wide,)),
            (f"weight_peephole of layer {index}", layer.weight_peephole, (3, layer.units)),
        ]
    if ends is not None:
        tokens = len(ends.embedding)
        expected += [
            ("embedding", ends.embedding, (tokens, layers[0].inputs)),
            ("readout", ends.readout, (tokens, layers[-1].units)),
            ("bias", ends.bias, (tokens,)),
        ]
        if (ends.readout is None) != (ends.bias is None):
            raise ShapeError("native generation: a readout has a bias, and no readout none; give both or neither")
    for name, tensor, shape in expected:
        if tensor is not None and (tensor.shape != shape or tensor.dtype != torch.float32 or not tensor.is_cpu):
            raise ShapeError(
                f"native generation: {name} must be {shape} float32 on the CPU, got {tuple(tensor.shape)} "
                f"{tensor.dtype} on {tensor.device}"
            )
    if residual and len({layer.units for layer in layers}) > 1:
        raise ShapeError(
            f"native generation: residual needs layers of one size, got {[layer.units for layer in layers]}"
        )
