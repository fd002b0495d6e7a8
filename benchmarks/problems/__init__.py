"""What the cases mean: their inputs, the implementations that are compared, and the results that are right."""

from benchmarks.cases import CriterionCase, MatcherCase, ModelCase, OperatorCase, Task
from benchmarks.problems.contender import Candidate, Contender, Problem, UnavailableError
from benchmarks.problems.matching import prepare_criterion, prepare_matcher
from benchmarks.problems.model import prepare_model
from benchmarks.problems.operator import prepare_operator

__all__ = ["Candidate", "Contender", "Problem", "UnavailableError", "prepare"]


def prepare(task: Task, device: str, seed: int) -> Problem:
    """Draw the inputs of a task and name the candidates; nothing of theirs is built yet."""
    match task.case:
        case OperatorCase():
            return prepare_operator(task.case, task.dtype, task.direction, device, seed)
        case ModelCase():
            return prepare_model(task.case, task.dtype, task.direction, device, seed)
        case MatcherCase():
            return prepare_matcher(task.case, device, seed)
        case CriterionCase():
            return prepare_criterion(task.case, device, seed)
    raise TypeError(f"no problems of kind {type(task.case).__name__}")
