"""Commands start without scikit-learn and scipy, which are there for whoever asks."""

import subprocess
import sys

PROGRAM = """
import sys
from longmem_fairseq.commands.generate import get_parser
from longmem_fairseq.commands.options import parse
sys.argv[1:] = ["model", "--prompt", "a"]
parse(get_parser())
assert "fairseq" in sys.modules
assert not {"sklearn", "sklearn.metrics", "scipy", "scipy.stats"} & set(sys.modules)
from fairseq.criterions.sentence_prediction import f1_score, pearsonr
assert f1_score([0, 1, 1], [0, 1, 0]) == 2 / 3
assert abs(pearsonr([1, 2, 3], [2, 4, 6])[0] - 1) < 1e-9
import sklearn.metrics
assert "sklearn" in sys.modules["sklearn.metrics"].__file__
"""


def test_a_command_imports_fairseq_without_them():
    subprocess.run([sys.executable, "-c", PROGRAM], check=True)
