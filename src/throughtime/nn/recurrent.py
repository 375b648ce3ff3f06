"""The recurrent layer that RNN, LSTM and GRU are: stacked, in one or two directions, regularised if asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import PackedSequence

from throughtime import kernels
from throughtime.cells import by_torch_names, check_dtype
from throughtime.errors import ShapeError, UsageError
from throughtime.kernels import Lookup, Recurrence, StepEquations, Unfolded
from throughtime.layers import checked_probability, locked_mask, zoneout_masks
from throughtime.nn.packed import pack_like, unpack
from throughtime.nn.parameters import StackedParameters, suffix_of
from throughtime.nn.states import StepStates, join_state, split_state
from throughtime.recurrence import MemoryBudget, checked_lengths, checked_resets
from throughtime.recurrence.checkpointing import engine_run
from throughtime.recurrence.walk import Place, Run, uncomputed


class RecurrentLayer(StackedParameters):
    """What `tt.nn.RNN`, `LSTM` and `GRU` share. The first parameters are `torch.nn`'s, with its names and defaults.

    Beyond them, by keyword:

    Args:
        recurrent_dropout: probability that a unit of h(t-1) is dropped where it enters the recurrent product; one
            mask for a whole sequence (Gal & Ghahramani 2016).
        variational_dropout: the same for the inputs of each layer; one mask for a whole sequence.
        zoneout: probability that a unit keeps its old value for a step; one number for every field of the state, or
            one for each, (h, c) for an LSTM (Krueger et al. 2017).
        layer_norm: layer normalisation inside the cell (Ba, Kiros & Hinton 2016).
        weight_dropout: probability that an entry of weight_hh is dropped, for a whole call (Merity et al. 2018).
        residual: from the second layer on, a layer's inputs are added to its outputs.
        engine: "auto", or the name of one engine; `tt.kernels.explain(layer, inputs)` tells which runs.

    `hidden_size` may be a sequence, one size for each layer; states are then tuples of one tensor a layer.
    """

    mode: str
    # What the layer's representation shows where it differs from these.
    usual: ClassVar[Mapping[str, Any]] = {
        "num_layers": 1,
        "bias": True,
        "batch_first": False,
        "dropout": 0.0,
        "bidirectional": False,
        "recurrent_dropout": 0.0,
        "variational_dropout": 0.0,
        "layer_norm": False,
        "weight_dropout": 0.0,
        "residual": False,
        "engine": "auto",
    }

    def __init__(
        self,
        input_size: int,
        hidden_size: int | Sequence[int],
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        recurrent_dropout: float = 0.0,
        variational_dropout: float = 0.0,
        zoneout: float | Sequence[float] = 0.0,
        layer_norm: bool = False,
        weight_dropout: float = 0.0,
        residual: bool = False,
        engine: str = "auto",
    ) -> None:
        super().__init__(
            input_size,
            hidden_size,
            num_layers,
            bias=bias,
            bidirectional=bidirectional,
            proj_size=proj_size,
            layer_norm=layer_norm,
            device=device,
            dtype=dtype,
        )
        who = type(self).__name__
        self.batch_first = batch_first
        # PyTorch lets dropout between layers drop everything.
        self.dropout = checked_probability(dropout, who=who, name="dropout") if dropout != 1 else 1.0
        self.recurrent_dropout = checked_probability(recurrent_dropout, who=who, name="recurrent_dropout")
        self.variational_dropout = checked_probability(variational_dropout, who=who, name="variational_dropout")
        self.weight_dropout = checked_probability(weight_dropout, who=who, name="weight_dropout")
        self.zoneout = self._zoneout_probabilities(zoneout)
        self.residual = residual
        self.engine = kernels.check_engine_name(engine, who=who)
        if residual and len({self._output_size(layer) for layer in range(num_layers)}) > 1:
            raise ShapeError(f"{who}: residual needs layers of one size, got {self.hidden_sizes}")

    def _zoneout_probabilities(self, zoneout: float | Sequence[float]) -> tuple[float, ...]:
        who, fields = type(self).__name__, self.cell_type.State._fields
        values = tuple(zoneout) if isinstance(zoneout, Sequence) else (zoneout,) * len(fields)
        if len(values) != len(fields):
            raise UsageError(f"{who}: zoneout must be one probability, or one for each of {fields}, got {zoneout!r}")
        return tuple(checked_probability(value, who=who, name="zoneout") for value in values)

    def _weights(self, suffix: str) -> Any:
        weights = super()._weights(suffix)
        if self.weight_dropout and self.training:
            weights = weights._replace(weight_hh=functional.dropout(weights.weight_hh, self.weight_dropout))
        return weights

    # -- computation -----------------------------------------------------------------------------------------------

    def forward(
        self,
        inputs: Tensor | PackedSequence | None = None,
        state: Any = None,
        *,
        lengths: Int[Tensor, " B"] | Sequence[int] | None = None,
        resets: Bool[Tensor, "T B"] | Bool[Tensor, " T"] | None = None,
        return_states: str | None = None,
        checkpoint: str | int | MemoryBudget | None = None,
        lookup: Lookup | None = None,
        **torch_names: Any,
    ) -> Any:
        """Run the layers over a batch of sequences.

        Args:
            inputs: (T, B, I), (B, T, I) with `batch_first`, (T, I) for one sequence, or a `PackedSequence`.
            state: h_0, or (h_0, c_0), each (L · D, B, H) as in `torch.nn`; zeros when missing.
            lengths: the number of steps of each sequence, in any order, zero allowed.
            resets: true at [t, b] ([b, t] with `batch_first`, [t] for one sequence) where row b begins a new
                sequence: its state is cleared before step t.
            return_states: "all" returns every state and gate too.
            checkpoint: as of `tt.unfold`, for each layer and direction: less memory, the same gradients.
            lookup: the tokens, laid out as the inputs, and the table (V, I), if the inputs are just `table[tokens]`, in
                the same graph. An engine may then multiply each row of the table once, however often it comes; the
                gradient goes from there to the table, past the inputs. Without effect with `checkpoint`, with
                `return_states`, and where variational dropout scales the inputs.
            torch_names: `input=` and `hx=`, as PyTorch calls inputs and state.

        Returns:
            outputs (T, B, D · H) and the final state as `torch.nn` gives them; with `return_states="all"` also
            `states[layer][direction]`, a `StepStates` each.

        Raises:
            ShapeError: inputs, state, lengths or a lookup that do not fit.
            EngineError: the engine asked for by name cannot run this.
            UsageError: an unknown `return_states`; a `checkpoint` that there is not, or together with every state.
        """
        if torch_names or inputs is None:
            inputs, state = by_torch_names(type(self).__name__, inputs, state, torch_names)
        if return_states not in (None, "all"):
            raise UsageError(f"{type(self).__name__}: return_states must be 'all' or None, got {return_states!r}")
        run = engine_run(self.engine, checkpoint, who=type(self).__name__)
        told = None if lookup is None else self._checked_lookup(lookup, inputs)
        if return_states is None:
            if checkpoint is not None or (self.variational_dropout and self.training):
                told = None

            def looking_up(call: Recurrence, place: Place) -> Unfolded:
                return run(call if place.layer or told is None else replace(call, lookup=told))

            return self.walk(looking_up, inputs, state, lengths=lengths, resets=resets)
        found: list[list[Unfolded]] = [[] for _ in range(self.num_layers)]

        def recorded(call: Recurrence, place: Place) -> Unfolded:
            found[place.layer].append(run(replace(call, record=True)))
            return found[place.layer][-1]

        outputs, final = self.walk(recorded, inputs, state, lengths=lengths, resets=resets)
        batched = isinstance(inputs, PackedSequence) or inputs.dim() == 3
        return outputs, final, tuple(tuple(self._step_states(u, batched) for u in layer) for layer in found)

    def _checked_lookup(self, lookup: Lookup, inputs: Any) -> Lookup:
        """With tokens (T, B).

        Raises:
            ShapeError: they are not those of the inputs, or not whole numbers.
        """
        tokens, table = lookup
        fits = isinstance(inputs, Tensor) and inputs.shape == (*tokens.shape, table.shape[-1]) and table.dim() == 2
        if not fits or tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
            raise ShapeError(
                f"{type(self).__name__}: lookup must be tokens and the table that the inputs are rows of, got tokens "
                f"{tuple(tokens.shape)} {tokens.dtype} and a table {tuple(table.shape)} for inputs "
                f"{tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__}"
            )
        if tokens.dim() == 1:
            return Lookup(tokens[:, None], table)
        return Lookup(tokens.transpose(0, 1) if self.batch_first else tokens, table)

    def walk(
        self,
        run: Run,
        inputs: Tensor | PackedSequence,
        state: Any = None,
        *,
        lengths: Any = None,
        resets: Any = None,
    ) -> tuple[Any, Any]:
        """The outputs and the final state as `forward` returns them, `run(call, place)` computing each recurrence.

        Raises:
            ShapeError: inputs, state or lengths that do not fit.
        """
        if isinstance(inputs, PackedSequence):
            return self._walk_packed(run, inputs, state, lengths, resets)
        x, lengths, resets = self._time_major(inputs, lengths, resets)
        batched = inputs.dim() == 3
        initial = self._initial_states(x, state, batched)
        final = []
        for layer in range(self.num_layers):
            calls = self._layer_calls(layer, x, initial[layer], lengths, resets)
            found = [run(call, self._place(layer, direction)) for direction, call in enumerate(calls)]
            outputs = torch.cat([u.outputs for u in found], -1) if self.bidirectional else found[0].outputs
            x = self._between(layer, x, outputs)
            final.append([u.final_state for u in found])
        joined = join_state(final, equal_sizes=len(set(self.hidden_sizes)) == 1, batched=batched)
        return self._as_given(x, batched), joined

    def recurrences(self, inputs: Any, state: Any = None, **options: Any) -> Iterator[tuple[str, Recurrence]]:
        """Each layer's and direction's `Recurrence`, uncomputed, for `tt.kernels.explain`."""
        record = options.pop("return_states", None) == "all"
        for where, call in uncomputed(self, inputs, state, **options):
            yield where, replace(call, record=record)

    def step_equations(self) -> list[StepEquations]:
        """The equations of each layer with the weights of this moment, the bottom one first, to be stepped by hand.

        `dropout` between the layers, and `residual`, are the caller's to apply.

        Raises:
            UsageError: the layer is bidirectional, or changes the recurrence by more than its weights: zoneout; in
                training recurrent or variational dropout.
        """
        who = type(self).__name__
        if self.bidirectional:
            raise UsageError(f"{who}: a bidirectional layer cannot be taken step by step; set bidirectional=False")
        masked = {"zoneout": any(self.zoneout)}
        if self.training:
            masked |= {name: getattr(self, name) > 0 for name in ("recurrent_dropout", "variational_dropout")}
        if found := [name for name, present in masked.items() if present]:
            raise UsageError(f"{who}: {found[0]} cannot be taken step by step; set {found[0]}=0")
        return [self._equations(self._weights(suffix)) for _, suffix in self._suffixes()]

    def zero_states(self, batch_size: int, like: Tensor) -> list[Any]:
        """The `State` of each layer before the first step, zeros (B, size), of the type and on the device of `like`."""
        kind, layers = self.cell_type.State, range(self.num_layers)
        return [kind(*(like.new_zeros(batch_size, size) for size in self._state_sizes(layer))) for layer in layers]

    def _layer_calls(self, layer: int, x: Tensor, states: list[Any], lengths: Any, resets: Any) -> list[Recurrence]:
        """One recurrence for each direction of a layer, random masks drawn."""
        if self.variational_dropout and self.training:
            x = x * locked_mask(x, (1, *x.shape[1:]), self.variational_dropout)  # (T, B, I)
        calls = []
        for direction, state in enumerate(states):
            mask = zoneout = None
            if self.recurrent_dropout and self.training:
                mask = locked_mask(x, tuple(state[0].shape), self.recurrent_dropout)  # (B, H)
            if any(self.zoneout):
                zoneout = zoneout_masks(x, [field.shape[-1] for field in state], self.zoneout, self.training)
            calls.append(
                Recurrence(
                    self._equations(self._weights(suffix_of(layer, direction))),
                    x,
                    state,
                    lengths,
                    resets,
                    reverse=bool(direction),
                    recurrent_mask=mask,
                    zoneout=zoneout,
                )
            )
        return calls

    def _between(self, layer: int, inputs: Tensor, outputs: Tensor) -> Tensor:
        """What follows a layer: the residual connection, and dropout before the next layer."""
        if self.residual and layer > 0:
            outputs = outputs + inputs
        if self.dropout and self.training and layer < self.num_layers - 1:
            outputs = functional.dropout(outputs, self.dropout)
        return outputs

    # -- shapes ----------------------------------------------------------------------------------------------------

    def _walk_packed(
        self, run: Run, packed: PackedSequence, state: Any, lengths: Any, resets: Any
    ) -> tuple[PackedSequence, Any]:
        if lengths is not None or resets is not None:
            raise UsageError(f"{type(self).__name__}: a PackedSequence has its own lengths; give no lengths or resets")
        inputs, own_lengths = unpack(packed, self.batch_first)
        outputs, final = self.walk(run, inputs, state, lengths=own_lengths)
        return pack_like(outputs, own_lengths, packed, self.batch_first), final

    def _place(self, layer: int, direction: int) -> Place:
        where = f"{type(self).__name__} layer {layer}{' reverse' if direction else ''}"
        return Place(layer, direction, where, "{}" + suffix_of(layer, direction))

    def _time_major(self, inputs: Tensor, lengths: Any, resets: Any) -> tuple[Tensor, Any, Any]:
        """Inputs as (T, B, I), with lengths and resets checked against them.

        Raises:
            ShapeError: inputs of another rank or size.
        """
        who = type(self).__name__
        layout = "(B, T, {})" if self.batch_first else "(T, B, {})"
        if not isinstance(inputs, Tensor) or inputs.dim() not in (2, 3) or inputs.shape[-1] != self.input_size:
            got = tuple(inputs.shape) if isinstance(inputs, Tensor) else type(inputs).__name__
            raise ShapeError(
                f"{who}: inputs must be {layout.format(self.input_size)}, or (T, {self.input_size}) for one sequence, "
                f"got {got}; the last axis is input_size, and batch_first tells the order of the others"
            )
        check_dtype(inputs, self._some_weight(), who=who)
        x = inputs[:, None] if inputs.dim() == 2 else inputs.transpose(0, 1) if self.batch_first else inputs
        if resets is not None and self.batch_first and inputs.dim() == 3:
            resets = resets.transpose(0, 1)
        if resets is not None and resets.dim() == 1:
            resets = resets[:, None]
        lengths = checked_lengths(lengths, x, who=who)
        return x, lengths, checked_resets(resets, x, who=who, lengths=lengths)

    def _initial_states(self, x: Tensor, state: Any, batched: bool) -> list[list[Any]]:
        kind, batch = self.cell_type.State, x.shape[1]
        sizes = [self._state_sizes(layer) for layer in range(self.num_layers)]
        # Under autocast the inputs may be of lower precision than the state should be kept in.
        dtype = self._some_weight().dtype
        if state is None:
            zeros = [[x.new_zeros(batch, size, dtype=dtype) for size in layer] for layer in sizes]
            return [[kind(*fields)] * self.directions for fields in zeros]
        who = type(self).__name__
        states = split_state(
            state,
            kind=kind,
            sizes=sizes,
            directions=self.directions,
            batched=batched,
            batch=batch,
            who=who,
        )
        for field in (field for layer in states for one in layer for field in one):
            if field.dtype != dtype and not torch.is_autocast_enabled(x.device.type):
                raise ShapeError(f"{who}: state must be {dtype} as the weights are, got {field.dtype}")
        return states

    def _as_given(self, x: Tensor, batched: bool) -> Tensor:
        """(T, B, ·) in the layout that the caller uses."""
        if not batched:
            return x.squeeze(1)
        return x.transpose(0, 1) if self.batch_first else x

    def _step_states(self, unfolded: Unfolded, batched: bool) -> StepStates:
        fields = [self._as_given(field, batched) for field in unfolded.states]
        gates = type(unfolded.gates)(*(self._as_given(gate, batched) for gate in unfolded.gates))
        return StepStates(fields[0], fields[1] if len(fields) > 1 else None, gates)

    def extra_repr(self) -> str:
        """The sizes, and what differs from the defaults."""
        parts = [f"{self.input_size}, {self.hidden_size}"]
        parts += [
            f"{name}={getattr(self, name)!r}" for name, value in self.usual.items() if getattr(self, name) != value
        ]
        if any(self.zoneout):
            parts.append(f"zoneout={self.zoneout}")
        return ", ".join(parts)
