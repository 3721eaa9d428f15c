// ‖U_:j‖² with U = L⁻¹G for a panel of columns, in arithmetic of type C: a triangular matrix product of which only the
// squared column norms are kept. L⁻¹ is packed as [tiles of kTileRows rows][k][kTileRows], the panel as
// [k][kPanelWidth<C>].
// panels [cols / kPanelWidth][rows][kPanelWidth] <- the window's columns, zero beyond the last
template <typename T, typename C>
void whiten_pack(const T* window, int64_t stride, int64_t rows, int64_t cols, C* panels) {
  constexpr int64_t kWidth = kPanelWidth<C>;
  for (int64_t r = 0; r < rows; ++r) {
    const T* x = window + r * stride;
    for (int64_t j = 0; j < cols; j += kWidth) {
      C* to = panels + (j * rows + r * kWidth);
      if (j + kWidth <= cols) {
        for (int64_t i = 0; i < kWidth; ++i) to[i] = C(x[j + i]);
      } else {
        for (int64_t i = 0; i < kWidth; ++i) to[i] = j + i < cols ? C(x[j + i]) : C(0);
      }
    }
  }
}

// norms[j] += Σ over the rows of one tile of L⁻¹, which is zero from `depth` on, for the kPanelWidth<C> columns of a
// panel
template <typename C>
void whiten_tile(const C* factor, const C* panel, int64_t depth, C* norms) {
  vector_of<C> sum[kTileRows][2] = {}, norm[2];
  add_products<kTileRows, 2, C>(sum, factor, kTileRows, panel, kPanelWidth<C>, depth);
  __builtin_memcpy(norm, norms, sizeof(norm));
#pragma GCC unroll 8
  for (int r = 0; r < kTileRows; ++r) {
    norm[0] += sum[r][0] * sum[r][0];
    norm[1] += sum[r][1] * sum[r][1];
  }
  __builtin_memcpy(norms, norm, sizeof(norm));
}
