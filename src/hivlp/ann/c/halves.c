/* Float32 to float16 with the processor's own instruction: to the nearest, of two as near to the even one. */
#include <stdint.h>
#include <string.h>

#include "platform.h"

#if defined(X86)
#define TOGETHER 8
/* Whether none of these is a NaN. */
__attribute__((target("avx2,f16c"))) static int convert(const float *numbers, int64_t groups, uint16_t *halves) {
    __m256 odd = _mm256_setzero_ps();
    for (int64_t g = 0; g < groups; g++, numbers += TOGETHER, halves += TOGETHER) {
        __m256 some = _mm256_loadu_ps(numbers);
        odd = _mm256_or_ps(odd, _mm256_cmp_ps(some, some, _CMP_UNORD_Q));
        _mm_storeu_si128((__m128i *)halves, _mm256_cvtps_ph(some, _MM_FROUND_TO_NEAREST_INT));
    }
    return !_mm256_movemask_ps(odd);
}

static int can_convert(void) {
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx2"); /* no processor has it without F16C */
}
#elif defined(ARM64)
#define TOGETHER 4
static int convert(const float *numbers, int64_t groups, uint16_t *halves) {
    uint32x4_t even = vdupq_n_u32(~0u);
    for (int64_t g = 0; g < groups; g++, numbers += TOGETHER, halves += TOGETHER) {
        float32x4_t some = vld1q_f32(numbers);
        even = vandq_u32(even, vceqq_f32(some, some));
        vst1_u16(halves, vreinterpret_u16_f16(vcvt_f16_f32(some)));
    }
    return vminvq_u32(even) != 0;
}

static int can_convert(void) { return 1; }
#else
#define TOGETHER 1
static int convert(const float *numbers, int64_t groups, uint16_t *halves) {
    (void)numbers, (void)groups, (void)halves;
    return 0;
}

static int can_convert(void) { return 0; }
#endif

/* Returns whether it was done: not without such an instruction, and not where one of the numbers is a NaN, of which
 * every processor makes what it likes. */
EXPORT int hivlp_halves(const float *numbers, int64_t count, uint16_t *halves) {
    if (!can_convert()) return 0;
    int64_t groups = count / TOGETHER, rest = count % TOGETHER;
    int done = convert(numbers, groups, halves);
    if (rest) {
        float last[TOGETHER] = {0};
        uint16_t converted[TOGETHER];
        memcpy(last, numbers + groups * TOGETHER, (size_t)rest * sizeof *last);
        done &= convert(last, 1, converted);
        memcpy(halves + groups * TOGETHER, converted, (size_t)rest * sizeof *converted);
    }
    return done;
}
