// ‖U_:j‖² with U = L⁻¹G for a panel of columns, in arithmetic of type C: a triangular matrix product of which only the
// squared column norms are kept. L⁻¹ is packed as [blocks of kWhitenRows rows][k][kWhitenRows], the panel as
// [k][kPanelColumns<C>].
typedef float f32w __attribute__((vector_size(8 * MFAC_LANES)));  // as wide as f64v

template <typename C>
struct VectorOf {
  typedef f64v type;
};
template <>
struct VectorOf<float> {
  typedef f32w type;
};

template <typename C>
constexpr int64_t kPanelColumns = 2 * sizeof(f64v) / sizeof(C);

// panels [cols / kPanelColumns][rows][kPanelColumns] <- the window's columns, zero beyond the last
template <typename T, typename C>
void whiten_pack(const T* window, int64_t stride, int64_t rows, int64_t cols, C* panels) {
  constexpr int64_t kWidth = kPanelColumns<C>;
  for (int64_t r = 0; r < rows; ++r) {
    const T* x = window + r * stride;
    for (int64_t j = 0; j < cols; j += kWidth) {
      C* to = panels + (j * rows + r * kWidth);
      __builtin_prefetch(x + j + cols, 0, 2);  // the next tile
      if (j + kWidth <= cols) {
        for (int64_t i = 0; i < kWidth; ++i) to[i] = C(x[j + i]);
      } else {
        for (int64_t i = 0; i < kWidth; ++i) to[i] = j + i < cols ? C(x[j + i]) : C(0);
      }
    }
  }
}

// norms[j] for the kPanelColumns<C> columns of one panel
template <typename C>
void whiten_panel(const C* factor, const C* panel, int64_t rows, C* norms) {
  typedef typename VectorOf<C>::type V;
  constexpr int64_t kLanesOfC = sizeof(V) / sizeof(C), kWidth = kPanelColumns<C>;
  V norm[2] = {};
  for (int64_t i = 0; i < rows; i += kWhitenRows) {
    const int64_t depth = i + kWhitenRows < rows ? i + kWhitenRows : rows;  // beyond it L⁻¹ is zero
    V sum[kWhitenRows][2] = {};
    for (int64_t k = 0; k < depth; ++k) {
      const V y0 = load_bits<V>(panel + k * kWidth), y1 = load_bits<V>(panel + k * kWidth + kLanesOfC);
#pragma GCC unroll 8
      for (int r = 0; r < kWhitenRows; ++r) {
        sum[r][0] += factor[k * kWhitenRows + r] * y0;
        sum[r][1] += factor[k * kWhitenRows + r] * y1;
      }
    }
#pragma GCC unroll 8
    for (int r = 0; r < kWhitenRows; ++r) {
      norm[0] += sum[r][0] * sum[r][0];
      norm[1] += sum[r][1] * sum[r][1];
    }
    factor += rows * kWhitenRows;
  }
  __builtin_memcpy(norms, norm, sizeof(norm));
}
