// The CPU kernels of window_combine_ and window_descend_: rows of a window in T, weights and
// results in V.
#pragma once

#include <type_traits>

#include "cpu/instances.h"

namespace mfac {

constexpr int64_t kCombineColumns = 16384;  // widest piece: its sums are in L2
static_assert(kCombineColumns % kScaleColumns == 0);
template <typename T>
constexpr int64_t kCombineScratch =  // float64: sums, and of int8 rows two for the digits of a column (int8_digits.inl)
    (std::is_same_v<T, int8_t> ? 3 : 1) * kCombineColumns;

template <typename T, typename V>
struct WindowCombineKernels {
  // out[j] <- alpha·out[j] + beta·Σ_r coefficients[j / tile, r]·window[r, j], with `rows`
  // coefficients for every `tile` columns: one set, or for int8 as many as there are scales.
  // cols <= kCombineColumns; `scratch`: kCombineScratch<T> float64, on a line of cache.
  void (*combine)(const T* window, int64_t stride, int64_t rows, int64_t cols, const double* coefficients, int64_t tile,
                  double alpha, double beta, V* out, double* scratch);
};

template <typename V>
struct DescendKernels {
  // weights[j] <- decay·weights[j] - rate·move[j]
  void (*descend)(const V* move, int64_t cols, double rate, double decay, V* weights);
};

using WindowCombineRoom = Instances<ForWindows<WindowCombineKernels>, ForVectors<DescendKernels>>;

}  // namespace mfac
