/* Description of the shared structs and constants: a library that lays them out otherwise must not be used. */
#include "interface.h"

#include <stddef.h>
#include <stdio.h>

typedef struct { const char *name; size_t offset, size; } field;
#define FIELD(type, name) {#type "." #name, offsetof(type, name), sizeof(((type *)0)->name)}
#define STRUCT(type) {#type, SIZE_MAX, sizeof(type)}
#define CONSTANT(name) {#name, (double)(name)}

static const field FIELDS[] = {
    STRUCT(ivf_index),
    FIELD(ivf_index, query_projection), FIELD(ivf_index, sign_amplitude), FIELD(ivf_index, refine_step),
    FIELD(ivf_index, router_keys), FIELD(ivf_index, router_bias), FIELD(ivf_index, router_scales),
    FIELD(ivf_index, group_keys), FIELD(ivf_index, group_bias), FIELD(ivf_index, centroids),
    FIELD(ivf_index, list_offsets), FIELD(ivf_index, sign_codes), FIELD(ivf_index, sign_scales),
    FIELD(ivf_index, max_sign_scales), FIELD(ivf_index, row_ids), FIELD(ivf_index, refine_codes),
    FIELD(ivf_index, vectors), FIELD(ivf_index, vector_bytes), FIELD(ivf_index, count), FIELD(ivf_index, nlist),
    FIELD(ivf_index, dims), FIELD(ivf_index, sign_dims), FIELD(ivf_index, vector_dims), FIELD(ivf_index, int8_vectors),
    FIELD(ivf_index, centroid_scale),
    FIELD(ivf_index, sign_scale), FIELD(ivf_index, group_scale), FIELD(ivf_index, refine_scale),
    FIELD(ivf_index, refine_error),
    STRUCT(ivf_params),
    FIELD(ivf_params, nprobe), FIELD(ivf_params, rerank), FIELD(ivf_params, margin), FIELD(ivf_params, slack),
    FIELD(ivf_params, tolerance),
    STRUCT(search_stats),
    FIELD(search_stats, lists), FIELD(search_stats, sign_codes), FIELD(search_stats, refine_codes),
    FIELD(search_stats, vectors),
};

static const struct { const char *name; double value; } CONSTANTS[] = {
    CONSTANT(LIST_LANES), CONSTANT(CODE_LANES), CONSTANT(NO_ROW), CONSTANT(NO_NORM), CONSTANT(MAX_DIMS),
    CONSTANT(MAX_BOUND_DIMS), CONSTANT(MAX_SIGN_SLACK), CONSTANT(MAX_WINDOW), CONSTANT(WHOLE_LISTS),
    CONSTANT(GROUP_SLACK), CONSTANT(REFINE_STEP), CONSTANT(COARSE_STEP), CONSTANT(ABS_SPREAD), CONSTANT(MEAN_SIGN_SCALE),
};

const char *hivlp_interface(void) {
    static char text[4096];
    size_t at = 0;
    for (size_t i = 0; i < sizeof FIELDS / sizeof *FIELDS; i++) {
        const field *one = &FIELDS[i];
        const char *form = one->offset == SIZE_MAX ? "%s %zu\n" : "%s %zu %zu\n";
        size_t first = one->offset == SIZE_MAX ? one->size : one->offset;
        at += (size_t)snprintf(text + at, sizeof text - at, form, one->name, first, one->size);
    }
    for (size_t i = 0; i < sizeof CONSTANTS / sizeof *CONSTANTS; i++)
        at += (size_t)snprintf(text + at, sizeof text - at, "%s %.9g\n", CONSTANTS[i].name, CONSTANTS[i].value);
    return text;
}
