"""The adding problem: RNN, LSTM, GRU and identity-initialised RNN side by side.

python examples/adding.py --run runs/adding                      # T = 600
python examples/adding.py --length 200 --run runs/adding-200
"""

from throughtime.tasks.experiments import adding, command

if __name__ == "__main__":
    command.main(
        __doc__, adding.experiment, length=600, hidden_size=64, steps=2000, evaluate_every=100, learning_rate=1e-2
    )
