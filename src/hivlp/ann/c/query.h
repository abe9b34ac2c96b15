/* State of one query: its quantised forms, lookup table and score units, and the memory that a search needs. */
#pragma once
#include <math.h>
#include <stdlib.h>

#include "interface.h"
#include "kernels.h"
#include "topk.h"

static inline int32_t ordered(float value) {
    /* Floats as integers of the same order. */
    int32_t bits;
    memcpy(&bits, &value, 4);
    return bits ^ ((bits >> 31) & 0x7fffffff);
}

#define MAX_STEPS (1 << 28) /* of a term of a score: no sum of two or three terms wraps */

/* Rounded to an integer number of score steps, and clamped; NaN becomes MAX_STEPS. */
static inline int32_t steps_of(float value) {
    value = value < MAX_STEPS ? value : MAX_STEPS; /* so written, one instruction each; fminf takes several */
    return (int32_t)lrintf(value > -MAX_STEPS ? value : -MAX_STEPS);
}

static inline int passes(const uint8_t *allowed, uint32_t row) {
    return allowed == NULL || (allowed[row >> 3] >> (row & 7) & 1);
}

/* Sign code that passed the threshold and waits for its refinement code, whose memory has been prefetched. */
typedef struct { uint32_t position; int32_t offset, most; } pending_code;
#define PENDING 16

/* Prefix of a list to scan, and the centroid's term of its scores. */
typedef struct { int64_t list; int32_t blocks, offset; } probe;

#define MAX_LUT_OFFSET 16384 /* half of the largest sum of MAX_DIMS dims */
#define LEAST (1 << 24) /* no sign score is below minus this, the centroid's term left out */
#define TILE 4 /* queries projected together: converting the projection's float16 takes longer than the products */

/* One query. Scores are integers; a score step is a step of the LUT times a step of the sign scales. */
typedef struct {
    float *projections;     /* (TILE, dims) of this query and the next ones */
    const float *projected; /* (dims) of this query */
    int8_t *query_int8;     /* (dims) projected, in steps of query_scale: for keys and centroids */
    int8_t *query_refine;   /* (dims) projected times refine_step, in steps of its own: for refinement codes */
    uint8_t *lut;           /* (sign_dims / 16, 128) lookup table for sign codes */
    float *group_scores;    /* (groups) */
    uint32_t *groups;       /* (groups) those whose lists are scored */
    candidate *ranking;     /* (nlist) lists by their router scores */
    probe *probes;          /* (nlist) */
    topk top;
    uint32_t *seen;         /* (slots) hash table of row ids */
    int64_t slots;          /* a power of two */
    pending_code pending[PENDING]; /* ring buffer */
    int64_t pushed, scored;        /* codes put into the ring, and taken out of it */
    int64_t refine_scored;         /* refinement codes */
    float query_scale;
    float centroid_unit;    /* score steps for each step of an int8 product with a centroid */
    float refine_unit;      /* score steps for each step of a product with a refinement code, times its scale */
    int32_t lut_offset;     /* middle of the LUT's sums, in steps of the LUT */
    int32_t sign_slack;     /* added to sign scores, in steps of the LUT */
    int32_t refine_offset;  /* middle of twice the refinement codes' products */
    int32_t deviation;      /* standard deviation of a residual's product, in steps of the LUT, for a sign scale of one step */
    int32_t window;         /* score steps below the k-th refinement score that a code may lie and still be re-ranked */
    float best_list;        /* router score of the best list */
    int borrows;            /* group_scores, groups, ranking, probes and seen are another state's */
} query_state;

static void free_query_state(query_state *s) {
    free(s->projections); free(s->query_int8); free(s->query_refine); free(s->lut); free(s->top.list);
    if (!s->borrows) {
        free(s->group_scores); free(s->groups); free(s->ranking); free(s->probes); free(s->seen);
    }
}

/* Memory for one query at a time; what is not needed from one phase to the next is shared with `with`, unless NULL. */
static int make_query_state(query_state *s, const ivf_index *ivf, int64_t keep, const query_state *with) {
    int64_t lanes = (ivf->nlist + LIST_LANES - 1) / LIST_LANES * LIST_LANES + LIST_LANES;
    memset(s, 0, sizeof *s);
    s->projections = malloc((size_t)ivf->dims * TILE * sizeof(float));
    s->query_int8 = malloc((size_t)ivf->dims);
    s->query_refine = calloc((size_t)ivf->dims + 64, 1);
    s->lut = malloc((size_t)ivf->sign_dims * 8 + 64);
    s->top.keep = keep;
    s->top.room = 8 * keep + CODE_LANES;
    s->top.list = malloc((size_t)s->top.room * sizeof(candidate));
    for (s->slots = 64; s->slots < 2 * keep; s->slots *= 2) {}
    s->borrows = with != NULL;
    s->group_scores = with ? with->group_scores : malloc((size_t)lanes * sizeof(float));
    s->groups = with ? with->groups : malloc((size_t)lanes * sizeof(uint32_t));
    s->ranking = with ? with->ranking : malloc((size_t)lanes * sizeof(candidate));
    s->probes = with ? with->probes : malloc((size_t)lanes * sizeof(probe));
    s->seen = with ? with->seen : malloc((size_t)s->slots * sizeof(uint32_t));
    return s->projections && s->query_int8 && s->query_refine && s->lut && s->group_scores && s->groups && s->ranking &&
           s->probes && s->top.list && s->seen;
}

static float to_int8(const float *values, const float *weights, int count, int8_t *out) {
    float most = 1e-20f;
    for (int j = 0; j < count; j++) {
        float value = fabsf(weights ? values[j] * weights[j] : values[j]);
        if (value > most) most = value;
    }
    float factor = 127.0f / most;
    for (int j = 0; j < count; j++) out[j] = (int8_t)lrintf((weights ? values[j] * weights[j] : values[j]) * factor);
    return most / 127.0f;
}

/* Projections of `count` queries into the space of the codes, (count, dims). */
static void project(const ivf_index *ivf, const float *queries, int64_t count, float *projected) {
    for (int64_t i = 0; i < count;) {
        int many = count - i < TILE ? 1 : TILE;
        for (int j = 0; j < ivf->dims; j += 4) {
            float out[4 * TILE];
            (many == 1 ? use.fp16_dot4 : use.fp16_dot16)(ivf->query_projection + (int64_t)j * ivf->vector_dims,
                                                               queries + i * ivf->vector_dims, ivf->vector_dims, out);
            for (int q = 0; q < many; q++) memcpy(projected + (i + q) * ivf->dims + j, out + 4 * q, 4 * sizeof(float));
        }
        i += many;
    }
}

/* Int8 query, for keys and centroids. */
static void quantize_query(query_state *s, const ivf_index *ivf) {
    s->query_scale = to_int8(s->projected, NULL, ivf->dims, s->query_int8);
}

/* LUT, int8 query and score units, for sign codes and refinement codes. */
static void prepare_query(query_state *s, const ivf_index *ivf, const float *query, const ivf_params *params) {
    float widest = 1e-20f;
    for (int g = 0; g < ivf->sign_dims; g += 4) {
        float width = 0;
        for (int j = g; j < g + 4; j++) width += fabsf(s->projected[j] * ivf->sign_amplitude[j]);
        if (width > widest) widest = width;
    }
    float lut_unit = 2 * widest / 63.0f, middle = 0, squares = 0;
    for (int g = 0; g < ivf->sign_dims / 4; g++) {
        float t[4], width = 0;
        for (int j = 0; j < 4; j++) {
            t[j] = s->projected[4 * g + j] * ivf->sign_amplitude[4 * g + j];
            width += fabsf(t[j]);
            squares += (float)ABS_SPREAD * (float)ABS_SPREAD * t[j] * t[j];
        }
        middle += width;
        /* Groups 0 to 3 of 16 dimensions: low half of the first bytes, high half, low half of the second, high. */
        uint8_t *out = s->lut + 128 * (g / 4) + 32 * (g % 4 / 2) + 64 * (g % 2);
        for (int code = 0; code < 16; code++) {
            float sum = width;
            for (int j = 0; j < 4; j++) sum += code >> j & 1 ? t[j] : -t[j];
            out[code] = out[16 + code] = (uint8_t)lrintf(sum / lut_unit);
        }
    }
    float all = 0;
    for (int j = 0; j < ivf->dims; j++) {
        float of_dim = s->projected[j] * ivf->refine_step[j] / (j < ivf->sign_dims ? (float)REFINE_STEP : (float)COARSE_STEP);
        all += of_dim * of_dim;
        if (j >= ivf->sign_dims) squares += of_dim * of_dim;
    }
    s->deviation = steps_of(fmaxf(1, sqrtf(all) / (lut_unit * (float)MEAN_SIGN_SCALE)));
    s->lut_offset = (int32_t)lrintf(fminf(fmaxf(middle / lut_unit, 0), MAX_LUT_OFFSET));
    float spread = rintf(fmaxf(1, sqrtf(squares) / lut_unit));
    s->sign_slack = (int32_t)lrintf(fminf(fmaxf(params->slack * spread, -MAX_SIGN_SLACK), MAX_SIGN_SLACK));
    float unit = lut_unit * ivf->sign_scale; /* of a score step */
    s->centroid_unit = s->query_scale * ivf->centroid_scale / unit;
    s->refine_unit = to_int8(s->projected, ivf->refine_step, ivf->dims, s->query_refine) / 2 * ivf->refine_scale / unit;
    double length = 0;
    for (int j = 0; j < ivf->vector_dims; j++) length += (double)query[j] * query[j];
    float window = params->tolerance * ivf->refine_error * (float)sqrt(length) / unit;
    s->window = (int32_t)lrintf(fmaxf(fminf(window, MAX_WINDOW), 0));
    s->refine_offset = 0;
    for (int j = 0; j < ivf->dims; j++) s->refine_offset += (j < ivf->sign_dims ? 15 : 3) * s->query_refine[j];
}
