"""Fine-tune pretrained transformers with Lightning, and see why they decide as they do."""

# Not `typing`'s, whose import would cost more than all else here; type checkers go by the name.
TYPE_CHECKING = False

if TYPE_CHECKING:
    from lit_nlp.callbacks.attribution import AttributionCallback
    from lit_nlp.data.generative_question_answering import GenerativeQuestionAnsweringDataModule
    from lit_nlp.data.language_modeling import LanguageModelingDataModule
    from lit_nlp.data.question_answering import QuestionAnsweringDataModule
    from lit_nlp.data.sentiment import SentimentDataModule
    from lit_nlp.data.text_classification import TextClassificationDataModule
    from lit_nlp.data.translation import TranslationDataModule
    from lit_nlp.explain.attribution import attribute
    from lit_nlp.explain.report import write_report
    from lit_nlp.modules.generative_question_answering import GenerativeQuestionAnsweringModule
    from lit_nlp.modules.language_modeling import LanguageModelingModule
    from lit_nlp.modules.question_answering import QuestionAnsweringModule
    from lit_nlp.modules.sentiment import SentimentModule
    from lit_nlp.modules.text_classification import TextClassificationModule
    from lit_nlp.modules.translation import TranslationModule

__version__ = "0.1.0"

# Imported when first asked for: `import lit_nlp` costs milliseconds, and one part drags in no other's needs.
_HOMES = {
    "AttributionCallback": "lit_nlp.callbacks.attribution",
    "GenerativeQuestionAnsweringDataModule": "lit_nlp.data.generative_question_answering",
    "GenerativeQuestionAnsweringModule": "lit_nlp.modules.generative_question_answering",
    "LanguageModelingDataModule": "lit_nlp.data.language_modeling",
    "LanguageModelingModule": "lit_nlp.modules.language_modeling",
    "QuestionAnsweringDataModule": "lit_nlp.data.question_answering",
    "QuestionAnsweringModule": "lit_nlp.modules.question_answering",
    "SentimentDataModule": "lit_nlp.data.sentiment",
    "SentimentModule": "lit_nlp.modules.sentiment",
    "TextClassificationDataModule": "lit_nlp.data.text_classification",
    "TextClassificationModule": "lit_nlp.modules.text_classification",
    "TranslationDataModule": "lit_nlp.data.translation",
    "TranslationModule": "lit_nlp.modules.translation",
    "attribute": "lit_nlp.explain.attribution",
    "write_report": "lit_nlp.explain.report",
}

__all__ = [
    "AttributionCallback",
    "GenerativeQuestionAnsweringDataModule",
    "GenerativeQuestionAnsweringModule",
    "LanguageModelingDataModule",
    "LanguageModelingModule",
    "QuestionAnsweringDataModule",
    "QuestionAnsweringModule",
    "SentimentDataModule",
    "SentimentModule",
    "TextClassificationDataModule",
    "TextClassificationModule",
    "TranslationDataModule",
    "TranslationModule",
    "attribute",
    "write_report",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
