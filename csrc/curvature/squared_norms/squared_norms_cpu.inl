// out[r] = Σ_j window[r, j]², float64 accumulation, eight streams at a time like window_dot.
template <int n, typename T>
MFAC_INLINE void square_rows(const T* window, int64_t stride, int64_t cols, double* out) {
  constexpr int64_t kStep = 64 / sizeof(T) < kLanes ? kLanes : 64 / sizeof(T);  // whole lines
  f64v sum[n] = {};
  int64_t j = 0;
  for (; j + kStep <= cols; j += kStep) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i) {
      prefetch_ahead(window + i * stride + j);
      for (int64_t k = j; k < j + kStep; k += kLanes) {
        const f64v x = load(window + i * stride + k);
        sum[i] += x * x;
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    double tail = 0;
    for (int64_t k = j; k < cols; ++k) tail += widen(window[i * stride + k]) * widen(window[i * stride + k]);
    out[i] = lane_sum(sum[i]) + tail;
  }
}

template <typename T>
void squared_norms_rows(const T* window, int64_t stride, int64_t rows, int64_t cols, double* out) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) square_rows<8>(window + r * stride, stride, cols, out + r);
  for (; r < rows; ++r) square_rows<1>(window + r * stride, stride, cols, out + r);
}

template <typename T>
constexpr void fill(SquaredNormsKernels<T>& kernels) {
  kernels = {squared_norms_rows<T>};
}
