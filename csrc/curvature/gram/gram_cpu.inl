// G Gᵀ as a sum over packed panels (the layout of a BLIS micro-kernel), in float64. A panel holds
// kPanelWidth<double> rows of the window, widened and transposed: [cols][kPanelWidth<double>].

// Exchanges the off-diagonal h x h blocks of a pair of rows; doing so for h = lanes/2, ..., 1
// transposes a square.
template <int h, int... lane>
MFAC_INLINE void exchange(f64v& a, f64v& b, std::integer_sequence<int, lane...>) {
  const f64v x = __builtin_shufflevector(a, b, (lane & h ? lane - h + int(kLanes) : lane)...);
  const f64v y = __builtin_shufflevector(a, b, (lane & h ? lane + int(kLanes) : lane + h)...);
  a = x;
  b = y;
}

template <int h>
MFAC_INLINE void transpose(f64v (&rows)[kLanes]) {
  if constexpr (h > 0) {
#pragma GCC unroll 8
    for (int i = 0; i < kLanes; ++i)
      if (!(i & h)) exchange<h>(rows[i], rows[i + h], std::make_integer_sequence<int, kLanes>());
    transpose<h / 2>(rows);
  }
}

template <typename T>
void gram_pack(const T* window, int64_t stride, int64_t rows, int64_t cols, double* panel) {
  constexpr int64_t kPanelRows = kPanelWidth<double>;
  const int64_t full_rows = rows < kPanelRows ? rows / kLanes * kLanes : kPanelRows;
  const int64_t full_cols = cols / kLanes * kLanes;
  if (full_rows < kPanelRows) __builtin_memset(panel, 0, sizeof(double) * cols * kPanelRows);
  for (int64_t k = 0; k < full_cols; k += kLanes)
    for (int64_t r = 0; r < full_rows; r += kLanes) {
      f64v square[kLanes];
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; ++i) square[i] = load(window + (r + i) * stride + k);
      transpose<kLanes / 2>(square);
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; ++i) store(panel + (k + i) * kPanelRows + r, square[i]);
    }
  for (int64_t k = 0; k < cols; ++k)
    for (int64_t r = k < full_cols ? full_rows : 0; r < rows && r < kPanelRows; ++r)
      panel[k * kPanelRows + r] = window[r * stride + k];
}

template <int vectors>
MFAC_INLINE void gram_vectors(const double* a, const double* b, int64_t depth, double* sums, int64_t stride) {
  f64v sum[kTileRows][vectors] = {};
  add_products(sum, a, kPanelWidth<double>, b, kPanelWidth<double>, depth);
#pragma GCC unroll 8
  for (int64_t r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) {
      double* to = sums + r * stride + v * kLanes;
      store(to, load(to) + sum[r][v]);
    }
  }
}

// sums[i, j] += Σ_k a[k, i]·b[k, j] for kTileRows rows i of a panel and as many vectors of another
// as hold `cols` columns j.
void gram_tile(const double* a, const double* b, int64_t cols, int64_t depth, double* sums, int64_t stride) {
  if (cols > (kPanelVectors - 1) * kLanes) gram_vectors<kPanelVectors>(a, b, depth, sums, stride);
  else if (kPanelVectors > 2 && cols > kLanes) gram_vectors<2>(a, b, depth, sums, stride);
  else gram_vectors<1>(a, b, depth, sums, stride);
}

template <typename T>
constexpr void fill(GramKernels<T>& kernels) {
  kernels = {kPanelWidth<double>, kTileRows, gram_pack<T>, gram_tile};
}
