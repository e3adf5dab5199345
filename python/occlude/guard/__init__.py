"""Make copying a model by asking it dearer. It does not prevent it.

1. :func:`train` fits a *misinformation model*, which is wrong where the owner's is right, from
   the owner's model, its data, and inputs that are not of its kind.
2. :func:`sweep` shows what each threshold would do to held-out data; pick one by looking.
3. :class:`Budgets` say how often who may ask, and :class:`Telemetry` who asks unusually;
   :class:`Work` makes answers dear to who learns much.
4. :class:`Guard` goes with :func:`occlude.seal`. The server mixes both models' answers, the
   more the less certain the owner's is, and always computes both.

``python -m occlude.guard train`` and ``tune`` do the first two from the command line.

Adaptive misinformation is of Kariyappa and Qureshi, "Defending Against Model Stealing Attacks
with Adaptive Misinformation", CVPR 2020.
"""

from occlude.guard._configuration import (
    Budget,
    Budgets,
    Guard,
    Issuer,
    Shaping,
    Telemetry,
    Work,
)
from occlude.guard._misinformation import Misinformation
from occlude.guard._sweep import Outcome, share, sweep
from occlude.guard._train import train

__all__ = [
    "Budget",
    "Budgets",
    "Guard",
    "Issuer",
    "Misinformation",
    "Outcome",
    "Shaping",
    "Telemetry",
    "Work",
    "share",
    "sweep",
    "train",
]
