#include "window/window_combine/int8_digits.inl"

// sum[j] += Σ_r coefficients[j / tile][r]·window[r, j], the coefficients of two tiles `apart`
// entries apart: the sums stay in L2 while every row goes by once, eight at a time.
template <typename T>
MFAC_INLINE void add_tiles_widened(const double* coefficients, int64_t apart, const T* window, int64_t stride,
                                   int64_t rows, int64_t cols, int64_t tile, double* sum) {
  for (int64_t r = 0; r < rows; r += 8)
    for (int64_t j = 0; j < cols; j += tile)
      add_rows(coefficients + j / tile * apart + r, window + r * stride + j, stride, rows - r < 8 ? rows - r : 8,
               sum + j, cols - j < tile ? cols - j : tile);
}

template <typename T>
MFAC_INLINE void add_tiles(const double* coefficients, int64_t apart, const T* window, int64_t stride, int64_t rows,
                           int64_t cols, int64_t tile, double*, double* sum) {
  add_tiles_widened(coefficients, apart, window, stride, rows, cols, tile, sum);
}

#if defined(MFAC_HAS_INT16_PRODUCTS)
// By digits (int8_digits.inl) what comes in whole eights of rows and groups of columns, the rest as
// above.
MFAC_INLINE void add_tiles(const double* coefficients, int64_t apart, const int8_t* window, int64_t stride,
                           int64_t rows, int64_t cols, int64_t tile, double* scratch, double* sum) {
  const int64_t full_rows = rows / 8 * 8, full_cols = cols / kDigitColumns * kDigitColumns;
  add_rows_by_digits(coefficients, apart, window, stride, full_rows, full_cols, scratch, sum);
  add_tiles_widened(coefficients + full_rows, apart, window + full_rows * stride, stride, rows - full_rows, full_cols,
                    tile, sum);
  if (full_cols < cols)
    add_rows(coefficients + full_cols / tile * apart, window + full_cols, stride, rows, sum + full_cols,
             cols - full_cols);
}
#endif

// out[j] <- alpha·out[j] + beta·Σ_r coefficients[j / tile][r]·window[r, j] for
// cols <= kCombineColumns. As in BLAS, alpha = 0 reads no out.
template <typename T, typename V>
void window_combine_columns(const T* window, int64_t stride, int64_t rows, int64_t cols, const double* coefficients,
                            int64_t tile, double alpha, double beta, V* out, double* scratch) {
  double* sum = scratch;
  for (int64_t j = 0; j < cols; ++j) sum[j] = 0;
  add_tiles(coefficients, rows, window, stride, rows, cols, tile, scratch + kCombineColumns, sum);
  if (alpha == 0) {
    for (int64_t j = 0; j < cols; ++j) out[j] = V(beta * sum[j]);
  } else {
    for (int64_t j = 0; j < cols; ++j) out[j] = V(alpha * double(out[j]) + beta * sum[j]);
  }
}

// weights[j] <- decay·weights[j] - rate·move[j]
template <typename V>
void descend_columns(const V* move, int64_t cols, double rate, double decay, V* weights) {
  for (int64_t j = 0; j < cols; ++j) weights[j] = V(decay * double(weights[j]) - rate * double(move[j]));
}

template <typename T, typename V>
constexpr void fill(WindowCombineKernels<T, V>& kernels) {
  kernels = {window_combine_columns<T, V>};
}
template <typename V>
constexpr void fill(DescendKernels<V>& kernels) {
  kernels = {descend_columns<V>};
}
