/* Phases of one query: prepare, scan the best lists, re-rank what is kept. */
#pragma once
#include "scan.h"

#define VECTORS_AHEAD 8 /* vectors that are prefetched */
#define ENDS_AHEAD 128  /* vectors whose ends are prefetched: address translation takes longer than the bytes */

/* Replace the positions of the kept codes by their row ids, each once. */
static void codes_to_rows(query_state *s, const ivf_index *ivf) {
    candidate *list = s->top.list;
    int64_t count = 0;
    memset(s->seen, 0xff, (size_t)s->slots * sizeof(uint32_t));
    for (int64_t i = 0; i < s->top.count; i++) __builtin_prefetch(ivf->row_ids + list[i].row);
    for (int64_t i = 0; i < s->top.count; i++) {
        uint32_t row = ivf->row_ids[list[i].row];
        if (row >= ivf->count) continue;
        uint64_t slot = (row * 0x9e3779b97f4a7c15u >> 32) & (uint64_t)(s->slots - 1);
        while (s->seen[slot] != UINT32_MAX && s->seen[slot] != row) slot = (slot + 1) & (uint64_t)(s->slots - 1);
        if (s->seen[slot] == row) continue;
        s->seen[slot] = row;
        list[count++].row = row;
    }
    s->top.count = count;
}

static inline void prefetch_ends(const ivf_index *ivf, int64_t row) {
    __builtin_prefetch(ivf->vectors + row * ivf->vector_bytes);
    __builtin_prefetch(ivf->vectors + (row + 1) * ivf->vector_bytes - 1);
}

/* Re-rank the kept rows by their stored vectors: the best `k`, best first, ties in the order of rows. */
static void rerank_rows(const query_state *s, const ivf_index *ivf, const float *query, int64_t k, int64_t *out_rows,
                   float *out_scores, search_stats *stats) {
    const candidate *list = s->top.list;
    int64_t count = s->top.count, found = 0;
    for (int64_t i = 0; i < count && i < ENDS_AHEAD; i++) prefetch_ends(ivf, list[i].row);
    for (int64_t i = 0; i < count; i++) {
        if (i + ENDS_AHEAD < count) prefetch_ends(ivf, list[i + ENDS_AHEAD].row);
        if (i + VECTORS_AHEAD < count)
            prefetch_far(ivf->vectors + (int64_t)list[i + VECTORS_AHEAD].row * ivf->vector_bytes, ivf->vector_bytes);
        float score = vector_dot(ivf->vectors + (int64_t)list[i].row * ivf->vector_bytes, ivf->int8_vectors, query,
                                 ivf->vector_dims);
        int64_t row = list[i].row;
        if (found == k && !(score > out_scores[k - 1] || (score == out_scores[k - 1] && row < out_rows[k - 1]))) continue;
        int64_t at = found < k ? found++ : k - 1;
        while (at > 0 && (score > out_scores[at - 1] || (score == out_scores[at - 1] && row < out_rows[at - 1]))) {
            out_scores[at] = out_scores[at - 1];
            out_rows[at] = out_rows[at - 1];
            at--;
        }
        out_scores[at] = score;
        out_rows[at] = row;
    }
    stats->vectors += count;
    for (int64_t at = found; at < k; at++) {
        out_rows[at] = -1;
        out_scores[at] = -INFINITY;
    }
}

/* Top-k of a query whose lists have been scanned. */
static void finish_query(query_state *s, const ivf_index *ivf, const float *query, int64_t k, int64_t *out_rows,
                         float *out_scores, search_stats *stats) {
    while (s->scored < s->pushed) score_pending(s, ivf);
    stats->refine_codes += s->refine_scored;
    settle_exactly(&s->top);
    codes_to_rows(s, ivf);
    rerank_rows(s, ivf, query, k, out_rows, out_scores, stats);
}

/* Prepare a query and scan its best lists; the other probes are in s->probes. Returns how many. */
static int64_t start_query(query_state *s, const ivf_index *ivf, const float *query, const ivf_params *params, int64_t codes,
                           const uint8_t *allowed, search_stats *stats) {
    quantize_query(s, ivf);
    prepare_query(s, ivf, query, params);
    clear_topk(&s->top, codes, s->window);
    s->pushed = s->scored = s->refine_scored = 0;
    return probe_best_lists(s, ivf, choose_lists(s, ivf, params->nprobe, params->margin), params->margin, allowed, stats);
}
