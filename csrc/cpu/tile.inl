// The register tile that matrix products, factorisations and triangular solves are made of, in
// float64 or float32.

typedef float f32w __attribute__((vector_size(8 * MFAC_LANES)));  // as many bytes as f64v

MFAC_INLINE f32w magnitudes(f32w x) {
  typedef uint32_t u32w __attribute__((vector_size(8 * MFAC_LANES)));
  return (f32w)((u32w)x & ~uint32_t{0} >> 1);
}

template <typename C>
struct VectorOf {
  typedef f64v type;
};
template <>
struct VectorOf<float> {
  typedef f32w type;
};
template <typename C>
using vector_of = typename VectorOf<C>::type;

template <typename C>
constexpr int64_t kLanesOf = sizeof(f64v) / sizeof(C);

constexpr int64_t kTileRows = MFAC_TILE_ROWS;
static_assert(kTileRows % kLanes == 0);

// Of packed panels: rows of the window in gram/, its columns in whitened_norms/; block_fisher/ has
// either as the other.
constexpr int kPanelVectors = MFAC_PANEL_VECTORS;
template <typename C>
constexpr int64_t kPanelWidth = kPanelVectors * kLanesOf<C>;

// sum[r][v] += Σ_{k<depth} a[k·a_stride + r]·b[k·b_stride + v·lanes ...], V a vector of C
template <int rows, int vectors, typename V, typename C>
MFAC_INLINE void add_products(V (&sum)[rows][vectors], const C* a, int64_t a_stride, const C* b, int64_t b_stride,
                              int64_t depth) {
  for (int64_t k = 0; k < depth; ++k) {
    V y[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) y[v] = load_bits<V>(b + k * b_stride + v * (sizeof(V) / sizeof(C)));
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sum[r][v] += a[k * a_stride + r] * y[v];
    }
  }
}

// The same with kSingleDepth products summed before their sum is added: no chain of roundings is
// longer than that and one for each such sum.
template <int rows, int vectors, typename V, typename C>
MFAC_INLINE void add_sums_of_products(V (&total)[rows][vectors], const C* a, int64_t a_stride, const C* b,
                                      int64_t b_stride, int64_t depth) {
  for (int64_t k = 0; k < depth; k += kSingleDepth) {
    V sum[rows][vectors] = {};
    add_products(sum, a + k * a_stride, a_stride, b + k * b_stride, b_stride,
                 depth - k < kSingleDepth ? depth - k : kSingleDepth);
#pragma GCC unroll 8
    for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) total[r][v] += sum[r][v];
    }
  }
}

// x[r][v] <- row r of R⁻ᵀ x for the rows of one tile:
// x[r] <- (x[r] - Σ_{q<r} R[q, r]·x[q])/R[r, r].
template <int rows, int vectors>
MFAC_INLINE void solve_tile(f64v (&x)[rows][vectors], const double* upper, int64_t stride,
                            const double* inverse_pivots) {
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 8
    for (int q = 0; q < r; ++q) {
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) x[r][v] -= upper[q * stride + r] * x[q][v];
    }
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) x[r][v] *= inverse_pivots[r];
  }
}
