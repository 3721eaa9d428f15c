// G Gᵀ as a sum over packed panels (the layout of a BLIS micro-kernel). A panel holds kGramPanelRows
// rows of the window, widened to float64 and transposed: [cols][kGramPanelRows].
constexpr int64_t kGramPanelRows = 2 * kLanes;
constexpr int64_t kGramRows = MFAC_GRAM_ROWS;  // rows of one register tile

template <typename T>
void gram_pack(const T* window, int64_t stride, int64_t rows, int64_t cols, double* panel) {
  if (rows < kGramPanelRows) __builtin_memset(panel, 0, sizeof(double) * cols * kGramPanelRows);
  for (int64_t k0 = 0; k0 < cols; k0 += kLanes) {
    const int64_t width = cols - k0 < kLanes ? cols - k0 : kLanes;
    for (int64_t r = 0; r < rows && r < kGramPanelRows; ++r) {
      const T* x = window + r * stride + k0;
      if (k0 % (64 / int64_t(sizeof(T))) == 0) __builtin_prefetch(x + cols, 0, 2);  // the next tile, for its own packing
      double* y = panel + k0 * kGramPanelRows + r;
      if (width == kLanes) {
        for (int64_t k = 0; k < kLanes; ++k) y[k * kGramPanelRows] = x[k];
      } else {
        for (int64_t k = 0; k < width; ++k) y[k * kGramPanelRows] = x[k];
      }
    }
  }
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
    if (a == b && i + kGramRows <= kLanes)
      gram_tile<1>(a + i, b, depth, sums + i * kGramPanelRows);
    else
      gram_tile<2>(a + i, b, depth, sums + i * kGramPanelRows);
  }
}
