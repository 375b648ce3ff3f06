"""Copy memory: RNN, LSTM, GRU and identity-initialised RNN side by side.

python examples/copy_memory.py --run runs/copy-100                   # T = 100
python examples/copy_memory.py --length 500 --run runs/copy-500
"""

from throughtime.tasks.experiments import command, copy_memory

if __name__ == "__main__":
    command.main(
        __doc__,
        copy_memory.experiment,
        length=100,
        hidden_size=128,
        steps=16000,
        batch_size=20,
        evaluate_every=400,
        learning_rate=1e-2,
    )
