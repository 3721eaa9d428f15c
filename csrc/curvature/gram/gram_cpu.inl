// G Gᵀ as a sum over packed panels (the layout of a BLIS micro-kernel), in arithmetic of type C with sums in float64. A
// panel holds kPanelWidth<C> rows of the window, converted to C and transposed: [cols][kPanelWidth<C>]. `paired`:
// scaled besides, and with pair sums to be subtracted (cpu/paired.inl).

// Exchanges the off-diagonal h x h blocks of a pair of rows; doing so for h = lanes/2, ..., 1 transposes a square.
template <int h, typename V, int... lane>
MFAC_INLINE void exchange(V& a, V& b, std::integer_sequence<int, lane...>) {
  constexpr int kWidth = sizeof...(lane);
  const V x = __builtin_shufflevector(a, b, (lane & h ? lane - h + kWidth : lane)...);
  const V y = __builtin_shufflevector(a, b, (lane & h ? lane + kWidth : lane + h)...);
  a = x;
  b = y;
}

template <int h, typename V, int lanes>
MFAC_INLINE void transpose(V (&rows)[lanes]) {
  if constexpr (h > 0) {
#pragma GCC unroll 16
    for (int i = 0; i < lanes; ++i)
      if (!(i & h)) exchange<h>(rows[i], rows[i + h], std::make_integer_sequence<int, lanes>());
    transpose<h / 2>(rows);
  }
}

template <typename T, typename C, bool paired = false>
void gram_pack(const T* window, int64_t stride, int64_t rows, int64_t cols, [[maybe_unused]] const C* scales,
               C* panel) {
  constexpr int kLanesHere = kLanesOf<C>;
  constexpr int64_t kPanelRows = kPanelWidth<C>;
  const int64_t full_rows = rows < kPanelRows ? rows / kLanesHere * kLanesHere : kPanelRows;
  const int64_t full_cols = cols / kLanesHere * kLanesHere;
  if (full_rows < kPanelRows) __builtin_memset(panel, 0, sizeof(C) * cols * kPanelRows);
  for (int64_t k = 0; k < full_cols; k += kLanesHere)
    for (int64_t r = 0; r < full_rows; r += kLanesHere) {
      vector_of<C> square[kLanesHere];
#pragma GCC unroll 16
      for (int i = 0; i < kLanesHere; ++i) {
        square[i] = load_as(window + (r + i) * stride + k, C());
        if constexpr (paired) square[i] *= scales[r + i];
      }
      transpose<kLanesHere / 2>(square);
#pragma GCC unroll 16
      for (int i = 0; i < kLanesHere; ++i) store_bits(panel + (k + i) * kPanelRows + r, square[i]);
    }
  for (int64_t k = 0; k < cols; ++k)
    for (int64_t r = k < full_cols ? full_rows : 0; r < rows && r < kPanelRows; ++r)
      panel[k * kPanelRows + r] = C(window[r * stride + k]) * (paired ? scales[r] : C(1));
}

MFAC_INLINE void add_to(double* sums, f64v x) { store(sums, load(sums) + x); }
MFAC_INLINE void add_to(double* sums, f32v x) { add_to(sums, widen(x)); }
MFAC_INLINE void add_to(double* sums, f32w x) {
  f32v half[2];
  __builtin_memcpy(half, &x, sizeof(x));
  add_to(sums, half[0]);
  add_to(sums + kLanes, half[1]);
}

// One register tile: kTileRows rows of panel a, as many columns of panel b as `vectors` vectors V have.
template <bool paired, int vectors, typename V, typename C>
MFAC_INLINE void gram_tile(const C* a, const C* b, int64_t depth, double* sums, int64_t stride) {
  V sum[kTileRows][vectors] = {};
  add_sums_of_products<paired>(sum, a, kPanelWidth<C>, b, kPanelWidth<C>, depth);
#pragma GCC unroll 8
  for (int64_t r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) add_to(sums + r * stride + v * (sizeof(V) / sizeof(C)), sum[r][v]);
  }
}

// sums[i, j] += Σ_k a[k, first + i]·b[k, j] for kTileRows rows i. Where a and b are the same panel, at least the
// entries with j <= first + i: as many whole vectors as they fill, and in float32 half a vector for what is left.
template <typename C, bool paired>
void gram_rows(const C* a, const C* b, int64_t first, int64_t depth, double* sums, int64_t stride) {
  static_assert(kTileRows % kLanes == 0, "kLanes are half a vector of float32 and a whole one of float64");
  const int64_t columns = a == b ? first + kTileRows : kPanelWidth<C>, whole = columns / kLanesOf<C> * kLanesOf<C>;
  if (whole == 2 * kLanesOf<C>) gram_tile<paired, 2, vector_of<C>>(a + first, b, depth, sums, stride);
  else if (whole > 0) gram_tile<paired, 1, vector_of<C>>(a + first, b, depth, sums, stride);
  if constexpr (std::is_same_v<C, float>)
    if (whole < columns) gram_tile<paired, 1, f32v>(a + first, b + whole, depth, sums + whole, stride);
}

// sums[i, j] += Σ_k a[k, i]·b[k, j], a square of kPanelWidth<C>
template <typename C>
void gram_panels(const C* a, const C* b, int64_t depth, double* sums, int64_t stride) {
  for (int64_t i = 0; i < kPanelWidth<C>; i += kTileRows)
    gram_rows<C, false>(a, b, i, depth, sums + i * stride, stride);
}
