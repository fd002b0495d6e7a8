"""One-to-one matching of queries with the targets of an image."""

from deformdetr.matching._cost import ClassCost, FocalClassCost, SoftmaxClassCost
from deformdetr.matching._hungarian import HungarianMatcher

__all__ = ["ClassCost", "FocalClassCost", "HungarianMatcher", "SoftmaxClassCost"]
