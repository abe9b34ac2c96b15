/* Many queries at once: list after list, each read once for all queries of a group that want it; a part of kernels.c.
 *
 * A query finds what it would find alone, since what a pool keeps depends on no order. Codes that are read for several
 * queries come from memory once, and are taken apart once; the more queries there are, the more want the same list.
 */
#pragma once

#define GROUP 256        /* queries, at most */
#define POOLS (16 << 20) /* bytes of the pools of a group, at most */
#define ENOUGH 8         /* queries, from which on it was faster, or as fast, on all collections that were measured */

typedef struct { uint32_t list, query; int32_t blocks, offset; } wish;

/* All that a group needs. */
typedef struct {
    scratch *all;
    int size, made;
    float *z;      /* (size, dims) where each query lies */
    wish *wishes;  /* (size, most) as they were made */
    wish *sorted;  /* the same by their lists */
    int64_t *from; /* (lists + 1) where those of each list begin */
} group;

static void free_group(group *g) {
    while (g->made) free_scratch(&g->all[--g->made]);
    free(g->all); free(g->z); free(g->wishes); free(g->sorted); free(g->from);
}

static int make_group(group *g, const engine *e, int64_t count, int64_t most, int64_t last) {
    int64_t fit = POOLS / ((8 * last + SIGN_LANES) * (int64_t)sizeof(candidate));
    int64_t size = fit < ENOUGH ? ENOUGH : fit < GROUP ? fit : GROUP;
    memset(g, 0, sizeof *g);
    g->size = (int)(count < size ? count : size);
    g->all = malloc((size_t)g->size * sizeof(scratch));
    g->z = malloc((size_t)(g->size * e->dims) * sizeof(float));
    g->wishes = malloc((size_t)(g->size * most) * sizeof(wish));
    g->sorted = malloc((size_t)(g->size * most) * sizeof(wish));
    g->from = malloc((size_t)(e->lists + 1) * sizeof(int64_t));
    if (!g->all || !g->z || !g->wishes || !g->sorted || !g->from) return 0;
    while (g->made < g->size) {
        scratch *next = &g->all[g->made++];
        if (!make_scratch(next, e, last, next == g->all ? NULL : g->all)) return 0;
    }
    return 1;
}

/* Sort wishes by their lists, and those of a list by how much of it they want, most first. */
static void sort_wishes(group *g, int64_t lists, int64_t count) {
    memset(g->from, 0, (size_t)(lists + 1) * sizeof(int64_t));
    for (int64_t w = 0; w < count; w++) g->from[g->wishes[w].list + 1]++;
    for (int64_t l = 0; l < lists; l++) g->from[l + 1] += g->from[l];
    for (int64_t w = 0; w < count; w++) g->sorted[g->from[g->wishes[w].list]++] = g->wishes[w];
    for (int64_t w = 1; w < count; w++) {
        wish one = g->sorted[w];
        int64_t at = w;
        for (; at && g->sorted[at - 1].list == one.list && g->sorted[at - 1].blocks < one.blocks; at--)
            g->sorted[at] = g->sorted[at - 1];
        g->sorted[at] = one;
    }
}

/* Read each list for those that wish it. `lists` is memory for a part of each. */
static void read_wishes(group *g, const engine *e, int64_t count, part *lists, const uint8_t *allowed) {
    const wish *sorted = g->sorted;
    int64_t different = 0;
    for (int64_t w = 0; w < count; w++)
        if (!w || sorted[w].list != sorted[w - 1].list) lists[different++] = (part){sorted[w].list, sorted[w].blocks, 0};
    stream soon = stream_of(lists, different, e);
    for (int64_t w = 0, end = 0; w < count;) {
        int64_t list = sorted[w].list;
        while (end < count && sorted[end].list == list) end++;
        int64_t left = end - w;
        int again = w && sorted[w - 1].list == list; /* the cache has it */
        /* Rather three and three than four and two. */
        int many = (int)(left <= SIDE ? left : left < 2 * SIDE ? (left + 1) / 2 : SIDE);
        scratch *side[SIDE];
        part parts[SIDE] = {{0}};
        for (int q = 0; q < many; q++) {
            side[q] = &g->all[sorted[w + q].query];
            parts[q] = (part){list, sorted[w + q].blocks, sorted[w + q].offset};
        }
        w += many;
        scan_list(side, parts, many, e, again ? NULL : &soon, allowed);
    }
}

/* What hivlp_search does, in this way. */
static int search_together(const engine *e, const float *queries, int64_t count, const effort *how, int64_t wanted,
                           int64_t k, const uint8_t *allowed, int64_t *out_rows, float *out_scores, work_done *work) {
    group g;
    int made = make_group(&g, e, count, how->lists, how->last);
    for (int64_t start = 0; made && start < count; start += g.size) {
        int size = (int)(count - start < g.size ? count - start : g.size);
        int64_t wished = 0;
        project(e, queries + start * e->fine_dim, size, g.z);
        for (int i = 0; i < size; i++) {
            scratch *s = &g.all[i];
            s->z = g.z + i * e->dims;
            int64_t parts = begin(s, e, queries + (start + i) * e->fine_dim, how, wanted, allowed, work);
            for (int64_t c = 0; c < parts; c++)
                g.wishes[wished++] = (wish){(uint32_t)s->parts[c].list, (uint32_t)i, s->parts[c].blocks, s->parts[c].offset};
        }
        sort_wishes(&g, e->lists, wished);
        read_wishes(&g, e, wished, g.all->parts, allowed);
        for (int i = 0; i < size; i++) {
            int64_t at = start + i;
            finish(&g.all[i], e, queries + at * e->fine_dim, k, out_rows + at * k, out_scores + at * k, work);
        }
    }
    free_group(&g);
    return made ? 0 : -1;
}
