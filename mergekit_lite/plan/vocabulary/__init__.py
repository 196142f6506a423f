"""Whether the inputs' vocabularies differ, what the result's is, and which rows go where."""

from mergekit_lite.plan.vocabulary.settle import Vocabulary, settle

__all__ = ["Vocabulary", "settle"]
