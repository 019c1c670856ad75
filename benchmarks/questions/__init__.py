"""The questions of docs/findings: what is measured of a run for each, and how the answer is drawn."""

from questions import capacity, correlation, generators, order, plant, starts
from questions.question import Question, Result

QUESTIONS: dict[str, Question] = {
    "plant": plant.QUESTION,
    "capacity": capacity.QUESTION,
    "starts": starts.QUESTION,
    "order": order.QUESTION,
    "correlation": correlation.QUESTION,
    "generators": generators.QUESTION,
}

__all__ = ["QUESTIONS", "Question", "Result"]
