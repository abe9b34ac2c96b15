/* What the compiler and the processor offer. */
#pragma once

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#else
#define EXPORT __attribute__((visibility("default")))
#endif

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define X86 1
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#define ARM64 1
#include <arm_neon.h>
#endif
