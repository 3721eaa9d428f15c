// out[r] = Σ_j window[r, j]·v[j], float64 accumulation. Eight rows share each load of v; eight
// streams, each asked for ahead of its use, are what one core needs to read at the speed of memory.
template <int n, typename T, typename V>
MFAC_INLINE void dot_rows(const T* window, int64_t stride, int64_t cols, const V* v, double* out) {
  constexpr int64_t kLine = 64 / sizeof(T), kStep = kLine < 2 * kLanes ? 2 * kLanes : kLine;
  f64v sum[n] = {};
  int64_t j = 0;
  for (; j + kStep <= cols; j += kStep) {
#pragma GCC unroll 8
    for (int i = 0; i < n; ++i)
      for (int64_t k = j; k < j + kStep; k += kLine) prefetch_ahead(window + i * stride + k);
    for (int64_t k = j; k < j + kStep; k += 2 * kLanes) {
      const f64v y[2] = {load(v + k), load(v + k + kLanes)};
#pragma GCC unroll 8
      for (int i = 0; i < n; ++i) {
        f64v entries[2];
        load_two(window + i * stride + k, entries);
        sum[i] += entries[0] * y[0];
        sum[i] += entries[1] * y[1];
      }
    }
  }
#pragma GCC unroll 8
  for (int i = 0; i < n; ++i) {
    double tail = 0;
    for (int64_t k = j; k < cols; ++k) tail += widen(window[i * stride + k]) * widen(v[k]);
    out[i] = lane_sum(sum[i]) + tail;
  }
}

template <typename T, typename V>
void window_dot_rows(const T* window, int64_t stride, int64_t rows, int64_t cols, const V* v, double* out) {
  int64_t r = 0;
  for (; r + 8 <= rows; r += 8) dot_rows<8>(window + r * stride, stride, cols, v, out + r);
  for (; r + 2 <= rows; r += 2) dot_rows<2>(window + r * stride, stride, cols, v, out + r);
  for (; r < rows; ++r) out[r] = dot(window + r * stride, v, cols);
}

template <typename T, typename V>
constexpr void fill(WindowDotKernels<T, V>& kernels) {
  kernels = {window_dot_rows<T, V>};
}
