"""An index, and questions whose pages are known -> how often, and how high, those pages are found."""

from llama_index_colqwen.evaluation.answer import Answer
from llama_index_colqwen.evaluation.evaluation import Evaluation, evaluate
from llama_index_colqwen.evaluation.figures import Figure
from llama_index_colqwen.evaluation.questions import Question, read_questions

__all__ = ["Answer", "Evaluation", "Figure", "Question", "evaluate", "read_questions"]
