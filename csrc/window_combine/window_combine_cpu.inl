// out[j] <- alpha·out[j] + beta·Σ_r coefficients[j / tile, r]·window[r, j] for cols <= kCombineColumns: the float64
// accumulators stay in L2 while every row of the tile goes by once, eight at a time. As in BLAS, alpha = 0 reads no
// out.
template <typename T, typename V>
void window_combine_columns(const T* window, int64_t stride, int64_t rows, int64_t cols, const double* coefficients,
                            int64_t tile, double alpha, double beta, V* out) {
  double sum[kCombineColumns];
  for (int64_t j = 0; j < cols; ++j) sum[j] = 0;
  for (int64_t r = 0; r < rows; r += 8)
    for (int64_t j = 0; j < cols; j += tile)
      add_rows(coefficients + j / tile * rows + r, window + r * stride + j, stride, rows - r < 8 ? rows - r : 8,
               sum + j, cols - j < tile ? cols - j : tile);
  if (alpha == 0) {
    for (int64_t j = 0; j < cols; ++j) out[j] = V(beta * sum[j]);
  } else {
    for (int64_t j = 0; j < cols; ++j) out[j] = V(alpha * double(out[j]) + beta * sum[j]);
  }
}
