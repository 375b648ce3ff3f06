"""Attention earns its place: one model with it and without, the same pairs, judged by the letters of a word.

    python examples/pronounce.py shared/data/cmudict_g2p/g014b2b.train runs/pronounce-data
    python examples/attention.py --data runs/pronounce-data --run runs/attention

Without it the decoder knows the word only as the encoder's last state, the fixed context of fig. 10.12. The models are
small and the training short; what counts is the difference. Strings that are longer than words: examples/reversal.py.
"""

from pathlib import Path

from throughtime.tasks.experiments import transduction_command
from throughtime.tasks.experiments.transduction import Files

MODELS = {"attention": ["model.attention=general"], "fixed context": ["model.attention=none"]}
# Words of up to 4 letters, of 5 and 6, ..., of 15 and more.
BOUNDS = (1, 5, 7, 9, 11, 13, 15)

if __name__ == "__main__":
    parser = transduction_command.parser(__doc__, MODELS, steps=4000, hidden_size=128, batch_size=64)
    parser.add_argument("--data", type=Path, required=True, help="folder with train.tsv, valid.tsv and test.tsv")
    given = parser.parse_args()
    transduction_command.compare(
        given,
        MODELS,
        {"pronunciation": lambda: Files(*(given.data / f"{name}.tsv" for name in Files._fields))},
        settings=["data.target_tokenizer=words"],
        bounds=BOUNDS,
        max_length=40,
    )
