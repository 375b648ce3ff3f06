"""Characters per second of a whole `generate` against an eager PyTorch loop, and what narrow weights cost.

Both write text one character at a time with the same two-layer LSTM language model: `tt.decoding.write_texts`, as the
command line calls it, prompt, filters, draws and text included, and a loop over torch.nn.Embedding, LSTM and Linear
with a softmax and torch.multinomial, as one would write it. They take turns in one process; what is compared is the
medians over the rounds. Before, both write one text greedily, which must be the same.

    python benchmarks/generation.py [--hidden 512] [--layers 2] [--rounds 7] [--threads N]

With a trained run, what each precision does to the perplexity of a held-out text, read one token at a time:

    python benchmarks/generation.py --run RUN --data FILE [--rows 64]
"""

from __future__ import annotations

import argparse
import math
import statistics
import string
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

import throughtime as tt
from throughtime.data import TextSource, Tokenizer
from throughtime.decoding import GenerationConfig, explain, write_texts
from throughtime.decoding.engines import chosen_model
from throughtime.kernels.native.generation import Stepper
from throughtime.tasks import language
from throughtime.tasks.texts import prepared

PROMPT = "It was a bright cold day in April, and the clocks were striking thirteen. "
TEMPERATURE = 0.8
SECONDS = 0.5  # of each side in each round

Writer = Callable[[int], object]


def random_model(hidden: int, layers: int, tokenizer: Tokenizer) -> tt.models.LanguageModel:
    """A model of characters that writes noise and never ends by itself."""
    torch.manual_seed(0)
    model = tt.models.LanguageModel(
        vocabulary_size=tokenizer.vocabulary_size,
        border_id=tokenizer.border_id,
        hidden_size=hidden,
        num_layers=layers,
        embedding_size=128,
    ).eval()
    with torch.no_grad():
        model.readout.weight_ho.mul_(20)
        model.readout.bias_ho[tokenizer.border_id] = -1000
    return model


class Eager:
    """What one would write by hand."""

    def __init__(self, model: tt.models.LanguageModel, tokenizer: Tokenizer) -> None:
        shape = model.config
        self.embedding, self.tokenizer = model.embedding, tokenizer
        self.lstm = nn.LSTM(shape.embedding_size, shape.hidden_size, shape.num_layers).eval()
        self.lstm.load_state_dict(model.recurrent.state_dict())
        self.readout = nn.Linear(shape.hidden_size, shape.vocabulary_size)
        self.readout.load_state_dict({"weight": model.readout.weight_ho, "bias": model.readout.bias_ho})
        self.prompt = torch.tensor([tokenizer.border_id, *tokenizer.encode(PROMPT).tolist()])[:, None]

    @torch.inference_mode()
    def write(self, length: int, temperature: float) -> str:
        """`length` characters behind the prompt."""
        hidden, state = self.lstm(self.embedding(self.prompt))
        tokens = []
        for _ in range(length):
            logits = self.readout(hidden[-1])
            if temperature:
                token = torch.multinomial(torch.softmax(logits / temperature, -1), 1)
            else:
                token = logits.argmax(-1, keepdim=True)
            tokens.append(int(token))
            hidden, state = self.lstm(self.embedding(token), state)
        return self.tokenizer.decode(tokens)


def compare(hidden: int, layers: int, rounds: int) -> None:
    """Print characters per second of each side, and the ratios."""
    tokenizer = Tokenizer.train("chars", _printable())
    model = random_model(hidden, layers, tokenizer)
    eager = Eager(model, tokenizer)
    assert explain(model).engine == "native", explain(model)
    greedy = GenerationConfig(length=200, temperature=0)
    assert write_texts(model, tokenizer, PROMPT, greedy)[0].text == eager.write(200, 0), "the texts differ"

    def native(precision: str) -> Writer:
        config = GenerationConfig(temperature=TEMPERATURE, seed=1, precision=precision)
        return lambda length: write_texts(model, tokenizer, PROMPT, config.model_copy(update={"length": length}))

    sides: dict[str, Writer] = {f"native {precision}": native(precision) for precision in ("fp32", "bf16", "int8")}
    sides["eager PyTorch"] = lambda length: eager.write(length, TEMPERATURE)
    lengths = {}
    for name, write in sides.items():
        write(50)
        began = time.perf_counter()
        write(50)
        lengths[name] = max(50, int(50 * SECONDS / (time.perf_counter() - began)))
    speeds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        for name in list(sides)[:: 1 if number % 2 else -1]:
            began = time.perf_counter()
            sides[name](lengths[name])
            speeds[name].append(lengths[name] / (time.perf_counter() - began))
    medians = {name: statistics.median(values) for name, values in speeds.items()}
    print(
        f"characters a second, LSTM {hidden} x {layers}, {torch.get_num_threads()} threads, medians of {rounds} rounds"
    )
    for name, median in medians.items():
        print(f"    {name}: {median:,.0f}, {median / medians['eager PyTorch']:.1f} x eager PyTorch")


def _printable() -> TextSource:
    import tempfile

    with tempfile.NamedTemporaryFile("w", suffix=".txt", delete=False) as file:
        file.write(string.printable)
    return TextSource([file.name])


def perplexities(run: Path, data: str, rows: int) -> None:
    """Print the perplexity of `data` under the run's model in each precision, in `rows` contiguous streams."""
    model, tokenizer, config = language.load(run)
    stream = prepared(TextSource([data], column=config.data.column, errors=config.data.errors), tokenizer)
    ids = torch.tensor(stream.tokens[0 : len(stream.tokens)], dtype=torch.long)
    steps = (len(ids) - 1) // rows
    inputs, targets = (part[: rows * steps].view(rows, steps).t().contiguous() for part in (ids[:-1], ids[1:]))
    found = {precision: math.exp(_nats(model, inputs, targets, precision)) for precision in ("fp32", "bf16", "int8")}
    print(f"perplexity of {data}, {rows * steps:,} tokens in {rows} streams")
    for precision, value in found.items():
        print(f"    {precision}: {value:.4f} ({100 * (value / found['fp32'] - 1):+.3f} %)")


def _nats(model: tt.models.LanguageModel, inputs: Tensor, targets: Tensor, precision: str) -> float:
    packed = chosen_model(model, precision=precision, engine="native")
    assert packed is not None
    stepper = Stepper(packed, inputs.shape[1])
    log_probs = torch.empty(inputs.shape[1], model.vocabulary_size)
    total = 0.0
    for tokens, following in zip(inputs, targets, strict=True):
        stepper.step(tokens, log_probs=True, out=log_probs)
        total -= float(log_probs.gather(-1, following[:, None]).double().sum())
    return total / targets.numel()


def main() -> None:
    """Compare speeds, or perplexities where a run is given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--run", type=Path)
    parser.add_argument("--data")
    parser.add_argument("--rows", type=int, default=64)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.run is None:
        compare(options.hidden, options.layers, options.rounds)
    elif options.data is None:
        parser.error("--run needs --data, a held-out text")
    else:
        perplexities(options.run, options.data, options.rows)


if __name__ == "__main__":
    main()
