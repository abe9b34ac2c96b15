/* Assignment of vectors to their nearest centroids. */
#include <stdlib.h>

#include "routing.h"

/* For each of `count` vectors, (count, dims) float32, the lists of its `assignments` highest key scores, best first, from the
 * `most` best groups. Returns 0, or -1 without memory. */
EXPORT int hivlp_assign(const uint8_t *keys, const float *bias, float key_scale, int64_t nlist,
                        const uint8_t *group_keys, const float *group_bias, float group_scale, int64_t most, int dims,
                        const float *vectors, int64_t count, int assignments, int32_t *out) {
    int64_t groups = (nlist + LIST_LANES - 1) / LIST_LANES;
    key_set all = {keys, bias, key_scale, nlist}, of_groups = {group_keys, group_bias, group_scale, groups};
    candidate *order = malloc((size_t)groups * sizeof(candidate));
    int8_t *quantized = malloc((size_t)dims);
    float *best_score = malloc((size_t)assignments * sizeof(float));
    if (!order || !quantized || !best_score) { free(order); free(quantized); free(best_score); return -1; }
    for (int64_t g = 0; g < groups; g++) order[g].row = (uint32_t)g;
    for (int64_t i = 0; i < count; i++) {
        float unit = to_int8(vectors + i * dims, NULL, dims, quantized), scores[LIST_LANES];
        int32_t shift = 0, filled = 0;
        for (int j = 0; j < dims; j++) shift += quantized[j];
        shift *= 128;
        if (most < groups) {
            for (int64_t b = 0; b < groups; b += LIST_LANES) {
                int lanes = score_keys(&of_groups, b / LIST_LANES, quantized, dims, shift, unit * group_scale, scores);
                for (int l = 0; l < lanes; l++) order[b + l] = (candidate){ordered(scores[l]), (uint32_t)(b + l)};
            }
            keep_best(order, groups, most);
        }
        int32_t *best = out + i * assignments;
        for (int64_t g = 0; g < most && g < groups; g++) {
            int lanes = score_keys(&all, order[g].row, quantized, dims, shift, unit * key_scale, scores);
            for (int l = 0; l < lanes; l++) {
                if (filled == assignments && !(scores[l] > best_score[assignments - 1])) continue;
                int at = filled < assignments ? filled++ : assignments - 1;
                while (at > 0 && scores[l] > best_score[at - 1]) {
                    best_score[at] = best_score[at - 1];
                    best[at] = best[at - 1];
                    at--;
                }
                best_score[at] = scores[l];
                best[at] = (int32_t)(order[g].row * LIST_LANES) + l;
            }
        }
    }
    free(order);
    free(quantized);
    free(best_score);
    return 0;
}
