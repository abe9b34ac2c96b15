/* Top-k selection among candidates that come one by one. */
#pragma once
#include <stdint.h>
#include <string.h>

#include "constants.h"

typedef struct { int32_t score; uint32_t row; } candidate;

/* A total order, so that what is kept depends on no accident of arrival: higher score first, then lower row. */
static inline uint64_t rank_of(candidate c) { return (uint64_t)((uint32_t)c.score ^ 0x80000000u) << 32 | (uint32_t)~c.row; }

/* Bring the `keep` best of `count` candidates to the front, in no order. */
static void keep_best(candidate *list, int64_t count, int64_t keep) {
    int64_t left = 0, right = count - 1, wanted = keep - 1;
    while (left < right) {
        uint64_t a = rank_of(list[left]), b = rank_of(list[(left + right) / 2]), c = rank_of(list[right]);
        uint64_t pivot = a > b ? (b > c ? b : a > c ? c : a) : (a > c ? a : b > c ? c : b);
        int64_t i = left, j = right;
        while (i <= j) {
            while (rank_of(list[i]) > pivot) i++;
            while (rank_of(list[j]) < pivot) j--;
            if (i <= j) {
                candidate t = list[i];
                list[i++] = list[j];
                list[j--] = t;
            }
        }
        if (wanted <= j) right = j;
        else if (wanted >= i) left = i;
        else break;
    }
}

#define BUCKETS 1024
#define MAX_KEPT ((int64_t)1 << 32) /* candidates: more than there are codes */

/* Best `keep` candidates so far that are within a window below the `top`-th best, and some more. At least `keep` of those
 * that came reach the threshold, or it lies a window below a score that `top` have reached: candidates below it need not be
 * offered. A histogram of scores raises it all the time for next to nothing; the candidates themselves are only looked at
 * again when there is no room left. */
typedef struct {
    candidate *list;
    int64_t count, keep, top, room;
    int64_t above, above_top; /* candidates in the buckets from `lowest` up, and from `high` up */
    int32_t threshold, base, window, lowest, high;
    int shift;                /* log2 of a bucket's width in score steps; -1 before there is a histogram */
    uint32_t buckets[BUCKETS];
} topk;


static void clear_topk(topk *p, int64_t top, int32_t window) {
    p->count = 0;
    p->top = top;
    p->window = window;
    p->threshold = INT32_MIN;
    p->shift = -1;
}

/* Bucket of a score; the first also counts all below it, the last all beyond. */
static inline uint32_t *bucket_of(topk *p, int32_t score) {
    uint32_t at = score < p->base ? 0 : ((uint32_t)score - (uint32_t)p->base) >> p->shift;
    return p->buckets + (at < BUCKETS ? at : BUCKETS - 1);
}

static inline void raise_threshold(topk *p) {
    while (p->above - p->buckets[p->lowest] >= p->keep) p->above -= p->buckets[p->lowest++];
    while (p->above_top - p->buckets[p->high] >= p->top) p->above_top -= p->buckets[p->high++];
    int32_t of_top = p->base + (int32_t)((uint32_t)p->high << p->shift) - p->window;
    if (of_top > p->threshold) p->threshold = of_top;
    if (!p->lowest) return; /* there may be fewer than `keep` yet */
    int32_t threshold = p->base + (int32_t)((uint32_t)p->lowest << p->shift);
    if (threshold > p->threshold) p->threshold = threshold;
}

static inline void drop_below_threshold(topk *p) {
    int64_t count = 0;
    for (int64_t i = 0; i < p->count; i++) {
        p->list[count] = p->list[i];
        count += p->list[i].score >= p->threshold;
    }
    p->count = count;
}

/* Build the histogram anew from all candidates, at least `top` of them, and drop those below the threshold. */
static void lay_buckets(topk *p) {
    int32_t most = INT32_MIN, least = INT32_MAX;
    for (int64_t i = 0; i < p->count; i++) {
        most = p->list[i].score > most ? p->list[i].score : most;
        least = p->list[i].score < least ? p->list[i].score : least;
    }
    p->base = least;
    p->above = p->above_top = p->count;
    p->lowest = p->high = 0;
    /* Better ones may come: twice the range. */
    uint32_t apart = (uint32_t)most - (uint32_t)least, range = apart > UINT32_MAX / 2 ? UINT32_MAX : 2 * apart;
    p->shift = 0;
    while (range >> p->shift >= BUCKETS) p->shift++;
    memset(p->buckets, 0, sizeof p->buckets);
    for (int64_t i = 0; i < p->count; i++) ++*bucket_of(p, p->list[i].score);
    raise_threshold(p);
    drop_below_threshold(p);
}

/* Leave no more than the best `keep`. All of what is above the lowest bucket is among them, so that only this one's
 * candidates are compared. */
static void settle(topk *p) {
    if (p->shift < 0) {
        if (p->count <= p->keep) return;
        lay_buckets(p);
    }
    raise_threshold(p);
    drop_below_threshold(p);
    if (p->count <= p->keep) return;
    int64_t sure = 0;
    for (int64_t i = 0; i < p->count; i++) {
        candidate one = p->list[i];
        p->list[i] = p->list[sure];
        p->list[sure] = one;
        sure += bucket_of(p, one.score) > p->buckets + p->lowest;
    }
    keep_best(p->list + sure, p->count - sure, p->keep - sure);
    p->count = p->keep;
}

static inline int32_t least_of(const candidate *list, int64_t count) {
    int32_t least = INT32_MAX;
    for (int64_t i = 0; i < count; i++) least = list[i].score < least ? list[i].score : least;
    return least;
}

/* Keep exactly what the definition above says of all that came so far; the threshold is then the lowest score kept. */
static void settle_exactly(topk *p) {
    settle(p);
    if (p->count == p->keep) {
        int32_t least = least_of(p->list, p->count);
        if (least > p->threshold) p->threshold = least;
    }
    if (p->count < p->top) return;
    keep_best(p->list, p->count, p->top);
    int32_t least = least_of(p->list, p->top) - p->window;
    if (least > p->threshold) p->threshold = least;
    drop_below_threshold(p);
}

static inline void offer(topk *p, int32_t score, uint32_t position) {
    if (score < p->threshold) return; /* it went up since this block was scored */
    p->list[p->count].score = score;
    p->list[p->count++].row = position;
    if (p->shift < 0) {
        if (p->count == 2 * p->top) lay_buckets(p);
        return;
    }
    uint32_t *bucket = bucket_of(p, score);
    ++*bucket;
    p->above++;
    p->above_top += bucket >= p->buckets + p->high;
    if (p->count < p->room) return;
    raise_threshold(p);
    drop_below_threshold(p);
    if (p->count > p->room / 2) { /* a great many have the same score, or one beyond the buckets */
        settle(p);
        lay_buckets(p);
    }
}
