// The kernels for avx512. Compiled on every x86-64 machine, chosen at run time (dispatch.cpp).
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <utility>

#include "cpu/kernels.h"

#define MFAC_ISA avx512
#define MFAC_LANES 8
#define MFAC_TILE_ROWS 8  // by two vectors: 16 of 32 registers for sums, and as many for sums of sums
#define MFAC_PANEL_VECTORS 2

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
