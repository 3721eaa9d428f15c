// ‖U_:j‖² with U = L⁻¹G for a panel of columns, in arithmetic of type C: a triangular matrix product of which only the
// column sums of U² and |U| are kept. L⁻¹ is packed as [tiles of kTileRows rows][k][kTileRows], the panel as
// [k][kPanelWidth<C>]. `paired`: both with rows and columns of norm 1 or about 1, and pair sums (cpu/paired.inl).

// panels [cols / kPanelWidth][rows][kPanelWidth] <- the window's columns, zero beyond the last
template <typename T, typename C>
void whiten_pack(const T* window, int64_t stride, int64_t rows, int64_t cols, C* panels) {
  constexpr int64_t kWidth = kPanelWidth<C>;
  for (int64_t j = 0; j < cols; j += kWidth) {
    C* to = panels + j * rows;
    for (int64_t r = 0; r < rows; ++r, to += kWidth) {
      const T* x = window + r * stride + j;
      if (j + kWidth <= cols) {
        for (int64_t i = 0; i < kWidth; ++i) to[i] = C(x[i]);
      } else {
        for (int64_t i = 0; i < kWidth; ++i) to[i] = j + i < cols ? C(x[i]) : C(0);
      }
    }
  }
}

// squares[j] <- Σ_r x[r, j]² for the columns of a panel
template <typename T, typename C>
MFAC_INLINE void whiten_squares(const T* x, int64_t stride, int64_t rows, C* squares) {
  vector_of<C> sum[2] = {};
  for (int64_t r = 0; r < rows; ++r, x += stride)
    for (int v = 0; v < 2; ++v) {
      const vector_of<C> entries = load_as(x + v * kLanesOf<C>, C());
      sum[v] += entries * entries;
    }
  __builtin_memcpy(squares, sum, sizeof(sum));
}

// One panel and the squares of its columns; scales and pair sums are left alone.
template <typename T, typename C>
void whiten_panel(const T* window, int64_t stride, int64_t rows, int64_t cols, C* panel, C* squares, C*, C*) {
  whiten_pack<T, C>(window, stride, rows, cols, panel);
  whiten_squares(panel, kPanelWidth<C>, rows, squares);
}

// panel[r, j] <- scales[j]·x[r, j], which has a norm of about 1, and pair_sums[t, j] <- the pair sum of its rows down
// to the last of tile t. x may be the panel itself.
template <typename T, typename C>
MFAC_INLINE void whiten_scale(const T* x, int64_t stride, int64_t rows, C* panel, const C* scales, C* pair_sums) {
  using V = vector_of<C>;
  V scale[2], before[2] = {};
  __builtin_memcpy(scale, scales, sizeof(scale));
  const auto scaled = [&](int64_t k, int v) __attribute__((always_inline)) {
    const V y = load_as(x + k * stride + v * kLanesOf<C>, C()) * scale[v];
    store_bits(panel + k * kPanelWidth<C> + v * kLanesOf<C>, y);
    return y;
  };
  int64_t tile_end = kTileRows;
  for (int64_t block = 0; block < rows; block += kPairedDepth<C>) {
    const int64_t end = rows < block + kPairedDepth<C> ? rows : block + kPairedDepth<C>;
    V pairs[2] = {};
    const auto finish_tiles = [&](int64_t last) __attribute__((always_inline)) {
      for (; tile_end <= last; tile_end += kTileRows, pair_sums += kPanelWidth<C>)
        for (int v = 0; v < 2; ++v) store_bits(pair_sums + v * kLanesOf<C>, before[v] + pairs[v]);
    };
    int64_t k = block;
    for (; k + kPairGroup <= end; k += kPairGroup) {
      finish_tiles(k + kPairGroup - 1);
      for (int v = 0; v < 2; ++v) {
        pairs[v] += scaled(k, v) * scaled(k + 1, v);
        scaled(k + 2, v);
      }
    }
    for (; k < end; ++k)
      for (int v = 0; v < 2; ++v) scaled(k, v);
    finish_tiles(end);
    for (int v = 0; v < 2; ++v) before[v] += pairs[v];
  }
  if (tile_end < rows + kTileRows)
    for (int v = 0; v < 2; ++v) store_bits(pair_sums + v * kLanesOf<C>, before[v]);
}

// The same with columns scaled, and the pair sums [ceil(rows / kTileRows)][kPanelWidth] that whiten_tile takes.
template <typename T, typename C>
void whiten_paired_panel(const T* window, int64_t stride, int64_t rows, int64_t cols, C* panel, C* squares, C* units,
                         C* pair_sums) {
  const bool whole = cols == kPanelWidth<C>;
  if (whole) whiten_squares(window, stride, rows, squares);
  else whiten_panel<T, C>(window, stride, rows, cols, panel, squares, units, pair_sums);
  C scales[kPanelWidth<C>];
  for (int64_t j = 0; j < kPanelWidth<C>; ++j) {
    scales[j] = balancing_scale(squares[j]);
    units[j] = 1 / scales[j];
  }
  if (whole) whiten_scale(window, stride, rows, panel, scales, pair_sums);
  else whiten_scale(panel, kPanelWidth<C>, rows, panel, scales, pair_sums);
}

// The rows of one tile of L⁻¹, which is zero from `depth` on, times a panel.
template <typename C, bool paired>
void whiten_tile(const WhitenRows<C>& row, int64_t depth, const C* panel, const C* units, const C* pair_sums, C* norms,
                 C* weighted) {
  vector_of<C> u[kTileRows][2] = {}, norm[2], magnitude[2], of_columns[2], unit[2];
  add_sums_of_products<paired>(u, row.inverse_factor, kTileRows, panel, kPanelWidth<C>, depth);
  __builtin_memcpy(norm, norms, sizeof(norm));
  __builtin_memcpy(magnitude, weighted, sizeof(magnitude));
  if constexpr (paired) {
    __builtin_memcpy(of_columns, pair_sums, sizeof(of_columns));
    __builtin_memcpy(unit, units, sizeof(unit));
  }
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < 2; ++v) {
      if constexpr (paired) u[r][v] = (u[r][v] - of_columns[v] - row.pair_sums[r]) * unit[v] * row.norms[r];
      norm[v] += u[r][v] * u[r][v];
      magnitude[v] += row.weights[r] * magnitudes(u[r][v]);
    }
  __builtin_memcpy(norms, norm, sizeof(norm));
  __builtin_memcpy(weighted, magnitude, sizeof(magnitude));
}
