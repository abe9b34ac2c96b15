/* Which lists may hold what a query or an item is near to; a part of kernels.c. */
#pragma once
#include <float.h>

#include "query.h"

#define GROUPS_AHEAD 2 /* groups whose keys memory is asked for before they are needed */
#define FIRST 8        /* of the lists, which are read in order of their scores: they raise the bar */

/* Keys with their biases, whose products with small integers are taken. */
typedef struct { const uint8_t *keys; const float *bias; float scale; int64_t count; } key_set;

/* Scores of the keys of one block; returns how many there are. */
static int score_keys(const key_set *k, int64_t block, const int8_t *small, int dims, int32_t shift, float unit,
                      float *out) {
    int32_t sums[LANES];
    int64_t first = block * LANES;
    int lanes = (int)(k->count - first < LANES ? k->count - first : LANES);
    use.keys(k->keys + first * dims, small, dims / 4, sums);
    for (int l = 0; l < lanes; l++) out[l] = (float)(sums[l] - shift) * unit + k->bias[first + l];
    return lanes;
}

/* The same of one block of lists, whose keys are nibbles; -inf where there is no list. */
static void score_lists(const engine *e, int64_t block, const int8_t *small, int32_t shift, float unit, float *out) {
    int32_t sums[LANES];
    int64_t first = block * LANES, lanes = e->lists - first;
    const float *steps = e->key_steps + first, *bias = e->key_bias + first;
    use.nibble_keys(e->keys + first * e->dims / 2, small, e->dims / 2, sums);
    if (lanes >= LANES) { /* as many as the compiler knows of */
        for (int l = 0; l < LANES; l++) out[l] = (float)(2 * sums[l] - shift) * (unit * steps[l]) + bias[l];
        return;
    }
    for (int l = 0; l < LANES; l++)
        out[l] = l < lanes ? (float)(2 * sums[l] - shift) * (unit * steps[l]) + bias[l] : -INFINITY;
}

/* Bring the FIRST best of some candidates to the front, best first; the others keep their order. */
static void best_to_front(candidate *list, int64_t count) {
    candidate best[FIRST];
    int64_t few = 0, to = count;
    for (int64_t i = 0; i < count; i++) {
        if (few == FIRST && rank_of(list[i]) < rank_of(best[FIRST - 1])) continue;
        int64_t at = few < FIRST ? few++ : FIRST - 1;
        for (; at && rank_of(list[i]) > rank_of(best[at - 1]); at--) best[at] = best[at - 1];
        best[at] = list[i];
    }
    if (!few) return;
    uint64_t last = rank_of(best[few - 1]); /* no two ranks are the same */
    for (int64_t i = count; i-- > 0;)
        if (rank_of(list[i]) < last) list[--to] = list[i];
    memcpy(list, best, (size_t)few * sizeof(candidate));
}

#define SPARE 1.0f /* how much further than the margin a group may be below the best one */

/* Lists worth reading: at most `most`, and none whose score is more than `margin` below the best. Only lists of groups
 * that may hold such are looked at. A few of the best come first, the others as they lie in memory. */
static int64_t choose_lists(scratch *s, const engine *e, int64_t most, float margin) {
    int64_t groups = (e->lists + LANES - 1) / LANES, seen = 0, chosen = 0;
    int32_t shift = 0;
    for (int j = 0; j < e->dims; j++) shift += s->small[j];
    if (margin > FLT_MAX) margin = FLT_MAX; /* what fills the last block is below any */
    float best = -INFINITY, *score = s->scores, of_list[LANES];
    key_set of_groups = {e->group_keys, e->group_bias, e->group_scale, groups};
    for (int64_t b = 0; b < groups; b += LANES)
        score_keys(&of_groups, b / LANES, s->small, e->dims, 128 * shift, s->small_scale * e->group_scale, score + b);
    for (int64_t g = 0; g < groups; g++) best = score[g] > best ? score[g] : best;
    float least = best - margin - SPARE;
    best = -INFINITY;
    int64_t worth = 0;
    for (int64_t g = 0; g < groups; g++) {
        s->worth[worth] = (uint32_t)g;
        worth += score[g] >= least;
    }
    for (int64_t i = 0; i < worth; i++) {
        int64_t g = s->worth[i];
        if (i + GROUPS_AHEAD < worth)
            prefetch(e->keys + (int64_t)s->worth[i + GROUPS_AHEAD] * LANES * e->dims / 2, LANES * e->dims / 2);
        score_lists(e, g, s->small, 15 * shift, s->small_scale / 2, of_list);
        for (int l = 0; l < LANES; l++) {
            best = of_list[l] > best ? of_list[l] : best;
            s->order[seen++] = (candidate){ordered(of_list[l]), (uint32_t)(g * LANES + l)};
        }
    }
    /* The last ones, if they fill a block: no list, whatever its score is compared with. */
    while (seen && s->order[seen - 1].row >= e->lists) seen--;
    s->best = best;
    int32_t bar = ordered(best - margin);
    for (int64_t i = 0; i < seen; i++) {
        s->order[chosen] = s->order[i];
        chosen += s->order[i].score >= bar;
    }
    if (chosen > most) {
        keep_best(s->order, chosen, most);
        chosen = most;
    }
    best_to_front(s->order, chosen);
    return chosen;
}

/* What the router says of a list that is in s->order. */
static inline float said_of(candidate one) {
    int32_t bits = one.score ^ ((one.score >> 31) & 0x7fffffff);
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* How many blocks of a list have codes of which enough is left to be looked at: those that reach the bar if they have so
 * many standard deviations of a code of their length. */
static int32_t blocks_within(const scratch *s, const engine *e, int64_t list, int64_t short_of_bar, float deviations) {
    int64_t block = e->starts[list], end = e->starts[list + 1];
    if (short_of_bar <= 0) return (int32_t)(end - block);
    float least = (float)short_of_bar / (deviations * (float)s->deviation);
    while (block < end && (float)e->heads[block] >= least) block++;
    return (int32_t)(block - e->starts[list]);
}

/* For each of `count` items, (count, dims) float32, its `copies` best lists by key score, best first, from the `most`
 * best groups. */
EXPORT int hivlp_assign(const uint8_t *keys, const float *bias, float key_scale, int64_t lists,
                        const uint8_t *group_keys, const float *group_bias, float group_scale, int64_t most, int dims,
                        const float *items, int64_t count, int copies, int32_t *out) {
    int64_t groups = (lists + LANES - 1) / LANES;
    key_set all = {keys, bias, key_scale, lists}, of_groups = {group_keys, group_bias, group_scale, groups};
    candidate *order = malloc((size_t)groups * sizeof(candidate));
    int8_t *small = malloc((size_t)dims);
    float *best_score = malloc((size_t)copies * sizeof(float));
    if (!order || !small || !best_score) { free(order); free(small); free(best_score); return -1; }
    for (int64_t g = 0; g < groups; g++) order[g].row = (uint32_t)g;
    for (int64_t i = 0; i < count; i++) {
        float unit = to_small(items + i * dims, NULL, dims, small), scores[LANES];
        int32_t shift = 0, filled = 0;
        for (int j = 0; j < dims; j++) shift += small[j];
        shift *= 128;
        if (most < groups) {
            for (int64_t b = 0; b < groups; b += LANES) {
                int lanes = score_keys(&of_groups, b / LANES, small, dims, shift, unit * group_scale, scores);
                for (int l = 0; l < lanes; l++) order[b + l] = (candidate){ordered(scores[l]), (uint32_t)(b + l)};
            }
            keep_best(order, groups, most);
        }
        int32_t *best = out + i * copies;
        for (int64_t g = 0; g < most && g < groups; g++) {
            int lanes = score_keys(&all, order[g].row, small, dims, shift, unit * key_scale, scores);
            for (int l = 0; l < lanes; l++) {
                if (filled == copies && !(scores[l] > best_score[copies - 1])) continue;
                int at = filled < copies ? filled++ : copies - 1;
                while (at > 0 && scores[l] > best_score[at - 1]) {
                    best_score[at] = best_score[at - 1];
                    best[at] = best[at - 1];
                    at--;
                }
                best_score[at] = scores[l];
                best[at] = (int32_t)(order[g].row * LANES) + l;
            }
        }
    }
    free(order);
    free(small);
    free(best_score);
    return 0;
}
