"""Whether a new program is better than the live one, by scores alone: of DSPy programs, or of anybody's.

    from dspy_toolkit.gate import decide, power
    verdict = decide(old_scores, new_scores, rows=ids, ledger="openings.jsonl")

Nothing here knows programs or models, and nothing but numpy, scipy and pydantic is imported.

deciding      `decide`: scores in, a verdict out, the opening in the ledger
sample_size   `power`: how many rows a wanted gain needs
score_files   scores in JSON Lines, CSV, and other tools' files; scored_rows pairs them
validation    whether a candidate is worth an opening of the sealed rows
ledger        the openings of sealed rows, and the error rate that each may spend
evidence      what paired scores on the sealed rows show
verdict       what that is enough for
intervals     intervals of means and of paired differences, and the difference that a test can detect
bounded_mean  the one for graded scores and for rows that share groups
"""

from dspy_toolkit.gate.deciding import decide
from dspy_toolkit.gate.evidence import Evidence
from dspy_toolkit.gate.ledger import Ledger
from dspy_toolkit.gate.sample_size import Power, power
from dspy_toolkit.gate.validation import Worth, worth_opening
from dspy_toolkit.gate.verdict import Verdict

__all__ = ["Evidence", "Ledger", "Power", "Verdict", "Worth", "decide", "power", "worth_opening"]
