#include "curvature/block_fisher/cholesky.inl"

// Batched small blocks: everything one diagonal block of the Fisher needs, by one thread, in cache.
// A block's matrix is its capacitance (dual) or the block itself (primal), its factor the upper R
// of RᵀR, with L = Rᵀ in the formulae.
// A dual block goes by in tiles of columns, so that scratch does not grow with its width. A primal
// block is no wider than m.

// a[i, j] += Σ_k panel[k, i]·panel[k, j] for j >= i, from packed panels of `depth` (gram/); size is
// whole tiles. Of the squares on the diagonal that is done below it.
MFAC_INLINE void block_products(const double* panels, int64_t depth, int64_t size, double* a) {
  constexpr int64_t kPanel = kPanelWidth<double>;
  for (int64_t p = 0; p < size; p += kPanel)
    for (int64_t i = p; i < size && i < p + kPanel; i += kTileRows) {
      const double* rows = panels + p * depth + (i - p);
      gram_tile(rows, panels + p * depth, i - p + kTileRows, depth, a + i * size + p, size);
      for (int64_t q = p + kPanel; q < size; q += kPanel)
        gram_tile(rows, panels + q * depth, size - q < kPanel ? size - q : kPanel, depth, a + i * size + q, size);
    }
}

// The part below the diagonal of the squares on the diagonal, which is what block_products has of
// them, to above it.
MFAC_INLINE void block_reflect(double* a, int64_t size) {
  constexpr int64_t kPanel = kPanelWidth<double>;
  for (int64_t p = 0; p < size; p += kPanel)
    for (int64_t i = p; i < size && i < p + kPanel; ++i)
      for (int64_t j = i + 1; j < size && j < p + kPanel; ++j) a[i * size + j] = a[j * size + i];
}

// The upper triangle of nλI + G_b G_bᵀ into a [size, size].
template <typename T>
void block_capacitance(const Block<T>& block, double* panels, double* a, int64_t size) {
  constexpr int64_t kPanel = kPanelWidth<double>;
  for (int64_t begin = 0; begin < block.cols; begin += kBlockTileColumns) {
    const int64_t width = block.cols - begin < kBlockTileColumns ? block.cols - begin : kBlockTileColumns;
    for (int64_t r = 0; r < size; r += kPanel)
      gram_pack<T>(block.window + r * block.stride + begin, block.stride, block.rows - r, width, panels + r * width);
    block_products(panels, width, size, a);
  }
  block_reflect(a, size);
  for (int64_t i = 0; i < block.rows; ++i) a[i * size + i] += block.num_terms * block.damping;
}

// The upper triangle of λI + G_bᵀ G_b / n into a [size, size].
template <typename T>
void block_fisher(const Block<T>& block, double* panels, double* a, int64_t size) {
  whiten_pack<T, double>(block.window, block.stride, block.rows, block.cols, panels);
  block_products(panels, block.rows, size, a);
  block_reflect(a, size);
  for (int64_t i = 0; i < block.cols; ++i) {
    for (int64_t j = i; j < block.cols; ++j) a[i * size + j] /= block.num_terms;
    a[i * size + i] += block.damping;
  }
}

// -1, or the failing pivot.  scratch: [size, size] and then dual [size, kBlockTileColumns], primal
// [size, rows], with size the order in whole panels. The matrix itself is of whole tiles.
template <typename T>
int64_t block_factor(const Block<T>& block) {
  const int64_t order = block.form == BlockForm::kDual ? block.rows : block.cols;
  const int64_t size = (order + kTileRows - 1) / kTileRows * kTileRows;
  double *a = block.scratch, *panels = a + size * size;
  for (int64_t k = 0; k < size * size; ++k) a[k] = 0;
  if (block.form == BlockForm::kDual) block_capacitance(block, panels, a, size);
  else block_fisher(block, panels, a, size);
  for (int64_t i = order; i < size; ++i) a[i * size + i] = 1;  // what is beyond the matrix factors as a unit matrix
  const int64_t failed = cholesky_upper(a, size, size);
  for (int64_t i = 0; i < order; ++i) {
    double* row = block.factor + i * block.factor_stride;
    for (int64_t j = 0; j < i; ++j) row[j] = 0;
    for (int64_t j = i; j < order; ++j) row[j] = a[i * size + j];
  }
  return failed;
}

// dual: (v - G_bᵀ C_b⁻¹ G_b v) / λ;  primal: F_b⁻¹ v.  scratch: [rows]
template <typename T>
void block_ihvp(const Block<T>& block, const double* v, double* out) {
  if (block.form == BlockForm::kPrimal) {
    for (int64_t j = 0; j < block.cols; ++j) out[j] = v[j];
    cholesky_solve(block.factor, block.cols, block.factor_stride, out);
    return;
  }
  double* c = block.scratch;
  window_dot_rows(block.window, block.stride, block.rows, block.cols, v, c);
  cholesky_solve(block.factor, block.rows, block.factor_stride, c);
  for (int64_t j = 0; j < block.cols; ++j) out[j] = 0;
  add_rows(c, block.window, block.stride, block.rows, out, block.cols);
  for (int64_t j = 0; j < block.cols; ++j) out[j] = (v[j] - out[j]) / block.damping;
}

// λv + G_bᵀ (G_b v) / n.  scratch: [rows]
template <typename T>
void block_matvec(const Block<T>& block, const double* v, double* out) {
  double* k = block.scratch;
  window_dot_rows(block.window, block.stride, block.rows, block.cols, v, k);
  for (int64_t r = 0; r < block.rows; ++r) k[r] /= block.num_terms;
  for (int64_t j = 0; j < block.cols; ++j) out[j] = block.damping * v[j];
  add_rows(k, block.window, block.stride, block.rows, out, block.cols);
}

// One tile of rows of X = R⁻ᵀB for a panel of columns, X [k][kPanelWidth<double>]: solved against
// the rows above, from row `first` on, and against itself. Its squares are added to the columns'
// norms.
template <int rows>
MFAC_INLINE void substitute_tile(const double* upper, int64_t stride, int64_t row, int64_t first, double* x,
                                 f64v (&norm)[kPanelVectors]) {
  constexpr int64_t kWidth = kPanelWidth<double>;
  f64v sum[rows][kPanelVectors] = {};
  double inverse_pivots[rows];
  if (row > first) add_products(sum, upper + first * stride + row, stride, x + first * kWidth, kWidth, row - first);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    inverse_pivots[r] = 1 / upper[(row + r) * (stride + 1)];
    for (int v = 0; v < kPanelVectors; ++v) sum[r][v] = load(x + (row + r) * kWidth + v * kLanes) - sum[r][v];
  }
  solve_tile<rows, kPanelVectors>(sum, upper + row * (stride + 1), stride, inverse_pivots);
#pragma GCC unroll 8
  for (int r = 0; r < rows; ++r) {
    for (int v = 0; v < kPanelVectors; ++v) {
      store(x + (row + r) * kWidth + v * kLanes, sum[r][v]);
      norm[v] += sum[r][v] * sum[r][v];
    }
  }
}

// norms[j] <- Σ_i (R⁻ᵀB)_ij² for a panel of columns [size][kPanelWidth<double>], overwritten, that
// is zero above row `first`
MFAC_INLINE void substitute_norms(const double* upper, int64_t size, int64_t stride, int64_t first, double* x,
                                  double* norms) {
  f64v norm[kPanelVectors] = {};
  int64_t row = first;
  for (; row + kTileRows <= size; row += kTileRows) substitute_tile<kTileRows>(upper, stride, row, first, x, norm);
  for (; row < size; ++row) substitute_tile<1>(upper, stride, row, first, x, norm);
  __builtin_memcpy(norms, norm, sizeof(norm));
}

// (1 - s)/λ for s = ‖U_:j‖² of a column; where the subtraction cancels at least 1/F_jj, which
// bounds it from below.
template <typename T>
MFAC_INLINE double dual_diagonal(const Block<T>& block, int64_t j, double s) {
  double rest = 1 - s;
  if (rest < kCancelled) {
    double sum = 0;
    for (int64_t r = 0; r < block.rows; ++r) {
      const double x = block.window[r * block.stride + j];
      sum += x * x;
    }
    const double least = block.damping / (block.damping + sum / block.num_terms);
    if (rest < least) rest = least;
  }
  return rest / block.damping;
}

// dual: (1 - ‖(L⁻¹ G_b)_:j‖²)/λ.  primal: ‖(L⁻¹)_:j‖².  scratch: a panel of columns,
// [order][kPanelWidth<double>]
template <typename T>
void block_inverse_diagonal(const Block<T>& block, double* out) {
  constexpr int64_t kWidth = kPanelWidth<double>;
  double* x = block.scratch;
  double norms[kWidth];
  for (int64_t begin = 0; begin < block.cols; begin += kWidth) {
    const int64_t width = block.cols - begin < kWidth ? block.cols - begin : kWidth;
    if (block.form == BlockForm::kDual) {
      whiten_pack<T, double>(block.window + begin, block.stride, block.rows, width, x);
      substitute_norms(block.factor, block.rows, block.factor_stride, 0, x, norms);
      for (int64_t j = 0; j < width; ++j) out[begin + j] = dual_diagonal(block, begin + j, norms[j]);
    } else {  // of the unit matrix, whose columns are zero above the diagonal
      __builtin_memset(x + begin * kWidth, 0, sizeof(double) * (block.cols - begin) * kWidth);
      for (int64_t j = 0; j < width; ++j) x[(begin + j) * kWidth + j] = 1;
      substitute_norms(block.factor, block.cols, block.factor_stride, begin, x, norms);
      for (int64_t j = 0; j < width; ++j) out[begin + j] = norms[j];
    }
  }
}

template <typename T>
constexpr void fill(BlockKernels<T>& kernels) {
  kernels = {kPanelWidth<double>, block_factor<T>, block_ihvp<T>, block_matvec<T>, block_inverse_diagonal<T>};
}
