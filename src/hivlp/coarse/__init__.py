"""A coarse level fitted to vectors that somebody already has, with nothing but linear algebra."""

from hivlp.coarse.choose import METHODS, Fitted, Method, fit_coarse
from hivlp.coarse.maps import CoarseMaps, NoCoarseLevel

__all__ = ["METHODS", "CoarseMaps", "Fitted", "Method", "NoCoarseLevel", "fit_coarse"]
