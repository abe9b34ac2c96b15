/* Structs that Python and the kernels share; hivlp.ann.interface has them in Python, and the two are compared at load. */
#pragma once
#include <stdint.h>

#include "constants.h"
#include "platform.h"

/* Approximate index: inverted lists of codes over stored vectors, float16 or int8. */
typedef struct {
    const uint16_t *query_projection; /* (dims, vector_dims) float16 */
    const float *sign_amplitude;      /* (sign_dims) value of a sign, times the code's sign scale */
    const float *refine_step;         /* (dims) step of a refinement code, times the code's refine scale */
    const uint8_t *router_keys;       /* blocks of LIST_LANES 4-bit keys, one a list */
    const float *router_bias;         /* (nlist) */
    const float *router_scales;       /* (nlist) step of each list's key */
    const uint8_t *group_keys;        /* blocks of LIST_LANES 8-bit keys; a group is a block of router keys */
    const float *group_bias;          /* (groups) */
    const int8_t *centroids;          /* (nlist, dims) */
    const int64_t *list_offsets;      /* (nlist + 1) first block of each list, and the end */
    const uint8_t *sign_codes;        /* blocks of CODE_LANES, list after list */
    const uint8_t *sign_scales;       /* CODE_LANES a block, in steps of sign_scale, descending in each list */
    const uint8_t *max_sign_scales;   /* (blocks) the first of each block */
    const uint32_t *row_ids;          /* CODE_LANES a block, NO_ROW where a lane is empty */
    const uint8_t *refine_codes;      /* CODE_LANES a block: 4-bit and 2-bit codes, uint16 scale in steps of refine_scale */
    const uint8_t *vectors;           /* (rows) of vector_bytes: vector_dims float16, or as many int8 and a float scale */
    int64_t vector_bytes;
    int64_t count;                    /* rows with codes; a code of any other row is skipped */
    int64_t nlist;
    int32_t dims;                     /* of the codes, a multiple of 16 */
    int32_t sign_dims;                /* first dims, a multiple of 16: they have a sign, and 4-bit refinement codes */
    int32_t vector_dims;
    int32_t int8_vectors;             /* whether vectors are int8 with a scale */
    float centroid_scale;
    float sign_scale;
    float group_scale;
    float refine_scale;
    float refine_error;               /* root mean square error of refinement codes, for a query of unit norm */
} ivf_index;

/* Search parameters; see hivlp.ann.SearchParams. */
typedef struct {
    int64_t nprobe, rerank;
    float margin, slack, tolerance;
} ivf_params;

/* What searches have read: lists probed, sign codes and refinement codes scored, vectors re-ranked. */
typedef struct { int64_t lists, sign_codes, refine_codes, vectors; } search_stats;

/* Text that describes this file and constants.h: a line for each struct with its size, for each field with its offset and
 * size, and for each constant with its value. */
EXPORT const char *hivlp_interface(void);
