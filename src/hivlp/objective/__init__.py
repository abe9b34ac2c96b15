"""The hierarchical retrieval objective: what each level learns from the pairs, and what coarse learns from fine.

HiVLP (arXiv 2205.12105) trains one short and one long representation for coarse-to-fine retrieval but does not publish
its losses; these are ours, each term with its own source.
"""

from hivlp.objective.config import ObjectiveConfig
from hivlp.objective.hierarchical import HierarchicalObjective

__all__ = ["HierarchicalObjective", "ObjectiveConfig"]
