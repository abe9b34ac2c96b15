/* Symbol visibility, and the instruction sets that the compiler knows. */
#pragma once

#if defined(_WIN32)
#define EXPORT __declspec(dllexport)
#define HIDDEN
#else
#define EXPORT __attribute__((visibility("default")))
#define HIDDEN __attribute__((visibility("hidden")))
#endif

#if (defined(__x86_64__) || defined(__i386__)) && (defined(__GNUC__) || defined(__clang__))
#define X86 1
#include <immintrin.h>
#endif
#if defined(__aarch64__)
#define ARM64 1
#include <arm_neon.h>
#endif
