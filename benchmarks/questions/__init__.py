"""The questions of docs/findings: what is measured of a run for each, and how the answer is drawn."""

from questions import capacity, correlation, plant
from questions.question import Question, Result

QUESTIONS: dict[str, Question] = {
    "plant": plant.QUESTION,
    "capacity": capacity.QUESTION,
    "correlation": correlation.QUESTION,
}

__all__ = ["QUESTIONS", "Question", "Result"]
