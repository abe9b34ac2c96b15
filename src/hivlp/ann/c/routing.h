/* Router: which inverted lists a query probes. */
#pragma once
#include <float.h>

#include "query.h"

#define GROUPS_AHEAD 2 /* groups whose router keys are prefetched */

/* 8-bit keys and their biases. */
typedef struct { const uint8_t *keys; const float *bias; float scale; int64_t count; } key_set;

/* Scores of the keys of one block; returns how many there are. */
static int score_keys(const key_set *k, int64_t block, const int8_t *query, int dims, int32_t shift, float unit,
                      float *out) {
    int32_t sums[LIST_LANES];
    int64_t first = block * LIST_LANES;
    int lanes = (int)(k->count - first < LIST_LANES ? k->count - first : LIST_LANES);
    use.key_dots(k->keys + first * dims, query, dims / 4, sums);
    for (int l = 0; l < lanes; l++) out[l] = (float)(sums[l] - shift) * unit + k->bias[first + l];
    return lanes;
}

/* Router scores of one group of lists; -inf where there is no list. */
static void score_lists(const ivf_index *ivf, int64_t block, const int8_t *query, int32_t shift, float unit, float *out) {
    int32_t sums[LIST_LANES];
    int64_t first = block * LIST_LANES, lanes = ivf->nlist - first;
    const float *steps = ivf->router_scales + first, *bias = ivf->router_bias + first;
    use.router_dots(ivf->router_keys + first * ivf->dims / 2, query, ivf->dims / 2, sums);
    if (lanes >= LIST_LANES) { /* as many as the compiler knows of */
        for (int l = 0; l < LIST_LANES; l++) out[l] = (float)(2 * sums[l] - shift) * (unit * steps[l]) + bias[l];
        return;
    }
    for (int l = 0; l < LIST_LANES; l++)
        out[l] = l < lanes ? (float)(2 * sums[l] - shift) * (unit * steps[l]) + bias[l] : -INFINITY;
}

/* Bring the WHOLE_LISTS best of some candidates to the front, best first; the others keep their order. */
static void best_to_front(candidate *list, int64_t count) {
    candidate best[WHOLE_LISTS];
    int64_t few = 0, to = count;
    for (int64_t i = 0; i < count; i++) {
        if (few == WHOLE_LISTS && rank_of(list[i]) < rank_of(best[WHOLE_LISTS - 1])) continue;
        int64_t at = few < WHOLE_LISTS ? few++ : WHOLE_LISTS - 1;
        for (; at && rank_of(list[i]) > rank_of(best[at - 1]); at--) best[at] = best[at - 1];
        best[at] = list[i];
    }
    if (!few) return;
    uint64_t last = rank_of(best[few - 1]); /* no two ranks are the same */
    for (int64_t i = count; i-- > 0;)
        if (rank_of(list[i]) < last) list[--to] = list[i];
    memcpy(list, best, (size_t)few * sizeof(candidate));
}

/* Lists to probe, in s->ranking: at most `most`, and none whose score is more than `margin` below the best; returns how many.
 * Only lists of groups that may hold such are scored. The best WHOLE_LISTS come first, the others in the order of memory. */
static int64_t choose_lists(query_state *s, const ivf_index *ivf, int64_t most, float margin) {
    int64_t groups = (ivf->nlist + LIST_LANES - 1) / LIST_LANES, seen = 0, chosen = 0;
    int32_t shift = 0;
    for (int j = 0; j < ivf->dims; j++) shift += s->query_int8[j];
    if (margin > FLT_MAX) margin = FLT_MAX; /* -inf, which fills the last block, is below any */
    float best = -INFINITY, *score = s->group_scores, of_list[LIST_LANES];
    key_set of_groups = {ivf->group_keys, ivf->group_bias, ivf->group_scale, groups};
    for (int64_t b = 0; b < groups; b += LIST_LANES)
        score_keys(&of_groups, b / LIST_LANES, s->query_int8, ivf->dims, 128 * shift, s->query_scale * ivf->group_scale,
                   score + b);
    for (int64_t g = 0; g < groups; g++) best = score[g] > best ? score[g] : best;
    float least = best - margin - (float)GROUP_SLACK;
    best = -INFINITY;
    int64_t worth = 0;
    for (int64_t g = 0; g < groups; g++) {
        s->groups[worth] = (uint32_t)g;
        worth += score[g] >= least;
    }
    for (int64_t i = 0; i < worth; i++) {
        int64_t g = s->groups[i];
        if (i + GROUPS_AHEAD < worth)
            prefetch(ivf->router_keys + (int64_t)s->groups[i + GROUPS_AHEAD] * LIST_LANES * ivf->dims / 2,
                     LIST_LANES * ivf->dims / 2);
        score_lists(ivf, g, s->query_int8, 15 * shift, s->query_scale / 2, of_list);
        for (int l = 0; l < LIST_LANES; l++) {
            best = of_list[l] > best ? of_list[l] : best;
            s->ranking[seen++] = (candidate){ordered(of_list[l]), (uint32_t)(g * LIST_LANES + l)};
        }
    }
    /* Lanes that fill the last block are no lists, whatever their scores are compared with. */
    while (seen && s->ranking[seen - 1].row >= ivf->nlist) seen--;
    s->best_list = best;
    int32_t threshold = ordered(best - margin);
    for (int64_t i = 0; i < seen; i++) {
        s->ranking[chosen] = s->ranking[i];
        chosen += s->ranking[i].score >= threshold;
    }
    if (chosen > most) {
        keep_best(s->ranking, chosen, most);
        chosen = most;
    }
    best_to_front(s->ranking, chosen);
    return chosen;
}

/* Router score of a list in s->ranking. */
static inline float list_score(candidate one) {
    int32_t bits = one.score ^ ((one.score >> 31) & 0x7fffffff);
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Number of a list's first blocks with codes that reach the threshold if they lie so many standard deviations, for a code of
 * their sign scale, above their centroid. */
static int32_t blocks_in_reach(const query_state *s, const ivf_index *ivf, int64_t list, int64_t shortfall, float deviations) {
    int64_t block = ivf->list_offsets[list], end = ivf->list_offsets[list + 1];
    if (shortfall <= 0) return (int32_t)(end - block);
    float least = (float)shortfall / (deviations * (float)s->deviation);
    while (block < end && (float)ivf->max_sign_scales[block] >= least) block++;
    return (int32_t)(block - ivf->list_offsets[list]);
}
