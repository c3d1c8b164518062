"""What the names of scores mean, in a sentence for somebody who has never met them."""

MEANINGS = {
    "accuracy": "share of rows answered rightly",
    "macro_f1": "F1 (harmonic mean of precision and recall) of each class, then their mean",
    "micro_f1": "F1 (harmonic mean of precision and recall) over all labels of all rows",
    "f1": "F1: harmonic mean of the share of what was found that is right and of what there is that was found",
    "precision": "share of what was found that is right",
    "recall": "share of what there is to find that was found",
    "matthews": "Matthews correlation: 1 all right, 0 as good as chance",
    "pearson": "correlation with the true numbers: 1 in step, 0 unrelated",
    "spearman": "correlation of the ranks: 1 in the same order, 0 unrelated",
    "mse": "mean squared error; less is better",
    "r2": "share of the variance of the numbers that is explained",
    "exact_match": "share of rows whose answer is right to the letter",
    "answerable_f1": "F1 of the rows that have an answer",
    "answerable_exact_match": "share of the rows with an answer whose answer is right to the letter",
    "unanswerable": "share of the rows without an answer of which that is said",
    "loss": "what training makes small; less is better",
    "bleu": "BLEU, 0 to 100: runs of words shared with the references",
    "chrf": "chrF, 0 to 100: runs of letters shared with the references",
    "rouge1": "ROUGE-1: words shared with the references",
    "rouge2": "ROUGE-2: pairs of words shared with the references",
    "rougeL": "ROUGE-L: longest common run of words, gaps allowed",
    "ece": "expected calibration error: the mean gap between the probability stated and the share that comes true",
    "ece_mass": "the same with as many rows in each bin",
    "nll": "negative log-likelihood: how surprising the truth is to it",
    "brier": "Brier score: squared distance of the probabilities from the truth",
    "aurc": "area under the risk-coverage curve: mean share of wrong answers, the surest first",
    "risk_at_90": "share of wrong answers among the surest 90 %",
    "answered": "share of rows that it does not abstain from",
    "risk": "share of wrong answers among those",
    "scope_auroc": "chance that a text that is not for the task looks stranger than one that is",
    "scope_recall": "share of the texts that are not for the task that it turns away",
    "scope_precision": "share of those that it turns away that are not for the task",
    "scope_false_alarms": "share of the texts that are for the task that it turns away",
}
"""Name of a score -> what it is. All are from 0 to 1 and better when larger, unless said otherwise; of those after
`chrf` that say how wrong something is, less is better."""


def meaning(name: str) -> str:
    """What a score is; empty for one whose name says it."""
    if name.startswith("f1_"):
        return f"F1 of the class {name.removeprefix('f1_')}"
    for start, text in (
        ("set_coverage_", "share of sets that hold the truth, where {} % were promised"),
        ("set_size_", "mean size of the sets (for a number: width of the interval) that promise {} %"),
    ):
        if name.startswith(start):
            return text.format(name.removeprefix(start))
    return MEANINGS.get(name.removesuffix("_before"), "")
