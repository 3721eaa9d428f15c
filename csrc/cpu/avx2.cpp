// The kernels for avx2. Compiled on every x86-64 machine, chosen at run time (dispatch.cpp).
#if defined(__x86_64__)
#include <immintrin.h>

#include <cmath>
#include <cstdint>
#include <utility>

#include "cpu/kernels.h"

#define MFAC_ISA avx2
#define MFAC_LANES 4
#define MFAC_TILE_ROWS 4  // by three vectors: 12 of 16 registers for sums
#define MFAC_PANEL_VECTORS 3

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif

#include "cpu/table.inl"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
