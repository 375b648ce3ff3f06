"""Digits read pixel by pixel: RNN, LSTM, GRU and identity-initialised RNN side by side.

pip install 'throughtime[experiments]'
python examples/digits.py --run runs/digits
"""

from throughtime.tasks.experiments import command, digits

if __name__ == "__main__":
    command.main(
        __doc__, digits.experiment, hidden_size=128, batch_size=50, steps=2000, evaluate_every=100, learning_rate=5e-3
    )
