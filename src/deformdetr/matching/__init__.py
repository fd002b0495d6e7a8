"""One-to-one matching of a model's queries and the objects of an image."""

from deformdetr.matching._cost import ClassCost, FocalClassCost, SoftmaxClassCost
from deformdetr.matching._hungarian import HungarianMatcher

__all__ = ["ClassCost", "FocalClassCost", "HungarianMatcher", "SoftmaxClassCost"]
