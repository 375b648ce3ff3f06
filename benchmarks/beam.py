"""Beam search: sentences a second, against a straightforward batched beam search in PyTorch over nn.LSTMCell.

Both decode the same encoder-decoder (encoder by nn.LSTM there) with the same weights, alternating in one run; medians,
and their ratio. The answers must have the same scores. Without --run the weights are random and no answer ends before
--length, so that the work is the same to the step; with --run it is a trained model (general or dot attention, no input
feeding) and the sources of --data, where searches end when they may.

    python benchmarks/beam.py [--batch 64] [--beam 5] [--hidden 512] [--layers 1] [--vocabulary 64 8000] [--threads 1 2]
    python benchmarks/beam.py --run runs/pronounce --data runs/pronounce-data/test.tsv
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import throughtime as tt


class TorchBeam:
    """What one would write in an afternoon: every beam of every sentence goes on until all have ended."""

    def __init__(self, model: tt.models.EncoderDecoder) -> None:
        shape = model.config
        self.model, self.layers, self.end = model, shape.num_layers, shape.border_id
        self.encoder = nn.LSTM(
            shape.embedding_size, model.encoder.hidden_size, shape.num_layers, bidirectional=shape.bidirectional
        )
        self.encoder.load_state_dict(model.encoder.state_dict())
        sizes = [shape.embedding_size] + [shape.hidden_size] * (shape.num_layers - 1)
        self.cells = [nn.LSTMCell(size, shape.hidden_size) for size in sizes]
        for index, cell in enumerate(self.cells):
            names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            cell.load_state_dict({name: getattr(model.decoder, f"{name}_l{index}").detach() for name in names})

    def search(self, tokens: Tensor, lengths: Tensor, beam: int, length: int) -> Tensor:
        """log p (B,) of the best answer of each sentence."""
        model, batch = self.model, tokens.shape[1]
        packed = nn.utils.rnn.pack_padded_sequence(model.source_embedding(tokens), lengths, enforce_sorted=False)
        out, final = self.encoder(packed)
        m = nn.utils.rnn.pad_packed_sequence(out)[0].transpose(0, 1)  # (B, S, H)
        mask = torch.arange(m.shape[1]) < lengths[:, None]
        m, mask = m.repeat_interleave(beam, 0), mask.repeat_interleave(beam, 0)
        keys = functional.linear(m, model.attention.weight) if model.attention.kind == "general" else m
        states = []
        for index in range(self.layers):
            own = [field.unflatten(0, (self.layers, -1))[index].transpose(0, 1).flatten(1) for field in final]
            states.append(tuple(field.repeat_interleave(beam, 0) for field in own))
        scores = torch.full((batch, beam), -torch.inf)
        scores[:, 0] = 0
        finished = torch.zeros(batch * beam, dtype=torch.bool)
        last = torch.full((batch * beam,), self.end)
        for _ in range(length):
            x = model.target_embedding(last)
            for index, cell in enumerate(self.cells):
                states[index] = cell(x, states[index])
                x = states[index][0]
            weights = torch.bmm(keys, x[..., None])[..., 0].masked_fill(~mask, -torch.inf).softmax(-1)
            context = torch.bmm(weights[:, None], m)[:, 0]
            h = torch.tanh(model.combine(torch.cat([context, x], -1)))
            log_p = model.readout(h).log_softmax(-1)  # (B·K, V)
            log_p[finished] = -torch.inf
            log_p[finished, self.end] = 0
            total = (scores.flatten()[:, None] + log_p).view(batch, -1)
            scores, best = total.topk(beam)
            rows = (best // log_p.shape[1] + torch.arange(batch)[:, None] * beam).flatten()
            last = (best % log_p.shape[1]).flatten()
            states = [tuple(field[rows] for field in state) for state in states]
            finished = finished[rows] | (last == self.end)
            if finished.all():
                break
        return scores[:, 0]


def ours(model: tt.models.EncoderDecoder, tokens: Tensor, lengths: Tensor, beam: int, length: int) -> Tensor:
    about = tt.decoding.given(model, inputs=tokens, lengths=lengths)
    found = tt.decoding.beam_search(about, length=length, width=beam)
    scores: Tensor = found.scores[:, 0]
    return scores


def alternating(sides: list[Callable[[], Tensor]], rounds: int) -> list[float]:
    """The median seconds of each side, after one round that does not count."""
    taken: list[list[float]] = [[] for _ in sides]
    for attempt in range(rounds + 1):
        for side, times in zip(sides, taken, strict=True):
            begin = time.perf_counter()
            side()
            if attempt:
                times.append(time.perf_counter() - begin)
    return [statistics.median(times) for times in taken]


def compare(
    title: str,
    model: tt.models.EncoderDecoder,
    batches: list[tuple[Tensor, Tensor]],
    given: argparse.Namespace,
) -> None:
    torch_side = TorchBeam(model)

    def whole(search: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        return torch.cat([search(*batch) for batch in batches])

    def theirs() -> Tensor:
        return whole(lambda x, n: torch_side.search(x, n, given.beam, given.length))

    def own() -> Tensor:
        return whole(lambda x, n: ours(model, x, n, given.beam, given.length))

    with torch.inference_mode():
        a, b = theirs(), own()
        # A search of theirs may keep ended answers in its beam's places, and so lose better ones: ours are no worse.
        worse = int((b < a - 1e-3).sum())
        for threads in given.threads:
            torch.set_num_threads(threads)
            slow, fast = alternating([theirs, own], given.rounds)
            count = sum(batch[0].shape[1] for batch in batches)
            print(f"{title:<34} {threads:>7} {count / slow:>14.1f} {count / fast:>16.1f} {slow / fast:>6.2f} "
                  f"{float((b - a).abs().max()):>11.1e} {worse:>6}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = (("batch", 64), ("beam", 5), ("hidden", 512), ("layers", 1), ("length", 30), ("source", 30), ("rounds", 5))
    for name, value in sizes:
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[64, 8000])
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data", nargs="+", default=[])
    parser.add_argument("--sources", type=int, default=512, help="of --data")
    given = parser.parse_args()
    print(f"beam {given.beam}, batch {given.batch}, float32, medians of {given.rounds}; "
          f"{tt.kernels.explain(tt.nn.LSTM(8, 8), torch.zeros(2, 1, 8)).engines[0]} engine")  # fmt: skip
    columns = ("threads", "torch sent./s", "throughtime /s", "ratio", "difference", "worse")
    widths = (7, 14, 16, 6, 11, 6)
    print(" " * 34, *(f"{name:>{width}}" for name, width in zip(columns, widths, strict=True)))
    torch.manual_seed(0)
    if given.run is not None:
        from throughtime.tasks import transduce

        model, tokenizers, config = transduce.load(given.run)
        given.length = config.generation.max_length
        texts = list(dict.fromkeys(pair.source for pair in tt.data.read_pairs(given.data)))[: given.sources]
        ids = sorted((torch.from_numpy(tokenizers.source.encode(text)) for text in texts), key=len)
        parts = [ids[at : at + given.batch] for at in range(0, len(ids), given.batch)]
        batches = [(nn.utils.rnn.pad_sequence(part), torch.tensor([len(one) for one in part])) for part in parts]
        compare(f"{given.run.name}, {len(ids)} sources", model, batches, given)
        return
    for vocabulary in given.vocabulary:
        model = tt.models.EncoderDecoder(
            source_vocabulary_size=vocabulary, target_vocabulary_size=vocabulary, hidden_size=given.hidden,
            num_layers=given.layers, embedding_size=given.hidden,
        ).eval()  # fmt: skip
        with torch.no_grad():
            model.readout.bias_ho[model.config.border_id] = -1e4  # no answer ends
        x = torch.randint(vocabulary, (given.source, given.batch))
        lengths = torch.randint(given.source // 2, given.source + 1, (given.batch,))
        title = f"H {given.hidden}, {given.layers} layers, V {vocabulary}, {given.length} steps"
        compare(title, model, [(x, lengths)], given)


if __name__ == "__main__":
    main()
