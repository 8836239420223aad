"""What counts can bear: intervals, paired tests, tests over many candidates, power, standings from votes.

Arrays in, plain figures out; no files and no candidates' names. Scores of one item are 0 or 1 unless said otherwise,
`groups` holds one name an item ("" for an item on its own).
"""

from luthier.outcome.statistics.chosen import earliest_equal, earliest_of, selection_corrected
from luthier.outcome.statistics.clusters import Estimate
from luthier.outcome.statistics.intervals import above_chance, accuracy_interval, mean_interval, wilson
from luthier.outcome.statistics.many import (
    PairTests,
    all_pairs,
    holm,
    max_t,
    significance_groups,
    simultaneous_band,
)
from luthier.outcome.statistics.paired import (
    AccuracyPair,
    MeanPair,
    mcnemar_exact,
    paired_accuracy,
    paired_difference,
    paired_t,
)
from luthier.outcome.statistics.power import (
    minimum_detectable_effect,
    minimum_detectable_effect_unpaired,
    more_questions_sentence,
    questions_needed,
    questions_needed_unpaired,
    smallest_gap,
)
from luthier.outcome.statistics.preferences import Vote, bradley_terry, first_position

__all__ = [
    "AccuracyPair",
    "Estimate",
    "MeanPair",
    "PairTests",
    "Vote",
    "above_chance",
    "accuracy_interval",
    "all_pairs",
    "bradley_terry",
    "earliest_equal",
    "earliest_of",
    "first_position",
    "holm",
    "max_t",
    "mcnemar_exact",
    "mean_interval",
    "minimum_detectable_effect",
    "minimum_detectable_effect_unpaired",
    "more_questions_sentence",
    "paired_accuracy",
    "paired_difference",
    "paired_t",
    "questions_needed",
    "questions_needed_unpaired",
    "selection_corrected",
    "significance_groups",
    "simultaneous_band",
    "smallest_gap",
    "wilson",
]
