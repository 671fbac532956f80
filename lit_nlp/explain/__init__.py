"""A trained module and texts in, attributions and reports out."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lit_nlp.explain.attribution import Attribution, attribute
    from lit_nlp.explain.comparison import compare_methods
    from lit_nlp.explain.faithfulness import Comparison, Faithfulness, compare, measure, table
    from lit_nlp.explain.influence import Influence, influences
    from lit_nlp.explain.methods import METHODS
    from lit_nlp.explain.options import Options
    from lit_nlp.explain.rationales import Rationale, read_rationales
    from lit_nlp.explain.report import write_report
    from lit_nlp.explain.words import Word

# Imported when first asked for, so that the command line can name the options without Captum.
_HOMES = {
    "METHODS": "methods",
    "Attribution": "attribution",
    "Comparison": "faithfulness",
    "Faithfulness": "faithfulness",
    "Influence": "influence",
    "Options": "options",
    "Rationale": "rationales",
    "Word": "words",
    "attribute": "attribution",
    "compare": "faithfulness",
    "compare_methods": "comparison",
    "influences": "influence",
    "measure": "faithfulness",
    "read_rationales": "rationales",
    "table": "faithfulness",
    "write_report": "report",
}

__all__ = [
    "METHODS",
    "Attribution",
    "Comparison",
    "Faithfulness",
    "Influence",
    "Options",
    "Rationale",
    "Word",
    "attribute",
    "compare",
    "compare_methods",
    "influences",
    "measure",
    "read_rationales",
    "table",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
