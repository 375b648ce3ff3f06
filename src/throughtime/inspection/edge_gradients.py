"""The gradient on each edge of an unfolded graph: that of each step's own copy of each matrix.

Unfolding copies W for every step, W(1), W(2), ..., W(τ), all equal; ∂L/∂W(t) is the gradient for the copy of step t
alone, and their sum is the gradient for W (section 10.2.2). Here the copies are made, so that each has its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from throughtime.data.sources import TextSource
from throughtime.data.streams import TokenStreams
from throughtime.errors import DataError, UsageError
from throughtime.layers import in_evaluation_mode
from throughtime.models.context_to_sequence import ContextToSequence
from throughtime.models.feedback import FeedbackDesign, Prepared, Run
from throughtime.models.language import LanguageModel
from throughtime.models.model import Model
from throughtime.models.output_recurrent import OutputRecurrent
from throughtime.models.sequence_summary import SequenceSummary
from throughtime.training.run_folder import RunFolder

_STANDARD_INPUT = "-"


class _Reading(NamedTuple):
    """A model with its data, as the loop over steps needs it.

    x: what enters the first layer (T, B, I). columns: the labels of `weight_ih`'s columns, from left to right, and how
    many each has. states: of the layers before the first step.
    """

    x: Tensor
    columns: list[tuple[str, int]]
    states: list[Any]
    prepared: Prepared | None = None


def design_of(model: Model) -> tuple[str, int]:
    """The name of a model's unfolded graph, and its number of layers.

    Raises:
        UsageError: a model, or a variant of one, that has no such graph.
    """
    names = {
        "HiddenRecurrent": "hidden-recurrent",
        "OutputRecurrent": "output-recurrent",
        "SequenceSummary": "sequence-summary",
        "ContextToSequence": "context-to-sequence",
        "ConditionalRecurrent": "conditional-recurrent",
        "LanguageModel": "language-model",
    }
    kind = type(model).__name__
    if kind not in names:
        raise UsageError(f"edge gradients: the model must be one of {', '.join(names)}, got {kind}")
    for key, drawn in (("bidirectional", False), ("pooling", "last"), ("context_as", "input"), ("residual", False)):
        if getattr(model.config, key, drawn) != drawn:
            raise UsageError(
                f"edge gradients: {kind} is drawn with {key}={drawn!r}, got {key}={getattr(model.config, key)!r}"
            )
    return names[kind], model.config.num_layers


def edge_gradients(
    model: Model,
    targets: Tensor,
    *,
    inputs: Tensor | None = None,
    context: Tensor | None = None,
) -> dict[tuple[str, int], Tensor]:
    """∂L/∂M(t) by (label of M, step t), for the edges of the model's `unfolded_graph`, and by ("o", t) ∂L/∂o(t).

    L = Σ_t L(t) in nats (eq. 10.12), averaged over the sequences. Summed over t they are the gradient for M. The model
    is in evaluation mode and begins from its first state; designs that read y(t-1) get it from the targets. Where
    cells have gates, a letter stands for the matrices of all gates together.

    Args:
        model: one of `tt.models`, of RNN, LSTM or GRU cells, in one direction.
        targets: y(1..τ), as the model takes them; of a `SequenceSummary` one for each sequence.
        inputs: x(1..τ), of the designs that have them; of a language model y(0..τ-1), if y(0) is not the border.
        context: x (B, C), of a `ContextToSequence`.

    Raises:
        UsageError: a model that has no such graph, or a cell without these matrices.
        ShapeError: tensors that do not fit.

    Source: Goodfellow, Bengio & Courville 2016, section 10.2.2, eqs. 10.24-10.28.
    """
    design_of(model)
    with in_evaluation_mode(model), torch.enable_grad():
        reading = _read(model, targets, inputs, context)
        equations = model.recurrent.step_equations()  # type: ignore[union-attr,operator]
        if not all(hasattr(getattr(one, "weights", None), "weight_hh") for one in equations):
            raise UsageError(f"edge gradients: cells must be rnn, lstm or gru, got {model.config.cell}")
        loop = _Loop(equations, model.readout, recurrent=not isinstance(model, OutputRecurrent))
        h = loop.run(reading)
        o = loop.read_out(h, [len(h) - 1] if isinstance(model, SequenceSummary) else range(len(h)))
        loss = _loss(model, reading, o, h, targets)
        gradients = torch.autograd.grad(loss, list(loop.leaves.values()), allow_unused=True, materialize_grads=True)
    return _by_letter(dict(zip(loop.leaves, gradients, strict=True)), reading.columns, len(equations))


def norms(gradients: dict[tuple[str, int], Tensor]) -> dict[tuple[str, int], float]:
    """The Frobenius norm of each, as the picture shows it."""
    return {edge: gradient.norm().item() for edge, gradient in gradients.items()}


class _Loop:
    """A network unrolled step by step, with copies of its matrices for each.

    `leaves`, by (name, step), are what L is differentiated by: the copies, and o(t).
    """

    def __init__(self, equations: Sequence[Any], readout: Any, *, recurrent: bool) -> None:
        self.equations = equations
        self.readout = readout
        self.recurrent = recurrent
        self.leaves: dict[tuple[str, int], Tensor] = {}

    def run(self, reading: _Reading) -> list[Tensor]:
        """h(1..τ) of the last layer, (B, H) each."""
        outputs = []
        states = reading.states
        for t, x in enumerate(reading.x, start=1):
            after = []
            for k, (equation, state) in enumerate(zip(self.equations, states, strict=True), start=1):
                weights = equation.weights
                copies = {"weight_ih": self._copy(f"U_{k}", t, weights.weight_ih)}
                if self.recurrent:
                    copies["weight_hh"] = self._copy(f"W_{k}", t, weights.weight_hh)
                own = replace(equation, weights=weights._replace(**copies))
                new, _ = own.advance(own.project_inputs(x), state, None)
                after.append(new)
                x = new[0]  # (B, H)
            outputs.append(x)
            states = after if self.recurrent else states
        return outputs

    def read_out(self, h: Sequence[Tensor], steps: Sequence[int]) -> Tensor:
        """o = c + V h at some steps, (those, B, O)."""
        outputs = []
        for step in steps:
            V = self._copy("V", step + 1, self.readout.weight_ho)
            outputs.append(functional.linear(h[step], V, self.readout.bias_ho))
            self.leaves["o", step + 1] = outputs[-1]
        return torch.stack(outputs)

    def _copy(self, name: str, step: int, weight: Tensor) -> Tensor:
        self.leaves[name, step] = weight.detach().clone().requires_grad_()
        return self.leaves[name, step]


def _by_letter(
    gradients: dict[tuple[str, int], Tensor], columns: Sequence[tuple[str, int]], layers: int
) -> dict[tuple[str, int], Tensor]:
    """The gradients by the labels of the graph: of one layer without its number, of U_1 by what its columns read."""
    found: dict[tuple[str, int], Tensor] = {}
    for (name, t), gradient in gradients.items():
        if name == "U_1":
            for (label, _), part in zip(columns, torch.split(gradient, [size for _, size in columns], 1), strict=True):
                found["U_1" if label == "U" and layers > 1 else label, t] = part
        else:
            found[name if layers > 1 else name.partition("_")[0], t] = gradient
    return found


def _read(model: Any, targets: Tensor, inputs: Tensor | None, context: Tensor | None) -> _Reading:
    """What enters the layers at each step."""
    if isinstance(model, FeedbackDesign):
        prepared = model.prepare(context if isinstance(model, ContextToSequence) else inputs, targets)
        features = model.distribution.features(prepared.targets).to(prepared.external)
        before = functional.pad(features, (0, 0, 0, 0, 1, 0))[:-1]  # y(0..τ-1), zeros first
        x = torch.cat([prepared.external, before], -1)  # (T, B, I)
        states = model.recurrent.zero_states(x.shape[1], x)
        if isinstance(model, OutputRecurrent):
            # W h(t-1) is not there: its matrix is one column of zeros.
            states = [type(state)(*(field[:, :1] for field in state)) for state in states]
        columns = [("U", x.shape[2] - before.shape[2]), ("R", before.shape[2])]
        if isinstance(model, OutputRecurrent):
            columns[1] = ("W", columns[1][1])
        elif isinstance(model, ContextToSequence):
            # What is not the context's, the steps that are left, goes with y(t-1).
            size = model.config.context_size
            columns = [("R", size), ("U", x.shape[2] - size)]
        return _Reading(x, columns, states, prepared)
    if isinstance(model, LanguageModel):
        if inputs is None:
            inputs = torch.cat([torch.full_like(targets[:1], model.config.border_id), targets[:-1]])  # (T, B)
        x = model.embedding(inputs)  # (T, B, E)
    else:
        if inputs is None:
            raise UsageError(f"edge gradients: {type(model).__name__} needs inputs=")
        x = functional.one_hot(inputs, model.config.input_size) if inputs.dim() == 2 else inputs  # (T, B, I)
    x = x.detach().to(model.readout.bias_ho.dtype)
    return _Reading(x, [("U", x.shape[2])], model.recurrent.zero_states(x.shape[1], x))


def _loss(model: Any, reading: _Reading, o: Tensor, h: Sequence[Tensor], targets: Tensor) -> Tensor:
    """Σ_t L(t), averaged over the sequences."""
    nats: Tensor
    if reading.prepared is not None:
        nats = model.losses(reading.prepared, Run(o, torch.stack(list(h))))
    elif isinstance(model, LanguageModel):
        nats = functional.cross_entropy(o.flatten(0, 1), targets.flatten(), reduction="none")
    else:
        wanted = targets[None] if isinstance(model, SequenceSummary) else targets
        model.distribution.check(wanted, o, who=type(model).__name__)
        nats = -model.distribution.log_prob(o, wanted)
    return nats.sum() / reading.x.shape[1]


def run_gradients(run: Path, steps: int, *, data: Sequence[str] = ()) -> tuple[str, int, dict[tuple[str, int], float]]:
    """The design, the layers and the norms of the `edge_gradients` of a run's model over the first steps of its data.

    Of a language model that is the text it was trained on, or `data`, as many sequences as a batch of its training has;
    of another design the held-out sequences that its folder keeps.

    Raises:
        RunFolderError, CheckpointError: a run folder that cannot be read.
        DataError: a text that cannot be read, or sequences that are too short.
        UsageError: less than one step, or `data` for a run whose sequences are no text.
    """
    from throughtime.tasks import language

    if steps < 1:
        raise UsageError(f"edge gradients: steps must be at least 1, got {steps}")
    if RunFolder.task_of(run) == language.NAME:
        return _of_language(run, steps, data)
    if data:
        raise UsageError(f"run folder {run}: --data is text for a language model's run; leave it out: the run keeps "
                         "sequences")  # fmt: skip
    return _of_design(run, steps)


def _of_design(run: Path, steps: int) -> tuple[str, int, dict[tuple[str, int], float]]:
    from throughtime.tasks import design

    model, sequences = design.load(run), design.held_out(run)
    stop = getattr(model.config, "stop", "given")
    # Where the end is a part of what is learned, or there is one output at the end, a sequence cannot be cut.
    whole = sequences.summary or stop != "given"
    symbols = steps - (stop in ("end_symbol", "bernoulli_halt"))  # these end in a step of their own
    x = sequences.targets if sequences.inputs is None else sequences.inputs
    lengths = torch.full((len(sequences),), len(x)) if sequences.lengths is None else sequences.lengths
    sequences = sequences.select((lengths == symbols if whole else lengths >= steps).nonzero()[:, 0])
    if not len(sequences):
        least, most = (int(value) + steps - symbols for value in (lengths.min(), lengths.max()))
        raise DataError(
            f"edge gradients: the run keeps no {'whole ' if whole else ''}sequence of {steps} steps, but of {least} to "
            f"{most}; take another number of steps"
        )
    targets = sequences.targets if sequences.summary else sequences.targets[:symbols]
    inputs = None if sequences.inputs is None else sequences.inputs[:steps]
    name, layers = design_of(model)
    return name, layers, norms(edge_gradients(model, targets, inputs=inputs, context=sequences.context))


def _of_language(run: Path, steps: int, data: Sequence[str]) -> tuple[str, int, dict[tuple[str, int], float]]:
    from throughtime.tasks import language
    from throughtime.tasks.texts import prepared

    model, tokenizer, config = language.load(run)
    own = config.data
    if not data and _STANDARD_INPUT in own.paths:
        raise UsageError(f"run folder {run}: its text came from the standard input; name one with --data")
    whole = bool(data or own.valid)
    source = TextSource(
        data or own.paths,
        column=own.column,
        errors=own.errors,
        split="all" if whole else "train",
        valid_fraction=own.valid_fraction,
    )
    tokens = prepared(source, tokenizer)
    sequences = min(config.training.batch_size, (len(tokens.tokens) - 1) // steps)
    if sequences < 1:
        raise DataError(
            f"edge gradients: {steps} steps need a text of {steps + 1} tokens, got {len(tokens.tokens)}; "
            "take fewer steps or a longer text"
        )
    batch = TokenStreams(tokens, sequences, steps).batch(0)
    design, layers = design_of(model)
    return design, layers, norms(edge_gradients(model, batch.targets, inputs=batch.inputs))
