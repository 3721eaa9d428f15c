// The kernels for avx512, and for zen4, which has an addition beside every product. Compiled on every x86-64 machine,
// chosen at run time (dispatch.cpp).
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <utility>

#include "cpu/kernels.h"

#define MFAC_ISA avx512
#define MFAC_PAIRED_ISA zen4
#define MFAC_LANES 8
#define MFAC_TILE_ROWS 8
#define MFAC_HAS_VNNI

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx512vl,avx512bw,avx512vnni,avx2,fma,f16c,prefer-vector-width=512")
#endif

#include "cpu/table.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
