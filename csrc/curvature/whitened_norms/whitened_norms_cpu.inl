// ‖U_:j‖² with U = L⁻¹G for a panel of columns, in arithmetic of type C: a triangular matrix
// product of which only the column sums of U² and |U| are kept. L⁻¹ is packed as
// [tiles of kTileRows rows][k][kTileRows], the panel as [k][kPanelWidth<C>].

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

template <typename T, typename C>
void whiten_panel(const T* window, int64_t stride, int64_t rows, int64_t cols, C* panel, C* squares) {
  whiten_pack<T, C>(window, stride, rows, cols, panel);
  vector_of<C> sum[kPanelVectors] = {};
  for (int64_t k = 0; k < rows; ++k, panel += kPanelWidth<C>)
    for (int v = 0; v < kPanelVectors; ++v) {
      const auto x = load_bits<vector_of<C>>(panel + v * kLanesOf<C>);
      sum[v] += x * x;
    }
  __builtin_memcpy(squares, sum, sizeof(sum));
}

// The rows of one tile of L⁻¹, which is zero from `depth` on, times a panel.
template <typename C>
void whiten_tile(const C* inverse_factor, const C* panel, int64_t depth, const C* weights, C* norms, C* weighted) {
  vector_of<C> u[kTileRows][kPanelVectors] = {}, norm[kPanelVectors], magnitude[kPanelVectors];
  add_sums_of_products(u, inverse_factor, kTileRows, panel, kPanelWidth<C>, depth);
  __builtin_memcpy(norm, norms, sizeof(norm));
  __builtin_memcpy(magnitude, weighted, sizeof(magnitude));
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r)
    for (int v = 0; v < kPanelVectors; ++v) {
      norm[v] += u[r][v] * u[r][v];
      magnitude[v] += weights[r] * magnitudes(u[r][v]);
    }
  __builtin_memcpy(norms, norm, sizeof(norm));
  __builtin_memcpy(weighted, magnitude, sizeof(magnitude));
}

template <typename T, typename C>
constexpr void fill(WhitenKernels<T, C>& kernels) {
  kernels = {kPanelWidth<C>, kTileRows, whiten_panel<T, C>, whiten_tile<C>};
}
