"""The problems behind the cases: their inputs, the implementations to compare and the right results."""

from benchmarks.cases import CriterionCase, MatcherCase, ModelCase, OverheadCase, Task
from benchmarks.problems.matching import prepare_criterion, prepare_matcher
from benchmarks.problems.model import prepare_model
from benchmarks.problems.operator import prepare_operator
from benchmarks.problems.overhead import prepare_overhead
from benchmarks.problems.problem import Contender, Problem, UnavailableError

__all__ = ["Contender", "Problem", "UnavailableError", "prepare"]


def prepare(task: Task, device: str, seed: int) -> Problem:
    """Draw the inputs of a task and name the candidates, without building any."""
    match task.case:
        case OverheadCase():
            return prepare_overhead(task.case, task.direction, device, seed)
        case ModelCase():
            return prepare_model(task.case, task.dtype, task.direction, device, seed)
        case CriterionCase():
            return prepare_criterion(task.case, device, seed)
        case MatcherCase():
            return prepare_matcher(task.case, device, seed)
    return prepare_operator(task.case, task.dtype, task.direction, device, seed)
