// G Gᵀ as a sum over packed panels (the layout of a BLIS micro-kernel). A panel holds kGramPanelRows
// rows of the window, widened to float64 and transposed: [cols][kGramPanelRows].
constexpr int64_t kGramPanelRows = 2 * kLanes;
constexpr int64_t kGramRows = MFAC_GRAM_ROWS;  // rows of one register tile

// Exchanges the off-diagonal h x h blocks of a pair of rows; doing so for h = kLanes/2, ..., 1 transposes a square.
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
  constexpr int64_t kLine = 64 / sizeof(T);
  const int64_t full_rows = rows < kGramPanelRows ? rows / kLanes * kLanes : kGramPanelRows;
  const int64_t full_cols = cols / kLanes * kLanes;
  if (full_rows < kGramPanelRows) __builtin_memset(panel, 0, sizeof(double) * cols * kGramPanelRows);
  for (int64_t k = 0; k < full_cols; k += kLanes)
    for (int64_t r = 0; r < full_rows; r += kLanes) {
      f64v square[kLanes];
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; ++i) {
        const T* x = window + (r + i) * stride + k;
        if (k % kLine == 0) __builtin_prefetch(x + cols, 0, 2);  // the next tile, for its own packing
        square[i] = load(x);
      }
      transpose<kLanes / 2>(square);
#pragma GCC unroll 8
      for (int i = 0; i < kLanes; ++i) store(panel + (k + i) * kGramPanelRows + r, square[i]);
    }
  for (int64_t k = 0; k < cols; ++k)
    for (int64_t r = k < full_cols ? full_rows : 0; r < rows && r < kGramPanelRows; ++r)
      panel[k * kGramPanelRows + r] = window[r * stride + k];
}

// One register tile: kGramRows rows of panel a, the first kVectors·kLanes rows of panel b.
template <int kVectors>
MFAC_INLINE void gram_tile(const double* a, const double* b, int64_t depth, double* sums) {
  f64v sum[kGramRows][kVectors] = {};
  for (int64_t k = 0; k < depth; ++k) {
    f64v y[kVectors];
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) y[v] = load(b + k * kGramPanelRows + v * kLanes);
#pragma GCC unroll 8
    for (int64_t i = 0; i < kGramRows; ++i) {
#pragma GCC unroll 2
      for (int v = 0; v < kVectors; ++v) sum[i][v] += a[k * kGramPanelRows + i] * y[v];
    }
  }
#pragma GCC unroll 8
  for (int64_t i = 0; i < kGramRows; ++i) {
#pragma GCC unroll 2
    for (int v = 0; v < kVectors; ++v) {
      double* to = sums + i * kGramPanelRows + v * kLanes;
      store(to, load(to) + sum[i][v]);
    }
  }
}

// sums[i, j] += Σ_k a[k, i]·b[k, j], one contiguous square of kGramPanelRows. On the diagonal (a = b) a tile stops
// at the last vector that holds an entry with j <= i.
void gram_panels(const double* a, const double* b, int64_t depth, double* sums) {
  for (int64_t i = 0; i < kGramPanelRows; i += kGramRows) {
    if (a == b && i + kGramRows <= kLanes) gram_tile<1>(a + i, b, depth, sums + i * kGramPanelRows);
    else gram_tile<2>(a + i, b, depth, sums + i * kGramPanelRows);
  }
}
