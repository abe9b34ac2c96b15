/* Batch search: list after list, each read once for all queries of a batch that probe it.
 *
 * A query finds what it would find alone, since what is kept does not depend on the order of codes. The more queries there
 * are, the more probe the same list: its codes come from memory once, and are unpacked once for up to TOGETHER queries.
 */
#pragma once
#include "rerank.h"

#define MAX_BATCH 256         /* queries */
#define TOPK_BYTES (16 << 20) /* of the candidates of a batch, at most */
#define MIN_BATCH 8           /* queries: from here on as fast, or faster, on all collections that were measured */

/* Probe of a list by one query of the batch. */
typedef struct { uint32_t list, query; int32_t blocks, offset; } request;

/* Memory of a batch. */
typedef struct {
    query_state *all;
    int size, made;
    float *projections; /* (size, dims) of the queries */
    request *requests;  /* (size, nprobe) in the order of queries */
    request *sorted;    /* (size, nprobe) in the order of lists */
    int64_t *from;      /* (nlist + 1) first request of each list in `sorted` */
} batch;

static void free_batch(batch *g) {
    while (g->made) free_query_state(&g->all[--g->made]);
    free(g->all); free(g->projections); free(g->requests); free(g->sorted); free(g->from);
}

static int make_batch(batch *g, const ivf_index *ivf, int64_t count, int64_t most, int64_t last) {
    int64_t fit = TOPK_BYTES / ((8 * last + CODE_LANES) * (int64_t)sizeof(candidate));
    int64_t size = fit < MIN_BATCH ? MIN_BATCH : fit < MAX_BATCH ? fit : MAX_BATCH;
    memset(g, 0, sizeof *g);
    g->size = (int)(count < size ? count : size);
    g->all = malloc((size_t)g->size * sizeof(query_state));
    g->projections = malloc((size_t)(g->size * ivf->dims) * sizeof(float));
    g->requests = malloc((size_t)(g->size * most) * sizeof(request));
    g->sorted = malloc((size_t)(g->size * most) * sizeof(request));
    g->from = malloc((size_t)(ivf->nlist + 1) * sizeof(int64_t));
    if (!g->all || !g->projections || !g->requests || !g->sorted || !g->from) return 0;
    while (g->made < g->size) {
        query_state *next = &g->all[g->made++];
        if (!make_query_state(next, ivf, last, next == g->all ? NULL : g->all)) return 0;
    }
    return 1;
}

/* Sort requests by list, and those of a list by their number of blocks, most first. */
static void sort_requests(batch *g, int64_t lists, int64_t count) {
    memset(g->from, 0, (size_t)(lists + 1) * sizeof(int64_t));
    for (int64_t w = 0; w < count; w++) g->from[g->requests[w].list + 1]++;
    for (int64_t l = 0; l < lists; l++) g->from[l + 1] += g->from[l];
    for (int64_t w = 0; w < count; w++) g->sorted[g->from[g->requests[w].list]++] = g->requests[w];
    for (int64_t w = 1; w < count; w++) {
        request one = g->sorted[w];
        int64_t at = w;
        for (; at && g->sorted[at - 1].list == one.list && g->sorted[at - 1].blocks < one.blocks; at--)
            g->sorted[at] = g->sorted[at - 1];
        g->sorted[at] = one;
    }
}

/* Scan each list for the queries that probe it. `lists` is memory for a probe of each. */
static void scan_requests(batch *g, const ivf_index *ivf, int64_t count, probe *lists, const uint8_t *allowed) {
    const request *sorted = g->sorted;
    int64_t different = 0;
    for (int64_t w = 0; w < count; w++)
        if (!w || sorted[w].list != sorted[w - 1].list) lists[different++] = (probe){sorted[w].list, sorted[w].blocks, 0};
    stream soon = stream_of(lists, different, ivf);
    for (int64_t w = 0, end = 0; w < count;) {
        int64_t list = sorted[w].list;
        while (end < count && sorted[end].list == list) end++;
        int64_t left = end - w;
        int again = w && sorted[w - 1].list == list; /* already in the cache */
        /* Six requests are split 3 + 3, not 4 + 2. */
        int many = (int)(left <= TOGETHER ? left : left < 2 * TOGETHER ? (left + 1) / 2 : TOGETHER);
        query_state *side[TOGETHER];
        probe probes[TOGETHER] = {{0}};
        for (int q = 0; q < many; q++) {
            side[q] = &g->all[sorted[w + q].query];
            probes[q] = (probe){list, sorted[w + q].blocks, sorted[w + q].offset};
        }
        w += many;
        scan_list(side, probes, many, ivf, again ? NULL : &soon, allowed);
    }
}

/* hivlp_search for a batch. */
static int search_batch(const ivf_index *ivf, const float *queries, int64_t count, const ivf_params *params, int64_t codes,
                           int64_t k, const uint8_t *allowed, int64_t *out_rows, float *out_scores, search_stats *stats) {
    batch g;
    int made = make_batch(&g, ivf, count, params->nprobe, params->rerank);
    for (int64_t start = 0; made && start < count; start += g.size) {
        int size = (int)(count - start < g.size ? count - start : g.size);
        int64_t requested = 0;
        project(ivf, queries + start * ivf->vector_dims, size, g.projections);
        for (int i = 0; i < size; i++) {
            query_state *s = &g.all[i];
            s->projected = g.projections + i * ivf->dims;
            int64_t probes = start_query(s, ivf, queries + (start + i) * ivf->vector_dims, params, codes, allowed, stats);
            for (int64_t c = 0; c < probes; c++)
                g.requests[requested++] =
                    (request){(uint32_t)s->probes[c].list, (uint32_t)i, s->probes[c].blocks, s->probes[c].offset};
        }
        sort_requests(&g, ivf->nlist, requested);
        scan_requests(&g, ivf, requested, g.all->probes, allowed);
        for (int i = 0; i < size; i++) {
            int64_t at = start + i;
            finish_query(&g.all[i], ivf, queries + at * ivf->vector_dims, k, out_rows + at * k, out_scores + at * k, stats);
        }
    }
    free_batch(&g);
    return made ? 0 : -1;
}
