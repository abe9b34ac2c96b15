"""A coarse level fitted to vectors that somebody already has, with nothing but linear algebra."""

from hivlp.fit.choose import METHODS, Fitted, Method, fit_coarse
from hivlp.fit.maps import CoarseMaps

__all__ = ["METHODS", "CoarseMaps", "Fitted", "Method", "fit_coarse"]
