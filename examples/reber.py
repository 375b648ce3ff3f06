"""The embedded Reber grammar: RNN, LSTM, GRU and identity-initialised RNN side by side.

python examples/reber.py --run runs/reber
"""

from throughtime.tasks.experiments import command, reber

if __name__ == "__main__":
    command.main(
        __doc__, reber.experiment, hidden_size=32, batch_size=32, steps=1000, evaluate_every=100, learning_rate=1e-2
    )
