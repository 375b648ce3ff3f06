"""Reversal and copying of random strings, longer ones than were trained on: which models go on, and which fail.

    python examples/reversal.py --run runs/reversal                # trained on 1 to 20 letters, tested on 1 to 60

As many strings are drawn as are trained on, so that none is shown twice. All models have the same strings, size, steps
and optimiser.
"""

from functools import partial

from throughtime.tasks.experiments import transduction_command
from throughtime.tasks.experiments.transduction_strings import TASKS, write

MODELS = {
    "fixed context": ["model.attention=none"],
    "dot": ["model.attention=dot"],
    "general": ["model.attention=general"],
    "additive": ["model.attention=additive"],
    "concat": ["model.attention=concat"],
    "general + coverage": ["model.attention=general", "model.coverage=true"],
    "general + input feeding": ["model.attention=general", "model.input_feeding=true"],
}
EACH = 20  # test strings of each length

if __name__ == "__main__":
    parser = transduction_command.parser(__doc__, MODELS, steps=1200, hidden_size=128, batch_size=64)
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS), help="%(choices)s (both)")
    parser.add_argument("--trained-to", type=int, default=20, help="letters, at most, in training (%(default)s)")
    parser.add_argument("--tested-to", type=int, default=60, help="letters, at most, in the test (%(default)s)")
    given = parser.parse_args()
    transduction_command.compare(
        given,
        MODELS,
        {
            task: partial(
                write,
                given.run / task,
                task,
                pairs=given.steps * given.batch_size,
                trained_to=given.trained_to,
                tested_to=given.tested_to,
                each=EACH,
            )
            for task in given.tasks
        },
        bounds=[1, *range(6, given.tested_to + 1, 5)],
        max_length=2 * given.tested_to,
        trained_to=given.trained_to,
    )
