/* Search of the approximate index: one query at a time, or list after list for a batch. */
#include "batch.h"

/* Top-k rows of `count` queries, (count, vector_dims) float32.
 *
 * codes: that cover `k` rows, at most params->rerank. allowed: filter mask, one bit a row, or NULL. Missing results are row -1
 * with score -inf. Returns 0, or -1 without memory or where a number is less than one. */
EXPORT int hivlp_search(const ivf_index *ivf, const float *queries, int64_t count, const ivf_params *params, int64_t codes,
                        int64_t k, const uint8_t *allowed, int64_t *out_rows, float *out_scores, search_stats *stats) {
    if (k < 1 || codes < 1 || params->rerank < codes || params->rerank > MAX_KEPT || params->nprobe < 1) return -1;
    if (count >= MIN_BATCH)
        return search_batch(ivf, queries, count, params, codes, k, allowed, out_rows, out_scores, stats);
    query_state s, *one = &s;
    if (!make_query_state(&s, ivf, params->rerank, NULL)) {
        free_query_state(&s);
        return -1;
    }
    for (int64_t i = 0; i < count; i++) {
        const float *query = queries + i * ivf->vector_dims;
        if (i % TILE == 0) project(ivf, query, count - i < TILE ? count - i : TILE, s.projections);
        s.projected = s.projections + i % TILE * ivf->dims;
        int64_t probes = start_query(&s, ivf, query, params, codes, allowed, stats);
        stream soon = stream_of(s.probes, probes, ivf);
        for (int64_t c = 0; c < probes; c++) scan_list(&one, s.probes + c, 1, ivf, &soon, allowed);
        finish_query(&s, ivf, query, k, out_rows + i * k, out_scores + i * k, stats);
    }
    free_query_state(&s);
    return 0;
}

/* Top-k among `count` given rows, without a scan of lists: refinement codes choose `rerank`, stored vectors rank them.
 *
 * positions, lists: of one code of each row. */
EXPORT int hivlp_search_rows(const ivf_index *ivf, const float *query, const uint32_t *which, const uint32_t *positions,
                             const uint32_t *lists, int64_t count, int64_t rerank, int64_t k, int64_t *out_rows,
                             float *out_scores, search_stats *stats) {
    query_state s;
    if (k < 1 || rerank < 1 || count > MAX_KEPT) return -1;
    if (!make_query_state(&s, ivf, count > 0 ? count : 1, NULL)) {
        free_query_state(&s);
        return -1;
    }
    candidate *list = s.top.list;
    project(ivf, query, 1, s.projections);
    s.projected = s.projections;
    quantize_query(&s, ivf);
    prepare_query(&s, ivf, query, &(ivf_params){0});
    for (int64_t i = 0; i < count; i++) list[i] = (candidate){0, (uint32_t)i};
    if (count > rerank) {
        for (int64_t i = 0; i < count; i++) {
            if (i + PENDING < count) prefetch(refine_code_at(ivf, positions[i + PENDING]), refine_bytes(ivf));
            list[i].score = refine_score(&s, ivf, positions[i], centroid_offset(&s, ivf, lists[i]));
        }
        stats->refine_codes += count;
        keep_best(list, count, rerank);
        count = rerank;
    }
    for (int64_t i = 0; i < count; i++) list[i].row = which[list[i].row];
    s.top.count = count;
    rerank_rows(&s, ivf, query, k, out_rows, out_scores, stats);
    free_query_state(&s);
    return 0;
}
