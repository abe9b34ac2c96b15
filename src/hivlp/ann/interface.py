"""Structs that Python and the kernels share, and their description: ``c/interface.h`` in Python."""

from __future__ import annotations

from ctypes import Structure, c_float, c_int32, c_int64, c_void_p, sizeof

from hivlp.ann.constants import CONSTANTS


class IvfIndex(Structure):
    """``ivf_index`` of ``c/interface.h``: the arrays that a search reads."""

    _fields_ = (
        ("query_projection", c_void_p),
        ("sign_amplitude", c_void_p),
        ("refine_step", c_void_p),
        ("router_keys", c_void_p),
        ("router_bias", c_void_p),
        ("router_scales", c_void_p),
        ("group_keys", c_void_p),
        ("group_bias", c_void_p),
        ("centroids", c_void_p),
        ("list_offsets", c_void_p),
        ("sign_codes", c_void_p),
        ("sign_scales", c_void_p),
        ("max_sign_scales", c_void_p),
        ("row_ids", c_void_p),
        ("refine_codes", c_void_p),
        ("vectors", c_void_p),
        ("vector_bytes", c_int64),
        ("count", c_int64),
        ("nlist", c_int64),
        ("dims", c_int32),
        ("sign_dims", c_int32),
        ("vector_dims", c_int32),
        ("int8_vectors", c_int32),
        ("centroid_scale", c_float),
        ("sign_scale", c_float),
        ("group_scale", c_float),
        ("refine_scale", c_float),
        ("refine_error", c_float),
    )


class IvfParams(Structure):
    """``ivf_params`` of ``c/interface.h``: the search parameters."""

    _fields_ = (
        ("nprobe", c_int64),
        ("rerank", c_int64),
        ("margin", c_float),
        ("slack", c_float),
        ("tolerance", c_float),
    )


class SearchStats(Structure):
    """``search_stats`` of ``c/interface.h``: what searches read.

    Lists probed, sign codes and refinement codes scored, vectors re-ranked.
    """

    _fields_ = (("lists", c_int64), ("sign_codes", c_int64), ("refine_codes", c_int64), ("vectors", c_int64))


def describe() -> str:
    """Offset and size of every struct field, and the value of every constant, as ``hivlp_interface`` writes them."""
    lines = []
    for name, struct in (("ivf_index", IvfIndex), ("ivf_params", IvfParams), ("search_stats", SearchStats)):
        lines.append(f"{name} {sizeof(struct)}")
        for field, *_ in struct._fields_:
            at = getattr(struct, field)
            lines.append(f"{name}.{field} {at.offset} {at.size}")
    lines += [f"{name} {float(int(text, 0) if text.isalnum() else text):.9g}" for name, text in CONSTANTS.items()]
    return "".join(f"{line}\n" for line in lines)
