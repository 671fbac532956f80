"""A trained module and texts in, attributions and reports out."""

from lit_nlp.explain.attribution import Attribution, attribute, games
from lit_nlp.explain.comparison import compare_methods
from lit_nlp.explain.faithfulness import Comparison, Faithfulness, compare, measure, table
from lit_nlp.explain.influence import Influence, influences
from lit_nlp.explain.methods import METHODS
from lit_nlp.explain.rationales import Rationale, read_rationales
from lit_nlp.explain.report import write_report
from lit_nlp.explain.words import Word

__all__ = [
    "METHODS",
    "Attribution",
    "Comparison",
    "Faithfulness",
    "Influence",
    "Rationale",
    "Word",
    "attribute",
    "compare",
    "compare_methods",
    "games",
    "influences",
    "measure",
    "read_rationales",
    "table",
    "write_report",
]
