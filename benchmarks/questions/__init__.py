"""The questions of docs/findings: what is measured of a run for each, and how the answer is drawn."""

from questions import capacity, order
from questions.question import Question, Result

QUESTIONS: dict[str, Question] = {
    "capacity": capacity.QUESTION,
    "order": order.QUESTION,
}

__all__ = ["QUESTIONS", "Question", "Result"]
