"""MMLU's 57 subjects in its four categories, and how well each file does in them.

The categories are those of the benchmark's authors, as lm-eval groups its MMLU tasks.
Source: Hendrycks et al. 2021, arXiv:2009.03300.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from coldpress.report.paired import Answers, wilson

CATEGORIES = {
    "STEM": (
        "abstract_algebra",
        "anatomy",
        "astronomy",
        "college_biology",
        "college_chemistry",
        "college_computer_science",
        "college_mathematics",
        "college_physics",
        "computer_security",
        "conceptual_physics",
        "electrical_engineering",
        "elementary_mathematics",
        "high_school_biology",
        "high_school_chemistry",
        "high_school_computer_science",
        "high_school_mathematics",
        "high_school_physics",
        "high_school_statistics",
        "machine_learning",
    ),
    "humanities": (
        "formal_logic",
        "high_school_european_history",
        "high_school_us_history",
        "high_school_world_history",
        "international_law",
        "jurisprudence",
        "logical_fallacies",
        "moral_disputes",
        "moral_scenarios",
        "philosophy",
        "prehistory",
        "professional_law",
        "world_religions",
    ),
    "social sciences": (
        "econometrics",
        "high_school_geography",
        "high_school_government_and_politics",
        "high_school_macroeconomics",
        "high_school_microeconomics",
        "high_school_psychology",
        "human_sexuality",
        "professional_psychology",
        "public_relations",
        "security_studies",
        "sociology",
        "us_foreign_policy",
    ),
    "other": (
        "business_ethics",
        "clinical_knowledge",
        "college_medicine",
        "global_facts",
        "human_aging",
        "management",
        "marketing",
        "medical_genetics",
        "miscellaneous",
        "nutrition",
        "professional_accounting",
        "professional_medicine",
        "virology",
    ),
}
OVERALL = "overall"
_CATEGORY_OF = {subject: name for name, subjects in CATEGORIES.items() for subject in subjects}


@dataclass(frozen=True)
class Share:
    """Questions answered right, 0–1, with its 95 % Wilson interval."""

    accuracy: float
    low: float
    high: float
    n: int


def is_mmlu(subjects: Collection[str]) -> bool:
    """Whether these are MMLU's subjects, all or some, and none of another set of questions."""
    return bool(subjects) and _CATEGORY_OF.keys() >= set(subjects)


def shares(answers: Answers, scoring: str) -> dict[str, Share]:
    """The share answered right by category and overall, each question counting the same.

    Empty where the questions are not MMLU's, or were not asked this way.
    """
    asked = [(subject, right) for (by, subject, _), right in answers.items() if by == scoring]
    if not is_mmlu({subject for subject, _ in asked}):
        return {}
    found = {}
    for name in CATEGORIES:
        of_it = [right for subject, right in asked if _CATEGORY_OF[subject] == name]
        if of_it:
            found[name] = _share(of_it)
    return found | {OVERALL: _share([right for _, right in asked])}


def _share(right: Sequence[bool]) -> Share:
    n = len(right)
    low, high = wilson(sum(right), n)
    return Share(sum(right) / n, low, high, n)
