// out[j] <- alpha·out[j] + beta·Σ_r coefficients[r]·window[r, j] for cols <= kCombineColumns: the float64
// accumulators stay in L1 while every row of the tile goes by once. As in BLAS, alpha = 0 reads no out.
template <typename T, typename V>
void window_combine_columns(const T* window, int64_t stride, int64_t rows, int64_t cols, const double* coefficients,
                            double alpha, double beta, V* out) {
  double sum[kCombineColumns];
  for (int64_t j = 0; j < cols; ++j) sum[j] = 0;
  add_rows(coefficients, window, stride, rows, sum, cols);
  if (alpha == 0) {
    for (int64_t j = 0; j < cols; ++j) out[j] = V(beta * sum[j]);
  } else {
    for (int64_t j = 0; j < cols; ++j) out[j] = V(alpha * double(out[j]) + beta * sum[j]);
  }
}
