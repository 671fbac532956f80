"""A trained module and texts in, attributions and reports out."""

from lit_nlp.explain.attribution import METHODS, Attribution, attribute
from lit_nlp.explain.report import write_report
from lit_nlp.explain.words import Word

__all__ = ["METHODS", "Attribution", "Word", "attribute", "write_report"]
